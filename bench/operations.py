"""Time of the hand-written operations of a Sana block beside the ordinary ones; correctness first.

    python bench/operations.py                       # needs a GPU: 1.6B at 1024 px, B = 1, 8, 16; at most four minutes
    python bench/operations.py --batch 8 --seconds 90
    python bench/operations.py --batch 8 --plans     # only other shapes of the programs; about a minute
    python bench/operations.py --only gate norm add_norm --batch 1 8   # norms, gates and residual sums
    python bench/operations.py --cpu                 # a tiny check of the plain twins, no timing

Milliseconds are device time: one pass over several sets of inputs (together larger than any cache) is captured as a CUDA
graph, and the median of its replays is divided by their number; where a graph cannot be captured, events around the
pass. GB/s counts the bytes that the launches forward and backward must move, so it is a rate only for "triton"; for
the others it is what they would need to be as good. "bytes alone" is that count at 3.0 TB/s.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import residual_operations
import torch
import torch.nn.functional as F
from needs_gpu import need_gpu

from simpletuner.models.sana.kernels import cross_attention, depthwise, linear_attention, runs_in_triton

BANDWIDTH, LARGER_THAN_CACHES = 3.0e12, 400e6
HEIGHT, WIDTH, CHANNELS, HEADS, HEAD = 32, 32, 5600, 70, 32
# Channels, warps, most columns, loaded ahead, most registers, warps of a launch; likeliest first. None spills on sm_90.
PLANS = {
    "FORWARD": (
        (256, 4, 64, True, 128), (256, 4, 64, False, 0), (128, 2, 64, True, 112), (256, 4, 16, True, 128),
        (64, 1, 64, True, 112), (64, 1, 64, True, 128),
    ),
    "GATE": (
        (256, 4, 64, True, 128), (256, 4, 64, False, 0), (128, 2, 64, True, 128), (256, 4, 16, True, 128),
        (64, 1, 64, True, 128), (64, 1, 16, True, 128),
    ),
    "SPREAD": (
        (256, 4, 64, True, 128), (256, 4, 64, False, 0), (128, 2, 64, True, 104), (256, 4, 16, True, 128),
        (64, 1, 64, True, 104), (64, 1, 64, True, 112),
    ),
    "WHOLE": (
        (64, 1, 64, True, 0, 1056), (128, 2, 64, True, 0, 1056), (256, 4, 64, True, 0, 1056),
        (64, 1, 16, True, 0, 1056), (128, 2, 16, True, 0, 1056), (64, 1, 8, True, 0, 1056),
    ),
}  # fmt: skip
# Tokens of a block, blocks of a run, warps.
ATTENTION_PLANS = ((64, 4, 4), (64, 2, 4), (64, 1, 4), (128, 2, 8))
# Queries and keys of a block, warps, stages, of one launch of cross-attention at a time. None of them spills.
CROSS_PLANS = {
    "FORWARD": ((64, 32, 4, 2), (64, 32, 4, 3), (128, 64, 8, 2), (64, 64, 4, 1)),
    "QUERY": ((64, 32, 4, 2), (128, 64, 8, 2), (64, 64, 4, 1)),
    "KEY": ((32, 64, 4, 3), (64, 128, 8, 2), (32, 128, 8, 3)),
}
CROSS_HEADS, CROSS_HEAD, KEYS, SHORTEST, LONGEST = 20, 112, 256, 75, 225
MODEL = HEADS * HEAD  # channels of the residual stream

Operation = Callable[..., Any]  # of one tensor or of several, all of one shape


class Subject(NamedTuple):
    """One operation: the shapes of its inputs and output, its ways, and the values moved, forward and with backward."""

    name: str
    shapes: list[tuple[int, ...]]
    out: tuple[int, ...]
    ways: dict[str, Operation]
    exact: Operation
    moved: tuple[int, int]


def cudnn_middle(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """As diffusers does: a convolution of the library over channels-last views."""
    picture = F.silu(x).unflatten(1, (height, width)).permute(0, 3, 1, 2)
    value, gate = F.conv2d(picture, weight, bias, padding=1, groups=len(weight)).chunk(2, dim=1)
    return (value * F.silu(gate)).permute(0, 2, 3, 1).flatten(1, 2)


def diffusers_attention(qkv: torch.Tensor) -> torch.Tensor:
    """As diffusers does: float32 copies in its layouts, a row of ones that sums the keys."""
    query, key, value = (part.permute(0, 2, 3, 1) for part in qkv.unbind(2))
    query, key = F.relu(query).float(), F.relu(key.transpose(2, 3)).float()
    both = (F.pad(value.float(), (0, 0, 0, 1), value=1.0) @ key) @ query
    return (both[:, :, :-1] / (both[:, :, -1:] + 1e-15)).permute(0, 3, 1, 2).to(qkv.dtype)


def twin_attention(qkv: torch.Tensor) -> torch.Tensor:
    """The plain twin of the package, differentiated by torch."""
    return linear_attention.plain_forward(qkv)[0]


def depthwise_subject(batch: int, height: int, width: int, channels: int, compiled: bool) -> Subject:
    def at(function: Operation) -> Operation:
        return lambda *tensors: function(*tensors, height, width)

    ways = {"cuDNN, eager": at(cudnn_middle)}
    if compiled:
        ways["cuDNN, compiled"] = torch.compile(at(cudnn_middle), dynamic=False)
        ways["twin, compiled"] = torch.compile(at(depthwise.plain_forward), dynamic=False)
    ways["triton" if compiled else "twin"] = at(depthwise.gated_depthwise)
    tokens = batch * height * width
    shapes = [(batch, height * width, 2 * channels), (2 * channels, 1, 3, 3), (2 * channels,)]
    moved = (3 * tokens * channels, 14 * tokens * channels)
    return Subject(
        "SiLU, depthwise 3x3, gate", shapes, (batch, height * width, channels), ways, at(cudnn_middle), moved
    )


def attention_subject(batch: int, tokens: int, heads: int, width: int, compiled: bool) -> Subject:
    ways = {"diffusers, eager": diffusers_attention}
    if compiled:
        ways["diffusers, compiled"] = torch.compile(diffusers_attention, dynamic=False)
        ways["twin, compiled"] = torch.compile(twin_attention, dynamic=False)
    ways["triton" if compiled else "twin"] = linear_attention.linear_attention
    values = batch * tokens * heads * width
    shape, out = (batch, tokens, 3, heads, width), (batch, tokens, heads, width)
    return Subject("linear attention", [shape], out, ways, diffusers_attention, (4 * values, 11 * values))


def masked_sdpa(query: torch.Tensor, key_value: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """As diffusers does."""
    query, key, value = (part.transpose(1, 2) for part in (query, *key_value.unbind(2)))
    return F.scaled_dot_product_attention(query, key, value, bias[:, None, None].to(query.dtype)).transpose(1, 2)


def cudnn_sdpa(query: torch.Tensor, key_value: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """The same through cuDNN, which wants the bias of every query written out."""
    query, key, value = (part.transpose(1, 2) for part in (query, *key_value.unbind(2)))
    mask = bias[:, None, None].to(query.dtype).expand(-1, 1, query.shape[2], -1).contiguous()
    return torch.ops.aten._scaled_dot_product_cudnn_attention(query, key, value, mask, True)[0].transpose(1, 2)


class PyTorchsKernel(torch.autograd.Function):
    """The package's operation by PyTorch's memory-efficient kernel, as where Triton is missing."""

    @staticmethod
    def forward(ctx: Any, *given: torch.Tensor) -> torch.Tensor:
        out, lse = cross_attention.library_forward(*given)
        ctx.save_for_backward(*given, out, lse)
        return out

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        return (*cross_attention.library_backward(grad, *ctx.saved_tensors), None)


def cross_subject(batch: int, tokens: int, heads: int, width: int, keys: int, compiled: bool) -> Subject:
    lengths = torch.linspace(SHORTEST, LONGEST, batch + 2)[1:-1].round()[:, None] * keys / KEYS
    bias = torch.where(torch.arange(keys)[None] < lengths, 0.0, -10000.0)
    bias = bias.to("cuda", torch.bfloat16) if compiled else bias

    def at(function: Operation) -> Operation:
        return lambda query, key_value: function(query, key_value, bias.to(query.dtype))

    ways = {"SDPA with a mask": at(masked_sdpa)}
    if compiled:
        ways |= {"SDPA of cuDNN": at(cudnn_sdpa), "PyTorch's kernel": at(PyTorchsKernel.apply)}
    ways["triton" if compiled else "twin"] = at(cross_attention.cross_attention)
    values = batch * tokens * heads * width
    shapes, out = [(batch, tokens, heads, width), (batch, keys, 2, heads, width)], (batch, tokens, heads, width)
    return Subject("cross-attention", shapes, out, ways, at(masked_sdpa), (2 * values, 8 * values))


def residual_subject(name: str, batch: int, tokens: int, channels: int, compiled: bool) -> Subject:
    rows, summands, biased, chain, operation, passes = residual_operations.OPERATIONS[name]
    ways: dict[str, Operation] = {"chain, eager": chain}
    if compiled:
        ways["chain, compiled"] = torch.compile(chain, dynamic=False)
    ways["triton" if compiled else "twin"] = operation
    out = (batch, tokens, channels)
    shapes = [*([out] * summands), (batch, rows, channels), *([(channels,)] if biased else [])]
    values = batch * tokens * channels
    return Subject(name, shapes, out, ways, chain, (passes[0] * values, passes[1] * values))


def make(shapes: list[tuple[int, ...]], dtype: torch.dtype, device: str) -> list[torch.Tensor]:
    return [torch.randn(shape, device=device).to(dtype).requires_grad_() for shape in shapes]


def as_list(result: Any) -> list[torch.Tensor]:
    return [result] if isinstance(result, torch.Tensor) else list(result)


def worst_error(way: Operation, subject: Subject, tensors: list[torch.Tensor]) -> float:
    """The largest relative error of the output and of every gradient, against float32 of the library."""
    exact = [tensor.detach().float().requires_grad_() for tensor in tensors]
    wanted, found = as_list(subject.exact(*exact)), as_list(way(*tensors))
    grads = [torch.randn_like(out) for out in found]
    ours = torch.autograd.grad(found, tensors, grads)
    theirs = torch.autograd.grad(wanted, exact, [grad.float() for grad in grads])
    pairs = zip([*found, *ours], [*wanted, *theirs], strict=True)
    return max(((a.float() - b).norm() / b.norm()).item() for a, b in pairs)


def device_ms(run: Callable[[int], object], sets: int) -> float:
    """Median device time of one call in ms; `run` is called with 0 … sets − 1."""

    def all_sets() -> None:
        for index in range(sets):
            run(index)

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            all_sets()
    torch.cuda.current_stream().wait_stream(side)
    torch.cuda.synchronize()
    again: Callable[[], None] = all_sets
    try:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            all_sets()
        again = graph.replay
    except RuntimeError as error:
        torch.cuda.synchronize()
        print(f"    (no graph: {str(error).splitlines()[0][:80]}; launches are in the time)")
    times = []
    for _ in range(12):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        again()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) / sets)
    return statistics.median(times[2:])


def time_way(way: Operation, subject: Subject, sets: list[list[torch.Tensor]]) -> tuple[float, float]:
    """Device time in ms of the forward pass alone, and with backward."""
    grad = torch.randn(subject.out, device="cuda").to(sets[0][0].dtype)

    def forward(index: int) -> None:
        with torch.no_grad():
            way(*sets[index])

    def with_backward(index: int) -> None:
        found = as_list(way(*sets[index]))
        torch.autograd.grad(found, sets[index], [grad] * len(found))

    return device_ms(forward, len(sets)), device_ms(with_backward, len(sets))


def report(subject: Subject, until: float) -> bool:
    """Print a table of one operation; returns whether every way was right."""
    size = 2 * sum(torch.Size(shape).numel() for shape in subject.shapes)
    sets = [make(subject.shapes, torch.bfloat16, "cuda") for _ in range(max(1, round(LARGER_THAN_CACHES / size)))]
    alone = [2000 * values / BANDWIDTH for values in subject.moved]
    print(f"\n{subject.name}, {list(subject.shapes[0])} bf16, {len(sets)} sets of inputs")
    print("| way | worst error | forward ms | GB/s | forward + backward ms | GB/s |\n|---|---|---|---|---|---|")
    print(f"| bytes alone at 3.0 TB/s | | {alone[0]:.3f} | 3000 | {alone[1]:.3f} | 3000 |", flush=True)
    right = True
    for name, way in subject.ways.items():
        if time.monotonic() > until:
            print(f"| {name} | not run: the time is spent | | | | |")
            continue
        try:
            error = worst_error(way, subject, sets[0])
            ms = time_way(way, subject, sets)
        except RuntimeError as problem:  # a library's way that this card or version has not is a row of the table
            if name == "triton":
                raise
            print(f"| {name} | does not run: {str(problem).splitlines()[0][:90]} | | | | |")
            continue
        right &= error < 2e-2
        rates = [2e-6 * values / took for values, took in zip(subject.moved, ms, strict=True)]
        verdict = "" if error < 2e-2 else " WRONG"
        print(
            f"| {name} | {error:.1e}{verdict} | {ms[0]:.3f} | {rates[0]:.0f} | {ms[1]:.3f} | {rates[1]:.0f} |",
            flush=True,
        )
        torch.cuda.empty_cache()
    return right


class Trial:
    """The depthwise operation at the real size, with the program shape of each launch under our hand."""

    def __init__(self, batch: int) -> None:
        from simpletuner.models.sana.kernels import depthwise_triton

        self.kernels = depthwise_triton
        self.kept = {name: getattr(depthwise_triton, name) for name in PLANS}
        self.in_one = depthwise_triton.IN_ONE
        self.subject = depthwise_subject(batch, HEIGHT, WIDTH, CHANNELS, compiled=False)
        self.way = self.subject.ways["twin"]  # which is Triton for CUDA tensors
        self.sets = [make(self.subject.shapes, torch.bfloat16, "cuda") for _ in range(max(1, 16 // batch))]
        self.grad = torch.randn(self.subject.out, device="cuda").bfloat16()

    def use(self, plans: dict[str, tuple[int, ...]]) -> None:
        """These plans for the launches named, the module's own for the others; backward in one where WHOLE is named."""
        self.kernels.IN_ONE = self.in_one if not plans else "WHOLE" in plans
        for name, usual in self.kept.items():
            setattr(self.kernels, name, self.kernels.Plan(*plans.get(name, usual)))

    def first_call(self) -> float:
        """Seconds of one call of every launch, compilation included."""
        start = time.monotonic()
        with torch.no_grad():
            self.kernels.forward(*self.sets[0], HEIGHT, WIDTH)
            self.kernels.backward(self.grad, *self.sets[0], HEIGHT, WIDTH)
        torch.cuda.synchronize()
        return time.monotonic() - start

    @torch.no_grad()
    def ms(self, name: str) -> float:
        """Device time of forward, or of all of backward."""
        if name == "FORWARD":
            return device_ms(lambda i: self.kernels.forward(*self.sets[i], HEIGHT, WIDTH), len(self.sets))
        return device_ms(lambda i: self.kernels.backward(self.grad, *self.sets[i], HEIGHT, WIDTH), len(self.sets))


def try_plans(batch: int, until: float) -> bool:
    """Time the launches of the depthwise operation with other program shapes; returns whether all were right."""
    trial = Trial(batch)
    found: dict[str, dict[tuple[int, ...], float]] = {name: {} for name in PLANS}
    right = True
    print(f"\nplans, batch {batch}; under gate and spread stands all of backward with that launch changed, under whole")
    print("all of backward as one launch; channels, warps, columns, ahead, registers, enough warps")
    print("| worst errors | first call s | forward plan | ms | gate plan | ms | spread plan | ms | whole plan | ms |")
    print("|---|---|---|---|---|---|---|---|---|---|", flush=True)
    for row in zip(*PLANS.values(), strict=True):
        if time.monotonic() > until:
            print(f"| {row} not run: the time is spent | | | | | | | | | |")
            continue
        plans = dict(zip(PLANS, row, strict=True))
        took, errors = 0.0, []
        for part in ({name: plan for name, plan in plans.items() if name != "WHOLE"}, {"WHOLE": plans["WHOLE"]}):
            trial.use(part)
            took += trial.first_call()
            errors.append(worst_error(trial.way, trial.subject, trial.sets[0]))
        good = max(errors) < 2e-2
        right &= good
        for name, plan in plans.items():
            trial.use({name: plan})
            found[name][plan] = trial.ms(name)
        ms = " | ".join(f"{plan} | {found[name][plan]:.3f}" for name, plan in plans.items())
        print(f"| {errors[0]:.1e}, {errors[1]:.1e}{'' if good else ' WRONG'} | {took:.1f} | {ms} |", flush=True)
    fastest = {name: min(times, key=times.__getitem__) for name, times in found.items() if times}
    print(f"fastest: {fastest}", flush=True)
    for way in ("two launches", "one launch"):
        trial.use({name: plan for name, plan in fastest.items() if name != "WHOLE" or way == "one launch"})
        forward, both = time_way(trial.way, trial.subject, trial.sets)
        print(f"together, backward in {way}: forward {forward:.3f} ms, forward + backward {both:.3f} ms", flush=True)
    trial.use({})
    return right


def try_attention_plans(batch: int, until: float) -> bool:
    """The same for the launches of linear attention, all four at once."""
    from simpletuner.models.sana.kernels import linear_attention_triton as kernels

    subject = attention_subject(batch, HEIGHT * WIDTH, HEADS, HEAD, compiled=False)
    way, right, kept = subject.ways["twin"], True, (kernels.BLOCK, kernels.RUN, kernels.WARPS)
    sets = [make(subject.shapes, torch.bfloat16, "cuda") for _ in range(max(1, 32 // batch))]
    print(f"\nplans of linear attention, batch {batch}")
    print("| block, run, warps | worst error | forward ms | forward + backward ms |\n|---|---|---|---|", flush=True)
    for plan in ATTENTION_PLANS:
        if time.monotonic() > until:
            print(f"| {plan} | not run: the time is spent | | |")
            continue
        kernels.BLOCK, kernels.RUN, kernels.WARPS = plan
        error = worst_error(way, subject, sets[0])
        right &= error < 2e-2
        forward, both = time_way(way, subject, sets)
        print(f"| {plan} | {error:.1e}{'' if error < 2e-2 else ' WRONG'} | {forward:.3f} | {both:.3f} |", flush=True)
    kernels.BLOCK, kernels.RUN, kernels.WARPS = kept
    return right


def try_cross_plans(batch: int, until: float) -> bool:
    """The same for cross-attention: forward, and all of it, whose difference is the backward pass."""
    from simpletuner.models.sana.kernels import cross_attention_triton as kernels

    kept, right = {name: getattr(kernels, name) for name in CROSS_PLANS}, True
    subject = cross_subject(batch, HEIGHT * WIDTH, CROSS_HEADS, CROSS_HEAD, KEYS, compiled=True)
    way = subject.ways["triton"]
    sets = [make(subject.shapes, torch.bfloat16, "cuda") for _ in range(max(1, 32 // batch))]
    print(f"\nplans of cross-attention, batch {batch}; one launch changed at a time")
    print("| launch: plan | worst error | forward ms | forward + backward ms |\n|---|---|---|---|", flush=True)
    for name, plan in [("as it is", None), *((name, plan) for name, plans in CROSS_PLANS.items() for plan in plans)]:
        if time.monotonic() > until:
            print(f"| {name}: {plan} | not run: the time is spent | | |")
            continue
        for launch, usual in kept.items():
            setattr(kernels, launch, kernels.Plan(*plan) if launch == name else usual)
        error = worst_error(way, subject, sets[0])
        right &= error < 2e-2
        forward, both = time_way(way, subject, sets)
        verdict = "" if error < 2e-2 else " WRONG"
        print(f"| {name}: {plan} | {error:.1e}{verdict} | {forward:.3f} | {both:.3f} |", flush=True)
    for launch, usual in kept.items():
        setattr(kernels, launch, usual)
    sets = [make(subject.shapes, torch.float32, "cuda") for _ in range(max(1, 16 // batch))]
    for name in ("PyTorch's kernel", "triton"):
        forward, both = time_way(subject.ways[name], subject, sets)
        print(f"| float32, {name} | | {forward:.3f} | {both:.3f} |", flush=True)
    return right


def try_residual_plans(name: str, batch: int, until: float) -> bool:
    """The same for one of the norms and gates."""
    from simpletuner.models.sana.kernels import residual_triton as kernels

    launches = ("GATE", "GATE_BACKWARD") if name == "gate" else ("NORM", "NORM_BACKWARD")
    kept, right = {launch: getattr(kernels, launch) for launch in launches}, True
    subject = residual_subject(name, batch, HEIGHT * WIDTH, MODEL, compiled=True)
    sets = [make(subject.shapes, torch.bfloat16, "cuda") for _ in range(max(1, 48 // batch))]
    print(f"\nplans of {name}, batch {batch}; one launch changed at a time")
    print("| launch: plan | worst error | forward ms | forward + backward ms |\n|---|---|---|---|", flush=True)
    plans = [(launch, plan) for launch in launches for plan in residual_operations.PLANS[launch]]
    for changed, plan in [("as it is", None), *plans]:
        if time.monotonic() > until:
            print(f"| {changed}: {plan} | not run: the time is spent | | |")
            continue
        for launch, usual in kept.items():
            setattr(kernels, launch, kernels.Plan(*plan) if launch == changed else usual)
        error = worst_error(subject.ways["triton"], subject, sets[0])
        right &= error < 2e-2
        forward, both = time_way(subject.ways["triton"], subject, sets)
        verdict = "" if error < 2e-2 else " WRONG"
        print(f"| {changed}: {plan} | {error:.1e}{verdict} | {forward:.3f} | {both:.3f} |", flush=True)
    for launch, usual in kept.items():
        setattr(kernels, launch, usual)
    return right


def check_twins() -> bool:
    """The operations on the CPU, tiny, float32: output and gradients against the library's operations."""
    right = True
    for subject in (
        depthwise_subject(2, 5, 7, 24, compiled=False),
        attention_subject(2, 35, 3, 32, compiled=False),
        cross_subject(2, 35, 3, 24, 20, compiled=False),
        *(residual_subject(name, 2, 35, 24, compiled=False) for name in residual_operations.OPERATIONS),
    ):
        error = worst_error(subject.ways["twin"], subject, make(subject.shapes, torch.float32, "cpu"))
        right &= error < 1e-5
        print(f"{subject.name}: worst error of output and gradients {error:.1e} {'ok' if error < 1e-5 else 'WRONG'}")
    return right


SUBJECTS: dict[str, Callable[[int], Subject]] = {
    "depthwise": lambda batch: depthwise_subject(batch, HEIGHT, WIDTH, CHANNELS, compiled=True),
    "linear": lambda batch: attention_subject(batch, HEIGHT * WIDTH, HEADS, HEAD, compiled=True),
    "cross": lambda batch: cross_subject(batch, HEIGHT * WIDTH, CROSS_HEADS, CROSS_HEAD, KEYS, compiled=True),
}
TRIALS: dict[str, Callable[[int, float], bool]] = {
    "depthwise": try_plans,
    "linear": try_attention_plans,
    "cross": try_cross_plans,
}
for _name in residual_operations.OPERATIONS:
    SUBJECTS[_name] = partial(lambda name, batch: residual_subject(name, batch, HEIGHT * WIDTH, MODEL, True), _name)
    TRIALS[_name] = partial(try_residual_plans, _name)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8, 16])
    parser.add_argument("--seconds", type=float, default=240, help="after this nothing new is started")
    parser.add_argument("--only", nargs="+", choices=SUBJECTS, default=list(SUBJECTS), help="these operations")
    parser.add_argument("--plans", action="store_true", help="only try other shapes of the programs")
    parser.add_argument("--cpu", action="store_true", help="only the tiny check of the plain twins")
    arguments = parser.parse_args()
    if arguments.cpu:
        print("Nothing is timed; a tiny check of the plain twins.")
        return 0 if check_twins() else 1
    need_gpu("add --cpu, which only checks the plain twins of the kernels")
    if not runs_in_triton(torch.empty(1, device="cuda")):
        print("Triton is not installed: pip install './[cuda]'")
        return 1
    until = time.monotonic() + arguments.seconds
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}")
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    right = True
    for batch in arguments.batch:
        if arguments.plans:
            right &= all([TRIALS[name](batch, until) for name in arguments.only])
            continue
        for name in arguments.only:
            right &= report(SUBJECTS[name](batch), until)
    print("\nall results are right" if right else "\nSOME RESULTS ARE WRONG")
    return 0 if right else 1


if __name__ == "__main__":
    sys.exit(main())
