"""One way of making a training step, in a process of its own: its numerics, or its time at several batch sizes.

Started by bench/step.py; prints one JSON object a line, the last words of each measurement as soon as they are known.
"""

from __future__ import annotations

import copy
import io
import json
import os
import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tools")]
TOKENS = {"pocket": 32, "tiny": 300, "1.6b": 300}
# A compiled block is compiled for one length of text: each further one would cost a compilation within the steps, and
# torch 2.13's compiler fails on attention with a mask of variable length (seen on a CPU, ours and diffusers' alike).
COMPILED_MULTIPLE = 256


@dataclass(frozen=True, slots=True)
class Variant:
    """One way.

    Attributes:
        what: For the table.
        plain: Our form of the blocks instead of diffusers' own.
        ways: Of making its products: ``cpu``, ``accelerator``, ``apart`` (q, k and v by themselves) or "" for the device's.
        compiled: Every block through torch.compile; one compilation serves all, and text is padded to 256 tokens.
        fast: The program's fast way: hand-written kernels, and text padded to a multiple of 64.
        graph: The step is replayed as a CUDA graph.
        float32: Float32 weights under bf16 autocast, torch's fused AdamW and padded text, instead of bf16 weights.
    """

    what: str
    plain: bool = False
    ways: str = ""
    compiled: bool = False
    float32: bool = False
    fast: bool = False
    graph: bool = False


VARIANTS = {
    "amp": Variant("diffusers, float32 weights, autocast, padded text", float32=True),
    "diffusers": Variant("diffusers, eager"),
    "diffusers-compiled": Variant("diffusers, each block compiled", compiled=True),
    "ours": Variant("ours, eager", plain=True),
    "ours-compiled": Variant("ours, each block compiled", plain=True, compiled=True),
    "ours-apart": Variant("ours, compiled, q/k/v apart", plain=True, ways="apart", compiled=True),
    "fast": Variant("ours, fast: kernels, compiled, one graph", plain=True, compiled=True, fast=True, graph=True),
    "fast-launched": Variant("ours, fast, without the graph", plain=True, compiled=True, fast=True),
    "fast-eager": Variant("ours, kernels alone", plain=True, fast=True),
    "ours-products": Variant("ours, products as on a GPU", plain=True, ways="accelerator"),
}


def build(size: str, layers: int = 0, device: str = "cpu") -> Any:
    """The transformer in float32, with random weights but for the pocket's."""
    from diffusers import SanaTransformer2DModel
    from random_sana import transformer_config

    from simpletuner.models.sana import attention

    torch.manual_seed(0)
    if size == "pocket":
        folder = ROOT / "simpletuner" / "pocket" / "model"
        model = SanaTransformer2DModel.from_pretrained(folder, subfolder="transformer").to(device)
    else:
        config = transformer_config(size)
        with torch.device(device):
            model = SanaTransformer2DModel(**{**config, "num_layers": layers or config["num_layers"]})
    attention.use_float32_sums(model)
    return model.train()


def arrange(model: Any, variant: Variant) -> None:
    """Let the model's blocks run this way."""
    from simpletuner.models.sana import transformer as ours

    ours.use_diffusers(model)
    for block in model.transformer_blocks:
        block._compiled_call_impl = None
    if variant.compiled:
        import torch._inductor.config as inductor

        inductor.comprehensive_padding = False  # else rows of 5600 are padded to 5632 and copied back
        torch._dynamo.config.recompile_limit = 64
    if variant.plain:
        ways = {"cpu": ours.CPU, "accelerator": ours.ACCELERATOR, "apart": replace(ours.ACCELERATOR, joined=False)}
        ways["fast"] = ours.KERNELS
        run = torch.compile(ours.run_block, dynamic=False) if variant.compiled else ours.run_block
        run = ours.compiled_block() if variant.fast and variant.compiled else run
        obstacle = ours.use_plain(model, ways.get("fast" if variant.fast else variant.ways), run)
        assert obstacle is None, obstacle
    elif variant.compiled:
        for block in model.transformer_blocks:
            block.compile(dynamic=False)


# ---------------------------------------------------------------- numerics
@dataclass(frozen=True, slots=True)
class Question:
    """Two pictures of 7 x 9 tokens (the pocket: 7 x 7) under noise, and their captions of unequal length."""

    latents: torch.Tensor
    text: torch.Tensor
    mask: torch.Tensor
    target: torch.Tensor


SIGMAS = torch.tensor([0.13, 0.81])


def question(config: Any, size: str, seed: int) -> Question:
    """The pocket is asked what it knows, since far from it its gradients are mostly cancellation; others random numbers."""
    generator = torch.Generator().manual_seed(seed)
    shape = (2, config.in_channels, 7 * config.patch_size, 9 * config.patch_size)
    noise, text = (
        torch.randn(shape, generator=generator),
        torch.randn(2, 12, config.caption_channels, generator=generator),
    )
    mask = (torch.arange(12)[None] < torch.tensor([[12], [5]])).long()
    if size != "pocket":
        return Question(noise, text, mask, torch.randn(shape, generator=generator))
    from simpletuner.data.images import cut
    from simpletuner.data.loader import pad
    from simpletuner.data.placement import PlacementRules, place
    from simpletuner.data.types import Size
    from simpletuner.models.base import LoadSource, TextSettings
    from simpletuner.models.sana.family import Sana

    folder = ROOT / "simpletuner" / "pocket"
    files = sorted(folder.glob("blueprint/**/*.png"))[seed : seed + 2]
    parts = Sana().load(LoadSource(str(folder / "model")))
    whole = place(Size(128, 128), PlacementRules(128, "pixel", 16), 0)
    latents = Sana().encode_pixels(parts.vae, torch.stack([cut(file, whole) for file in files]))[..., :14, :14]
    noise = noise[..., :14, :14]
    captions = [file.with_suffix(".txt").read_text(encoding="utf-8").strip() for file in files]
    words = [
        Sana().encode_captions(parts, [caption], TextSettings((), 32), False).real()[0]
        for caption in (captions[0], captions[1][:9])
    ]
    sigmas = SIGMAS[:, None, None, None]
    return Question((1 - sigmas) * latents + sigmas * noise, *pad(words), noise - latents)


def gradients(model: Any, asked: Question) -> dict[str, torch.Tensor]:
    """Output and every gradient, on the CPU in float32."""
    device, dtype = model.device, model.dtype
    model.zero_grad(set_to_none=True)
    output = model(
        asked.latents.to(device, dtype),
        encoder_hidden_states=asked.text.to(device, dtype),
        encoder_attention_mask=asked.mask.to(device),
        timestep=1000 * SIGMAS.to(device),
        return_dict=False,
    )[0]
    (output.float() - asked.target.to(device)).square().mean().backward()
    found = {name: p.grad.float().cpu() for name, p in model.named_parameters() if p.grad is not None}
    if not model.config.qk_norm:  # softmax does not see a constant added to every key: these are 0 but for rounding
        found = {name: g for name, g in found.items() if not name.endswith("attn2.to_k.bias")}
    return {"output": output.detach().float().cpu(), **found}


def errors(found: dict[str, torch.Tensor], truth: dict[str, torch.Tensor]) -> dict[str, float]:
    """‖a − b‖ / max(‖b‖, 1e-6 of the largest) for each tensor, and of all gradients together (``all``)."""
    assert found.keys() == truth.keys()
    norms = {name: float(t.norm()) for name, t in truth.items()}
    floor = 1e-6 * max(n for name, n in norms.items() if name != "output")
    apart = {name: float((found[name] - t).norm()) for name, t in truth.items()}
    every = [name for name in truth if name != "output"]
    whole = sum(apart[n] ** 2 for n in every) ** 0.5 / sum(norms[n] ** 2 for n in every) ** 0.5
    return {**{name: apart[name] / max(norms[name], floor) for name in truth}, "all": whole}


def numerics(job: dict[str, Any]) -> None:
    """Float32 against diffusers; then bf16's error against float32 beside diffusers' own. A line for each way."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    exact = build(job["size"], layers=2 if job["size"] == "1.6b" else 0, device=job["device"])
    low = copy.deepcopy(exact).bfloat16()
    asked = [question(exact.config, job["size"], seed) for seed in range(job["seeds"])]
    truth = [gradients(exact, one) for one in asked]

    def beside(model: Any) -> list[dict[str, float]]:
        return [errors(gradients(model, one), t) for one, t in zip(asked, truth, strict=True)]

    own = beside(low)
    for name in job["variants"]:
        variant = VARIANTS[name]
        if variant.float32 or name == "diffusers":
            continue
        arrange(exact, variant)
        full = beside(exact)
        arrange(low, variant)
        half = beside(low)
        tensor, worst = max(((n, e) for row in full for n, e in row.items()), key=lambda pair: pair[1])
        mean = {
            key: [statistics.geometric_mean(max(row[n], 1e-12) for row in rows) for n in own[0]]
            for key, rows in (("own", own), ("half", half))
        }
        ratios = [mine / theirs for mine, theirs in zip(mean["half"], mean["own"], strict=True)]
        line = {
            "variant": name,
            "float32 output": max(row["output"] for row in full),
            "float32 all gradients": max(row["all"] for row in full),
            "float32 worst gradient": worst,
            "of": tensor,
            "bf16 all gradients": statistics.mean(row["all"] for row in half),
            "diffusers' bf16": statistics.mean(row["all"] for row in own),
            "bf16 ratio, mean": statistics.geometric_mean(ratios),
            "bf16 ratio, worst tensor": max(ratios),
        }
        # Query gradients nearly cancel where ReLU leaves few features: diffusers' own float32 is up to 5e-4 off there.
        line["ok"] = (
            max(line["float32 output"], line["float32 all gradients"]) <= 1e-5
            and worst <= 1e-3
            and line["bf16 all gradients"] <= 1.2 * line["diffusers' bf16"]
            and line["bf16 ratio, mean"] <= 1.2
            and line["bf16 ratio, worst tensor"] <= 4
        )
        print(json.dumps(line), flush=True)


# ---------------------------------------------------------------- time
class Clock:
    """A hook that writes down when each step ended; the last in the list, so logging is inside."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_start(self, step: int) -> None:
        self.ends.append(time.perf_counter())

    def acts_at(self, step: int) -> bool:
        return False

    def on_step_end(self, result: Any) -> None:
        if result.skipped:
            raise SystemExit(f"a step was skipped: {result.skipped}")
        self.ends.append(time.perf_counter())

    def on_stop(self, step: int, finished: bool) -> None:
        pass


def samples(job: dict[str, Any]) -> tuple[Any, list[Any], tuple[int, int]]:
    """The packed cache: its store, its samples and the latents' sides; written by the first process that needs it."""
    from simpletuner.data.cache import TensorStore
    from simpletuner.data.encode import text_key
    from simpletuner.data.loader import LatentRef

    store, shape, generator = TensorStore(Path(job["cache"])), job["shape"], torch.Generator().manual_seed(1)
    refs = [LatentRef(f"{i}", store, f"latents {i}", (f"caption {i}",)) for i in range(job["pictures"])]
    if refs[0].key not in store:
        dtype = torch.float32 if job["size"] == "pocket" else torch.bfloat16
        with store.writer() as writer:
            for index, ref in enumerate(refs):  # lengths spread evenly, 0.5 to 1.5 of the mean
                length = job["text"] // 2 + round(job["text"] * (index * 7 % len(refs)) / max(len(refs) - 1, 1))
                writer.add(ref.key, torch.randn(*shape["latents"], generator=generator).to(dtype), ref.name)
                text = torch.randn(length, shape["text"], generator=generator).to(dtype)
                writer.add(text_key(ref.captions[0]), text, ref.name)
    return store, refs, tuple(shape["latents"][1:])


def padded(batches: Iterator[Any], multiple: int) -> Iterator[Any]:
    """Text padded to the next multiple of some number of tokens."""
    from simpletuner.data.loader import pin

    for batch in batches:
        more = (0, -batch.mask.shape[1] % multiple)
        text = torch.nn.functional.pad(batch.text, (0, 0, *more))
        again = replace(batch, text=text, mask=torch.nn.functional.pad(batch.mask, more))
        yield pin(again) if batch.latents.is_pinned() else again


def precision_of(job: dict[str, Any], variant: Variant) -> tuple[Any, str]:
    """Dtypes and optimizer."""
    from simpletuner.training import optimizers
    from simpletuner.training.precision import choose

    if job["size"] == "pocket":
        return choose("no", True), "torch-adamw"
    name = "torch-adamw" if variant.float32 else job["optimizer"]
    return choose("bf16", optimizers.low_precision_safe(name, {})), name


def trainee_of(job: dict[str, Any], variant: Variant) -> tuple[Any, Any]:
    """What is trained, and how one step is made: the program's own parts."""
    from simpletuner.flow.schedules import Density
    from simpletuner.models.base import Facts
    from simpletuner.models.sana.family import Sana
    from simpletuner.training import optimizers
    from simpletuner.training.learning_rate import Schedule
    from simpletuner.training.step import Recipe, Trainee
    from simpletuner.training.step_graph import StepGraphs

    precision, name = precision_of(job, variant)
    model = build(job["size"], device=job["device"]).to(precision.weights).requires_grad_(True)
    arrange(model, variant)
    if job["recompute"]:
        Sana().checkpoint_blocks(model, job["recompute"], random=False)
    parameters = list(model.parameters())
    optimizer = optimizers.build(name, parameters, 1e-5, {}, seed=0)
    facts = Facts(32, 32, model.config.patch_size, 3.0, 1024, model.config.in_channels)
    trainee = Trainee(Sana(), facts, model, optimizer, None, torch.device(job["device"]), parameters=parameters)
    if variant.graph and job["device"] == "cuda":
        trainee.graphs = StepGraphs(getattr(optimizer, "after_capture", lambda: None), print)
    schedule = Schedule("constant", 1e-5, 0.0, 0, 10**6)
    return trainee, Recipe(Density(), schedule, 1, 1.0, False, 0, precision)


def peak_gib(device: str) -> float:
    """The most memory that tensors took on the GPU, or the process on a CPU."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def measure(job: dict[str, Any], parts: tuple[Any, Any], batch: int, stop_at: float) -> dict[str, Any]:
    """The whole step at one batch size: loader, noise, forward, backward, clip, optimizer, log."""
    from rich.console import Console

    from simpletuner.data.loader import Loader
    from simpletuner.data.sampler import Bucket, Drawing, Plan
    from simpletuner.data.types import Size
    from simpletuner.reporting.metrics import MetricsFile
    from simpletuner.reporting.progress import Reporter
    from simpletuner.training.fast_path import TEXT_MULTIPLE
    from simpletuner.training.hooks import Progress
    from simpletuner.training.loop import train

    trainee, recipe = parts
    store, refs, (height, width) = samples(job)
    bucket = Bucket("set", Size(width, height), tuple(range(len(refs))), repeats=batch)
    variant = VARIANTS[job["variant"]]
    plan, fast = Plan([bucket], Drawing(batch), 0), {"text_multiple": TEXT_MULTIPLE if variant.fast else 1}
    loader = Loader(refs, store, plan, 0, 0.0, {}, pinned=job["device"] == "cuda", **fast)
    reporter, clock, began = Reporter(Console(file=io.StringIO())), Clock(), time.perf_counter()
    total = job["warm_up"] + job["steps"]
    if job["device"] == "cuda":
        torch.cuda.reset_peak_memory_stats()
    metrics = MetricsFile(Path(job["cache"]).parent / f"metrics-{os.getpid()}-{batch}.jsonl")
    with reporter.bar("Training", total) as bar:
        stream = loader.stream(0, total)
        whole = variant.compiled and not variant.fast
        multiple = TOKENS[job["size"]] if variant.float32 else COMPILED_MULTIPLE if whole else 1
        batches = padded(stream, multiple)
        hooks = [Progress(bar, metrics, reporter), clock]
        train(trainee, recipe, batches, 0, total, hooks, lambda: time.time() > stop_at)
        stream.close()
    spans = [1000 * (b - a) for a, b in zip(clock.ends, clock.ends[1:], strict=False)]
    steady = spans[job["warm_up"] :]
    losses = [line["loss"] for line in metrics.read("step")]
    row: dict[str, Any] = {"variant": job["variant"], "batch": batch, "steps": len(steady)}
    if not steady:
        return {**row, "failed": f"no steady step within its time; {len(spans)} steps before"}
    return {
        **row,
        "ms": round(statistics.median(steady), 2),
        "min": round(min(steady), 2),
        "pictures_per_s": round(1000 * batch / statistics.median(steady), 2),
        "peak_gib": round(peak_gib(job["device"]), 2),
        "first_step_s": round(clock.ends[1] - began, 1),
        "loss": [round(losses[0], 4), round(losses[-1], 4)],
    }


def times(job: dict[str, Any]) -> None:
    """One line for each batch size; they share the time limit evenly."""
    torch.set_float32_matmul_precision("high")
    end, batches = time.time() + job["limit"], job["batches"]
    parts = trainee_of(job, VARIANTS[job["variant"]])
    for index, batch in enumerate(batches):
        now = time.time()
        if VARIANTS[job["variant"]].compiled:  # each batch size from scratch: its first step is then the cold start
            torch.compiler.reset()
        try:
            row = measure(job, parts, batch, now + (end - now) / (len(batches) - index))
        except torch.OutOfMemoryError:
            row = {"variant": job["variant"], "batch": batch, "failed": "out of memory"}
        parts[0].optimizer.zero_grad(set_to_none=True)
        if job["device"] == "cuda":
            torch.cuda.empty_cache()
        print(json.dumps(row), flush=True)


def profile(job: dict[str, Any]) -> None:
    """The kernels of the steady step, longest first."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    on_gpu = job["device"] == "cuda"
    if on_gpu:
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    parts, batch = trainee_of(job, VARIANTS[job["variant"]]), job["batches"][-1]
    measure({**job, "steps": 2}, parts, batch, time.time() + job["limit"])
    with torch.profiler.profile(activities=activities) as seen:
        measure({**job, "warm_up": 0, "steps": 4}, parts, batch, time.time() + job["limit"])
    order = "self_cuda_time_total" if on_gpu else "self_cpu_time_total"
    table = seen.key_averages().table(sort_by=order, row_limit=30, max_name_column_width=90)
    print(json.dumps({"profile": f"{job['variant']}, batch {batch}, 4 steps", "table": table}), flush=True)


WORK: dict[str, Callable[[dict[str, Any]], None]] = {"numerics": numerics, "times": times, "profile": profile}


def described() -> dict[str, Any]:
    """All variants, for the table."""
    return {name: asdict(variant) for name, variant in VARIANTS.items()}


if __name__ == "__main__":
    asked = json.loads(sys.argv[1])
    WORK[asked["work"]](asked)
