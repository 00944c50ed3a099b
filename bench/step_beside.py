"""Measurements of bench/step.py that are no table of variants: the loader's cost, and the first step; and recompute's chart.

As a program it makes several measurements with one model in one process, so that nothing but what is asked changes.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

LOADER_ROUNDS = 3
ALLOWED = 0.02  # the loader's share of a step


def _fast(job: dict[str, Any]) -> str:
    """The program's own way on this device."""
    return "fast" if job["device"] == "cuda" else "ours"


def loader(job: dict[str, Any], report: Any, end: float) -> int:
    """Real loader against one resident batch, in turns; 0 if the loader costs at most ``ALLOWED``."""
    from step import lines_of

    wanted = [size for size in job["batches"] if size <= 8]
    asked = {**job, "work": "loader", "variant": _fast(job), "batches": wanted, "even": True}
    worst = 0.0
    print("| batch | ms/step with the loader | one resident batch | loader's share |\n|---|---|---|---|")
    for line in lines_of(asked, end - time.time(), "step_beside.py"):
        report.add("rows", line)
        if "failed" in line:
            print(line["failed"])
            return 1
        share = line["loader"] / line["resident"] - 1
        worst = max(worst, share)
        print(f"| {line['batch']} | {line['loader']:.2f} | {line['resident']:.2f} | {100 * share:+.1f} % |", flush=True)
    print(f"\nAt most {100 * ALLOWED:g} % is wanted; figures in {report.path}")
    return int(worst > ALLOWED)


def start_up(job: dict[str, Any], report: Any, end: float) -> int:
    """The first step in two processes that share folders of compiled code: empty for the first, full for the second."""
    from step import START_S, lines_of

    asked = {**job, "work": "times", "variant": "fast", "batches": [1], "steps": 5, "warm_up": 1}
    failed = 0
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        folders = {"TORCHINDUCTOR_CACHE_DIR": str(home / "inductor"), "TRITON_CACHE_DIR": str(home / "triton")}
        for name in ("cold", "warm"):
            began = time.time()
            for line in lines_of({**asked, "limit": end - began - START_S}, end - began, "step_one.py", folders):
                report.add("rows", {**line, "start": name})
                failed |= "failed" in line
                seconds = line.get("failed") or f"first step {line['first_step_s']} s"
                print(f"{name}: {seconds}; {time.time() - began:.0f} s with start and five steps", flush=True)
    print(f"figures in {report.path}")
    return int(failed)


def measure_loader(job: dict[str, Any]) -> None:
    """A line for each batch size: medians over rounds in turn."""
    from step_one import measure, trainee_of
    from step_variants import VARIANTS

    parts = trainee_of(job, VARIANTS[job["variant"]])
    for batch in job["batches"]:
        rounds: dict[str, list[float]] = {"loader": [], "resident": []}
        for _ in range(LOADER_ROUNDS):
            for name, found in rounds.items():
                row = measure({**job, "resident": name == "resident"}, parts, batch, time.time() + job["limit"])
                found.append(row["ms"])
        if parts[0].graphs:
            parts[0].graphs.release()
        medians = {name: round(statistics.median(found), 3) for name, found in rounds.items()}
        print(json.dumps({"batch": batch, **medians, "rounds": rounds}), flush=True)


def measure_recompute(job: dict[str, Any]) -> None:
    """A line for each interval and batch size, by one model."""
    import torch
    from step_one import measure, trainee_of
    from step_variants import VARIANTS

    parts = trainee_of(job, VARIANTS[job["variant"]])
    trainee = parts[0]
    for interval in job["intervals"]:
        if interval:
            trainee.family.checkpoint_blocks(trainee.transformer, interval, random=False)
        else:
            trainee.transformer.disable_gradient_checkpointing()
        for batch in job["batches"]:
            try:
                row = measure(job, parts, batch, time.time() + job["limit"])
            except torch.OutOfMemoryError:
                row = {"batch": batch, "failed": "out of memory"}
            trainee.optimizer.zero_grad(set_to_none=True)
            if trainee.graphs:
                trainee.graphs.release()
            if job["device"] == "cuda":
                torch.cuda.empty_cache()
            print(json.dumps({**row, "interval": interval}), flush=True)


if __name__ == "__main__":
    asked_for = json.loads(sys.argv[1])
    {"loader": measure_loader, "recompute": measure_recompute}[asked_for["work"]](asked_for)
