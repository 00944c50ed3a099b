"""Other shapes of the programs behind the operations, timed: ``operations.py --plans``."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import residual_operations
import torch
from operation_subjects import (
    CHANNELS,
    CROSS_HEAD,
    CROSS_HEADS,
    HEAD,
    HEADS,
    HEIGHT,
    KEYS,
    MODEL,
    WIDTH,
    Subject,
    attention_subject,
    cross_subject,
    depthwise_subject,
    residual_subject,
)
from operation_times import WORST, device_ms, make, time_way, worst_error

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
        good = max(errors) < WORST
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
        right &= error < WORST
        forward, both = time_way(way, subject, sets)
        print(f"| {plan} | {error:.1e}{'' if error < WORST else ' WRONG'} | {forward:.3f} | {both:.3f} |", flush=True)
    kernels.BLOCK, kernels.RUN, kernels.WARPS = kept
    return right


def one_at_a_time(
    kernels: Any,
    plans: Mapping[str, Sequence[tuple[int, ...]]],
    subject: Subject,
    sets: list[list[torch.Tensor]],
    until: float,
) -> bool:
    """Time an operation as it is, and with one launch changed at a time; returns whether all were right."""
    kept, right = {launch: getattr(kernels, launch) for launch in plans}, True
    print("| launch: plan | worst error | forward ms | forward + backward ms |\n|---|---|---|---|", flush=True)
    rows = [(launch, plan) for launch, tried in plans.items() for plan in tried]
    for changed, plan in [("as it is", None), *rows]:
        if time.monotonic() > until:
            print(f"| {changed}: {plan} | not run: the time is spent | | |")
            continue
        for launch, usual in kept.items():
            setattr(kernels, launch, kernels.Plan(*plan) if launch == changed and plan else usual)
        error = worst_error(subject.ways["triton"], subject, sets[0])
        right &= error < WORST
        forward, both = time_way(subject.ways["triton"], subject, sets)
        verdict = "" if error < WORST else " WRONG"
        print(f"| {changed}: {plan} | {error:.1e}{verdict} | {forward:.3f} | {both:.3f} |", flush=True)
    for launch, usual in kept.items():
        setattr(kernels, launch, usual)
    return right


def try_cross_plans(batch: int, until: float) -> bool:
    """The same for cross-attention, whose backward pass is the difference of the two times."""
    from simpletuner.models.sana.kernels import cross_attention_triton as kernels

    subject = cross_subject(batch, HEIGHT * WIDTH, CROSS_HEADS, CROSS_HEAD, KEYS, compiled=True)
    sets = [make(subject.shapes, torch.bfloat16, "cuda") for _ in range(max(1, 32 // batch))]
    print(f"\nplans of cross-attention, batch {batch}; one launch changed at a time")
    right = one_at_a_time(kernels, CROSS_PLANS, subject, sets, until)
    sets = [make(subject.shapes, torch.float32, "cuda") for _ in range(max(1, 16 // batch))]
    for name in ("PyTorch's kernel", "triton"):
        forward, both = time_way(subject.ways[name], subject, sets)
        print(f"| float32, {name} | | {forward:.3f} | {both:.3f} |", flush=True)
    return right


def try_residual_plans(name: str, batch: int, until: float) -> bool:
    """The same for one of the norms and gates."""
    from simpletuner.models.sana.kernels import gated_norm_triton, residual_triton

    kernels = gated_norm_triton if name == "gate_norm" else residual_triton
    launches = residual_operations.LAUNCHES.get(name, ("NORM", "NORM_BACKWARD"))
    subject = residual_subject(name, batch, HEIGHT * WIDTH, MODEL, compiled=True)
    sets = [make(subject.shapes, torch.bfloat16, "cuda") for _ in range(max(1, 48 // batch))]
    print(f"\nplans of {name}, batch {batch}; one launch changed at a time")
    plans = {launch: residual_operations.PLANS[launch] for launch in launches}
    return one_at_a_time(kernels, plans, subject, sets, until)


TRIALS: dict[str, Callable[[int, float], bool]] = {
    "depthwise": try_plans,
    "linear": try_attention_plans,
    "cross": try_cross_plans,
    **{name: partial(try_residual_plans, name) for name in residual_operations.OPERATIONS},
}
