"""One way of making a training step, in a process of its own: its numerics, or its time at several batch sizes.

Started by bench/step.py; prints one JSON object a line, the last words of each measurement as soon as they are known.
"""

from __future__ import annotations

import io
import itertools
import json
import os
import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from step_numerics import numerics
from step_variants import TOKENS, VARIANTS, Variant, arrange, build

# A compiled block is compiled for one length of text: each further one would cost a compilation within the steps, and
# torch 2.13's compiler fails on attention with a mask of variable length (seen on a CPU, ours and diffusers' alike).
COMPILED_MULTIPLE = 256
SAID: list[str] = []  # by the graphs, since the last measurement
COMPILING: list[Callable[[], None]] = []  # waits for the kernels, which the program too compiles beside other work


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
                spread = job["text"] // 2 + round(job["text"] * (index * 7 % len(refs)) / max(len(refs) - 1, 1))
                length = job["text"] if job.get("even") else spread
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
    from random_sana import transformer_config

    from simpletuner.flow.schedules import Density
    from simpletuner.models.base import Facts
    from simpletuner.models.sana.family import Sana
    from simpletuner.models.sana.kernels import ahead
    from simpletuner.training import optimizers
    from simpletuner.training.learning_rate import Schedule
    from simpletuner.training.step_graph import StepGraphs
    from simpletuner.training.trainee import Recipe, Trainee

    precision, name = precision_of(job, variant)
    if variant.fast and job["device"] == "cuda":
        COMPILING.append(ahead.begin(transformer_config(job["size"]), torch.bfloat16, torch.device("cuda")))
    model = build(job["size"], device=job["device"]).to(precision.weights).requires_grad_(True)
    arrange(model, variant)
    if job["recompute"]:
        Sana().checkpoint_blocks(model, job["recompute"], random=False)
    parameters = list(model.parameters())
    optimizer = optimizers.build(name, parameters, 1e-5, {}, seed=0)
    facts = Facts(32, 32, model.config.patch_size, 3.0, 1024, model.config.in_channels)
    trainee = Trainee(Sana(), facts, model, optimizer, None, torch.device(job["device"]), parameters=parameters)
    if variant.graph and trainee.guards_itself and job["device"] == "cuda":
        trainee.graphs = StepGraphs(optimizer.after_capture, optimizer.zero_grad, SAID.append, optimizer.make_states)
    schedule = Schedule("constant", 1e-5, 0.0, 0, 10**6)
    return trainee, Recipe(Density(), schedule, 1, 1.0, False, 0, precision)


def peak_gib(device: str) -> float:
    """The most memory that torch held on the GPU, graphs included, or the process on a CPU."""
    if device == "cuda":
        return torch.cuda.max_memory_reserved() / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def measure(job: dict[str, Any], parts: tuple[Any, Any], batch: int, stop_at: float) -> dict[str, Any]:
    """The whole step at one batch size: loader, noise, forward, backward, clip, optimizer, log."""
    from rich.console import Console

    from simpletuner.data.loader import Loader
    from simpletuner.data.sampler import Bucket, Drawing, Plan
    from simpletuner.data.types import Size
    from simpletuner.reporting.metrics import MetricsFile
    from simpletuner.reporting.progress import Reporter
    from simpletuner.training.fast_path import text_multiple
    from simpletuner.training.hooks import Progress
    from simpletuner.training.loop import LATE, train
    from simpletuner.training.prefetch import on_device

    trainee, recipe = parts
    store, refs, (height, width) = samples(job)
    bucket = Bucket("set", Size(width, height), tuple(range(len(refs))), repeats=batch)
    variant = VARIANTS[job["variant"]]
    plan = Plan([bucket], Drawing(batch), 0)
    rounded = text_multiple("fast" if variant.fast else "diffusers", torch.device(job["device"]), batch)
    loader = Loader(refs, store, plan, 0, 0.0, {}, text_multiple=rounded, pinned=job["device"] == "cuda")
    reporter, clock, began = Reporter(Console(file=io.StringIO())), Clock(), time.perf_counter()
    late = LATE if job["device"] == "cuda" else 0  # figures of the last steps are read at once, so these look short
    total = job["warm_up"] + job["steps"] + late
    if job["device"] == "cuda":
        torch.cuda.reset_peak_memory_stats()
    metrics = MetricsFile(Path(job["cache"]).parent / f"metrics-{os.getpid()}-{batch}.jsonl")
    with reporter.bar("Training", total) as bar:
        while COMPILING:
            COMPILING.pop()()
        stream = loader.stream(0, total)
        whole = variant.compiled and not variant.fast
        multiple = TOKENS[job["size"]] if variant.float32 else COMPILED_MULTIPLE if whole else 1
        batches = on_device(padded(stream, multiple), trainee.device)
        if job.get("resident"):  # one batch that lies on the device
            batches = itertools.repeat(next(batches))
        hooks = [Progress(bar, metrics, reporter), clock]
        train(trainee, recipe, batches, 0, total, hooks, lambda: time.time() > stop_at)
        stream.close()
    spans = [1000 * (b - a) for a, b in zip(clock.ends, clock.ends[1:], strict=False)]
    steady = spans[job["warm_up"] : len(spans) - late]
    losses = [line["loss"] for line in metrics.read("step")]
    row: dict[str, Any] = {"variant": job["variant"], "batch": batch, "steps": len(steady)}
    if not steady:
        return {**row, "failed": f"no steady step within its time; {len(spans)} steps before"}
    return {
        **row,
        "ms": round(statistics.median(steady), 2),
        "min": round(min(steady), 2),
        "mean": round(statistics.mean(steady), 2),
        "pictures_per_s": round(1000 * batch / statistics.median(steady), 2),
        "peak_gib": round(peak_gib(job["device"]), 2),
        "first_step_s": round(clock.ends[1] - began, 1),
        "loss": [round(losses[0], 4), round(losses[-1], 4)],
        "said": [SAID.pop(0) for _ in range(len(SAID))],
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
        if parts[0].graphs:
            parts[0].graphs.release()
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
    table = seen.key_averages().table(sort_by=order, row_limit=60, max_name_column_width=90)
    print(json.dumps({"profile": f"{job['variant']}, batch {batch}, 4 steps", "table": table}), flush=True)


WORK: dict[str, Callable[[dict[str, Any]], None]] = {"numerics": numerics, "times": times, "profile": profile}


if __name__ == "__main__":
    asked = json.loads(sys.argv[1])
    WORK[asked["work"]](asked)
