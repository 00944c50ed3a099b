"""Time of the hand-written operations of a Sana block beside the ordinary ones; correctness first.

    python bench/operations.py                       # needs a GPU: 1.6B at 1024 px, B = 1, 8, 16; at most four minutes
    python bench/operations.py --batch 8 --seconds 90
    python bench/operations.py --batch 8 --plans     # only other shapes of the programs; about a minute
    python bench/operations.py --only gate norm add_norm gate_norm --batch 1 8   # norms, gates and residual sums
    python bench/operations.py --cpu                 # a tiny check of the plain twins, no timing

Milliseconds are device time: one pass over several sets of inputs (together larger than any cache) is captured as a CUDA
graph, and the median of its replays is divided by their number; where a graph cannot be captured, events around the
pass. GB/s counts the bytes that the launches forward and backward must move, so it is a rate only for "triton"; for
the others it is what they would need to be as good. "bytes alone" is that count at 3.0 TB/s.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from functools import partial

import residual_operations
import torch
from needs_gpu import need_gpu
from operation_plans import TRIALS
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
from operation_times import WORST, make, time_way, worst_error

from simpletuner.models.sana.kernels import runs_in_triton

BANDWIDTH, LARGER_THAN_CACHES = 3.0e12, 400e6


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
        right &= error < WORST
        rates = [2e-6 * values / took for values, took in zip(subject.moved, ms, strict=True)]
        verdict = "" if error < WORST else " WRONG"
        print(
            f"| {name} | {error:.1e}{verdict} | {ms[0]:.3f} | {rates[0]:.0f} | {ms[1]:.3f} | {rates[1]:.0f} |",
            flush=True,
        )
        torch.cuda.empty_cache()
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


def _residual(name: str, batch: int) -> Subject:
    return residual_subject(name, batch, HEIGHT * WIDTH, MODEL, compiled=True)


SUBJECTS: dict[str, Callable[[int], Subject]] = {
    "depthwise": lambda batch: depthwise_subject(batch, HEIGHT, WIDTH, CHANNELS, compiled=True),
    "linear": lambda batch: attention_subject(batch, HEIGHT * WIDTH, HEADS, HEAD, compiled=True),
    "cross": lambda batch: cross_subject(batch, HEIGHT * WIDTH, CROSS_HEADS, CROSS_HEAD, KEYS, compiled=True),
    **{name: partial(_residual, name) for name in residual_operations.OPERATIONS},
}


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
