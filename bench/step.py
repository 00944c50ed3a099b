"""The whole training step of Sana, ours beside diffusers' on the same data: numerics first, then a table with ratios.

    python bench/step.py                          # a GPU: 1.6B, random weights, 1024 px, batches 1, 8 and 16; 10 minutes
    python bench/step.py --pocket                 # the pocket model on the CPU, a minute or two: anyone can try
    python bench/step.py --tiny --compile         # a rehearsal of the GPU's variants on the CPU; its figures mean nothing
    python bench/step.py --loader                 # a GPU, about 70 s: the step with its loader beside one resident batch
    python bench/step.py --start-up               # a GPU, about 100 s: the first step, with empty caches and with full ones
    python bench/step.py --no-numerics --variants ours-compiled ours-apart --profile ours-compiled --batch 1 8

A step is the program's own loop: batches from a packed cache (captions of 150 tokens in the mean, 75 to 225, padded to
the longest of the batch), noise, forward, backward, clip by the global norm, optimizer, progress and metrics. EMA is off.
Milliseconds are from the end of one step to the end of the next, so waiting for the loader counts. Each variant runs in
a process of its own; rows are printed as they come, and all figures lie beside in a JSON file. Ratios are of medians on a
GPU. A CPU is shared with other programs: there they are of the fastest steps, the variants take turns in several rounds,
and the last table has all rounds together, with the median of their ratios. "ours" is the program's transformer_forward plain, "fast" is its fast.

The original, SimpleTuner 4.10.1 from PyPI, took 512 ms at batch 1 and 708 ms at batch 8 on one H100 (optimi-adamw, bf16,
cached data); it is quoted, not run here.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import step_beside as beside
from step_variants import ROOT, TOKENS, VARIANTS

UNSTEADY = 1.3  # a median so many times the fastest step is that of a machine with other work
START_S = 30  # what a process may take beyond its limit: imports, weights, the last step
CHOSEN = {
    "1.6b": ["amp", "diffusers", "fast", "diffusers-compiled"],
    "tiny": ["amp", "diffusers", "ours"],
    "pocket": ["diffusers", "ours", "ours-products"],
}
SHAPES = {
    "1.6b": {"latents": [32, 32, 32], "text": 2304},
    "tiny": {"latents": [32, 8, 8], "text": 2304},
    "pocket": {"latents": [8, 16, 16], "text": 96},
}


def lines_of(
    job: dict[str, Any], limit: float, script: str = "step_one.py", environment: dict[str, str] | None = None
) -> Iterator[dict[str, Any]]:
    """What one process prints, line by line; it is ended when its time is up, and what went wrong is a line as well."""
    command = [sys.executable, str(Path(__file__).with_name(script)), json.dumps(job)]
    told_besides = {**os.environ, **(environment or {})}
    with tempfile.TemporaryFile("w+") as complaints:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=complaints, text=True, env=told_besides)
        late = threading.Event()

        def end() -> None:
            late.set()
            process.kill()

        timer = threading.Timer(limit, end)
        timer.start()
        assert process.stdout is not None
        try:
            for line in process.stdout:
                if line.startswith("{"):
                    yield json.loads(line)
            if process.wait():
                complaints.seek(0)
                told = [text for text in complaints.read().splitlines() if text.strip()] or ["no message"]
                yield {"failed": f"ended after {limit:g} s" if late.is_set() else told[-1][:300]}
        finally:
            timer.cancel()
            process.kill()
            process.wait()
            process.stdout.close()


def commit() -> str:
    """The commit measured, with a + where files differ from it; empty outside a repository."""
    asked = ["git", "-C", str(ROOT), "describe", "--always", "--dirty=+"]
    return subprocess.run(asked, capture_output=True, text=True, check=False).stdout.strip()


def device_name(device: str) -> str:
    import torch

    name = torch.cuda.get_device_name() if device == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    return f"{name}, torch {torch.__version__}"


def has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


class Report:
    """What was found: printed at once, and written to the JSON file after each line."""

    def __init__(self, path: Path, about: dict[str, Any]) -> None:
        self.path = path
        self.found: dict[str, Any] = {**about, "numerics": [], "rows": [], "profiles": []}
        path.parent.mkdir(parents=True, exist_ok=True)
        self.write()

    def add(self, kind: str, line: dict[str, Any]) -> None:
        self.found[kind].append(line)
        self.write()

    def write(self) -> None:
        """All that was found, as JSON."""
        self.path.write_text(json.dumps(self.found, indent=1) + "\n", encoding="utf-8")

    @property
    def compared(self) -> str:
        """The figure of which ratios are made: on a CPU other programs spoil a median, seldom the fastest step."""
        return "ms" if self.found["job"]["device"] == "cuda" else "min"

    def base(self, batch: int) -> float | None:
        """Milliseconds of diffusers eager in our loop, at this batch size; the row measured last: machines drift."""
        theirs = [
            r for r in self.found["rows"] if r["variant"] == "diffusers" and r.get("batch") == batch and "ms" in r
        ]
        return theirs[-1][self.compared] if theirs else None

    def together(self) -> list[dict[str, Any]]:
        """All rounds as one row for each variant and batch size; what never succeeded stays as it is."""
        groups: dict[tuple[str, int | None], list[dict[str, Any]]] = {}
        for row in self.found["rows"]:
            groups.setdefault((row["variant"], row.get("batch")), []).append(row)
        merged = []
        for (_, batch), rows in groups.items():
            theirs = groups.get(("diffusers", batch), [])
            good = [row for row in rows if "ms" in row]
            pairs = [(a, b) for a, b in zip(theirs, rows, strict=False) if "ms" in a and "ms" in b]  # of the same round
            ratios = [a[self.compared] / b[self.compared] for a, b in pairs]
            if not good:
                merged.append(rows[-1])
                continue
            ms = round(statistics.median(row["ms"] for row in good), 2)
            merged.append(
                {
                    **good[-1],
                    "ms": ms,
                    **({"speed": round(statistics.median(ratios), 3)} if ratios else {}),
                    "min": min(row["min"] for row in good),
                    "pictures_per_s": round(1000 * (batch or 0) / ms, 2),
                    "peak_gib": max(row["peak_gib"] for row in good),
                    "first_step_s": max(row["first_step_s"] for row in good),
                    "steps": sum(row["steps"] for row in good),
                }
            )
        return merged

    def row(self, line: dict[str, Any]) -> str:
        """One row of the table."""
        name = VARIANTS[line["variant"]].what
        if "failed" in line:
            return f"| {name} | {line.get('batch', '')} | {line['failed']} |"
        base = self.base(line["batch"])
        speed = line.get("speed") or (base / line[self.compared] if base else None)
        ratio = f"{speed:.2f}x" if speed else ""
        return (
            f"| {name} | {line['batch']} | {line['ms']:.1f} | {line['min']:.1f} | {ratio} | "
            f"{line['pictures_per_s']:.1f} | {line['peak_gib']:.1f} | {line['first_step_s']:.0f} | {line['steps']} |"
        )


HEAD = "| variant | batch | ms/step, median | min | speed, diffusers eager = 1 | pictures/s | peak GiB | first step s | steps |"
HEAD += "\n" + "|---" * 9 + "|"


def conclude(report: Report) -> None:
    """All rounds in one table, and a word about a machine that had other work."""
    rows = report.together()
    if len(rows) < len(report.found["rows"]):
        print(f"\nAll rounds together:\n{HEAD}")
        for line in rows:
            print(report.row(line), flush=True)
        report.found["together"] = rows
        report.write()
    apart = max((row["ms"] / row["min"] for row in rows if "ms" in row), default=1.0)
    if report.compared == "min" and apart > UNSTEADY:
        print(
            f"\nOther programs seem to have used this machine: a median is {apart:.1f} times the fastest step. The speed "
            "column goes by the fastest steps of each round; for better figures run it again on an idle machine, or with more --rounds."
        )


def check(report: Report, job: dict[str, Any], limit: float) -> bool:
    """Numerics of every variant; whether all are right."""
    print("Numerics: float32 against diffusers, and bf16's error against float32 beside diffusers' own", flush=True)
    right, seen = True, 0
    for line in lines_of({**job, "work": "numerics"}, limit):
        report.add("numerics", line)
        seen += "variant" in line
        if "failed" in line:
            print(f"  failed: {line['failed']}", flush=True)
            right = False
            continue
        right &= line["ok"]
        print(
            f"  {line['variant']:20s} float32: output {line['float32 output']:.1e}, gradients "
            f"{line['float32 all gradients']:.1e}, worst {line['float32 worst gradient']:.1e} ({line['of']}; diffusers' own, beside float64, "
            f"{line['own worst']:.1e}); bf16: gradients "
            f"{line['bf16 all gradients']:.1e} ({line['diffusers' + chr(39) + ' bf16']:.1e}), error over diffusers' "
            f"{line['bf16 ratio, mean']:.2f} in the mean, {line['bf16 ratio, worst tensor']:.1f} at worst  "
            f"{'ok' if line['ok'] else 'WRONG'}",
            flush=True,
        )
    expected = [n for n in job["variants"] if not VARIANTS[n].theirs]
    return right and seen == len(expected)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--pocket", action="store_true", help="The pocket model in float32, on the CPU.")
    size.add_argument("--tiny", action="store_true", help="A tiny random model in bf16, on the CPU.")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, help="Which; by default those of the size.")
    parser.add_argument("--compile", action="store_true", help="With --tiny: the compiled variants as well.")
    parser.add_argument("--batch", type=int, nargs="+", help="Batch sizes; 1 8 16 on a GPU.")
    parser.add_argument("--steps", type=int, help="Steady steps at most, in each round; 8 with --pocket, else 30.")
    parser.add_argument("--warm-up", type=int, default=5, help="Steps before these.")
    parser.add_argument(
        "--rounds", type=int, help="Repeat everything, in turn: for a machine that is shared; 3 with --pocket, else 1."
    )
    parser.add_argument(
        "--limit", type=float, default=130, help="Seconds of training for one variant, compiling included."
    )
    parser.add_argument("--budget", type=float, default=560, help="Seconds in all; no process runs beyond.")
    parser.add_argument("--optimizer", default="adamw_bf16", help="Of the bf16 variants.")
    parser.add_argument("--recompute", type=int, default=0, help="Recompute every n-th block in backward; 0 is off.")
    parser.add_argument("--text", type=int, help="Mean tokens of a caption.")
    parser.add_argument("--profile", nargs="*", choices=VARIANTS, default=[], help="Print the kernels of these.")
    parser.add_argument(
        "--loader", action="store_true", help="Only: the step with the loader beside one resident batch."
    )
    parser.add_argument("--start-up", action="store_true", help="Only: seconds to the first step's end, cold and warm.")
    parser.add_argument("--no-numerics", action="store_true")
    parser.add_argument("--json", type=Path, default=ROOT / "output" / "step.json", help="Where the figures go.")
    return parser.parse_args()


def job_of(chosen: argparse.Namespace, cache: Path) -> dict[str, Any]:
    """What every process is told."""
    size = "pocket" if chosen.pocket else "tiny" if chosen.tiny else "1.6b"
    batches = chosen.batch or ([1, 8, 16] if size == "1.6b" else [2, 16] if size == "pocket" else [1, 2])
    variants = chosen.variants or CHOSEN[size] + (
        ["fast", "ours-compiled", "diffusers-compiled"] if chosen.compile and size == "tiny" else []
    )
    return {
        "size": size,
        "device": "cuda" if size == "1.6b" else "cpu",
        "variants": variants,
        "batches": batches,
        "steps": chosen.steps or (8 if size == "pocket" else 30),
        "warm_up": chosen.warm_up,
        "limit": chosen.limit,
        "optimizer": chosen.optimizer,
        "recompute": chosen.recompute,
        "text": chosen.text or TOKENS[size] // 2,
        "shape": SHAPES[size],
        "pictures": max(32, 2 * max(batches)),
        "seeds": 3,
        "cache": str(cache),
    }


def run(chosen: argparse.Namespace, job: dict[str, Any], report: Report, end: float) -> bool:
    """Numerics, rows, profiles; nothing outlives ``end``. Whether the numerics are right."""
    right = chosen.no_numerics or check(report, job, min(job["limit"] + START_S, end - time.time()))
    print(HEAD, flush=True)
    rounds = chosen.rounds or (3 if chosen.pocket else 1)
    todo = [("times", name) for _ in range(rounds) for name in job["variants"]]
    for work, name in todo + [("profile", name) for name in chosen.profile]:
        left = end - time.time() - START_S
        if left < 15:
            line = {"variant": name, "failed": f"not run, --budget {chosen.budget:.0f} s is spent"}
            report.add("rows", line)
            print(report.row(line), flush=True)
            continue
        asked = {**job, "work": work, "variant": name, "limit": min(job["limit"], left)}
        for line in lines_of(asked, asked["limit"] + START_S):
            if "profile" in line:
                report.add("profiles", line)
                print(f"\n{line['profile']}\n{line['table']}", flush=True)
            else:
                line.setdefault("variant", name)
                report.add("rows", line)
                print(report.row(line), flush=True)
    conclude(report)
    return right


def main() -> int:
    """Command line."""
    chosen, end = arguments(), time.time()
    if not (chosen.pocket or chosen.tiny or has_gpu()):
        print("There is no NVIDIA GPU here. What to do: try --pocket, which runs on the CPU.")
        return 2
    end += chosen.budget
    with tempfile.TemporaryDirectory() as folder:
        job = job_of(chosen, Path(folder) / "cache")
        about = {"command": " ".join(sys.argv), "commit": commit(), "machine": device_name(job["device"]), "job": job}
        print(f"Sana {job['size']}, {about['machine']}, commit {about['commit']}", flush=True)
        report = Report(chosen.json, about)
        if chosen.loader or chosen.start_up:
            return beside.loader(job, report, end) if chosen.loader else beside.start_up(job, report, end)
        right = run(chosen, job, report, end)
    verdict = "not checked" if chosen.no_numerics else "right" if right else "WRONG"
    print(f"\nNumerics {verdict}; figures in {chosen.json}")
    return 0 if right else 1


if __name__ == "__main__":
    sys.exit(main())
