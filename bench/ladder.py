"""Full rank on cards of 8 to 80 GiB: Sana at 1024 px and others, random weights, through the real command under a cap.

    python bench/ladder.py                        # a GPU; 1.6B on 8, 80, 24, 16, 12 GiB, then other models and sizes
    python bench/ladder.py --rungs 8 80 --gemma   # with a text encoder of the published size
    python bench/ladder.py --tiny                 # a rehearsal on a CPU with a tiny model: its figures mean nothing

Each rung is one run: caching, 20 steps, one validation picture, checkpoint and export, in a process whose torch may take no
more than the card's memory less the driver's context; one that needs more fails, as it would there. Measured is torch's
reserved memory, the largest of all phases, with that context; beside it is what the program said before it loaded anything.
The model is made once. Latents and captions are encoded once for each way of encoding; the text encoder comes in every run.
Rows are printed and written as they end.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from needs_gpu import need_gpu
from real_run import a_model, datasets, measure, prepared
from train_1p6b import ROOT

CONTEXT = 0.6  # GiB of the driver's, on this card and a smaller one alike
FAST_DISK, NEEDED_GIB = Path("/dev/shm"), 60  # where models are read and written without a disk, if there is room
RECOMPUTED: dict[str, Any] = {"gradient_checkpointing": True}
RELEASED = {**RECOMPUTED, "optimizer_release_gradients": True, "max_grad_norm": 0}
WHOLE: dict[str, Any] = {"gradient_checkpointing": False, "optimizer": "adamw_bf16"}


@dataclass(frozen=True, slots=True)
class Rung:
    """One card, model and size of picture.

    Attributes:
        cap: GiB of the card.
        options: Of the run.
        model: Its size.
        edge: Of the pictures, in pixels.
    """

    cap: int
    options: dict[str, Any] = field(default_factory=dict)
    model: str = "1.6b"
    edge: int = 1024


# Each the fastest that is expected to fit: bf16 weights take 3.0 GiB, gradients 3.0, AdamW's bf16 states 6.0, in 8 bits 3.1.
RUNGS: dict[str, Rung] = {
    "8": Rung(8, {**RELEASED, "optimizer": "ao-adamw8bit", "train_batch_size": 1, "vae_enable_tiling": True}),
    "80": Rung(80, {**WHOLE, "train_batch_size": 16}),
    "24": Rung(24, {**WHOLE, "train_batch_size": 4}),
    "16": Rung(16, {**RECOMPUTED, "optimizer": "adamw_bf16", "train_batch_size": 4}),
    "12": Rung(12, {**RELEASED, "optimizer": "adamw_bf16", "train_batch_size": 2, "vae_enable_tiling": True}),
    "0.6b": Rung(80, {**WHOLE, "train_batch_size": 16}, model="0.6b"),
    "512": Rung(80, {**WHOLE, "train_batch_size": 32}, edge=512),
    "2048": Rung(80, {**WHOLE, "train_batch_size": 4, "vae_enable_tiling": True}, edge=2048),
    "4.8b": Rung(80, {**RECOMPUTED, "optimizer": "adamw_bf16", "train_batch_size": 8}, model="4.8b"),
}
HEAD = "| rung | model | px | batch | ms/step | pictures/s | measured GiB | said GiB | ratio | seconds |"
HEAD += "\n" + "|---" * 10 + "|"


def options_of(work: Path, rung: Rung, common: dict[str, Any], tiny: bool) -> dict[str, Any]:
    """Everything that one run is told."""
    if tiny:
        return {**common, **rung.options}
    model, edge = a_model(work, rung.model), rung.edge
    data = {"data_backend_config": str(datasets(work, edge, tiny)), "validation_resolution": f"{edge}x{edge}"}
    return {**common, **rung.options, **data, "pretrained_model_name_or_path": str(model)}


def table_row(name: str, rung: Rung, row: dict[str, Any]) -> str:
    """One line of the table."""
    start = f"| {name} | {rung.model} | {rung.edge} | {rung.options['train_batch_size']} |"
    if "failed" in row:
        return f"{start} {row['failed']} |"
    said = row.get("estimate")
    figures = [
        1000 / row["it/s"],
        row["pictures/s"],
        row["peak GiB"],
        said or 0.0,
        row.get("ratio", 0.0),
        row["seconds"],
    ]
    return f"{start} {figures[0]:.0f} | {figures[1]:.1f} | {figures[2]:.2f} | {figures[3]:.1f} | {figures[4]:.2f} | {figures[5]:.0f} |"


def compared(row: dict[str, Any]) -> dict[str, Any]:
    """The row with its peak, context included, and how much of it was said before."""
    if "failed" in row:
        return row
    peak = max((row[key] for key in row if key in ("GiB encoding", "GiB steps", "GiB end")), default=0.0) + CONTEXT
    ratio = {"ratio": round(row["estimate"] / peak, 3)} if "estimate" in row else {}
    return {**row, "peak GiB": round(peak, 2), **ratio}


def arguments() -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rungs", nargs="+", choices=RUNGS, default=list(RUNGS), help="In this order.")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument(
        "--budget", type=float, default=0.0, help="Seconds in all; no run begins beyond. 0 has no limit."
    )
    parser.add_argument("--gemma", action="store_true", help="A text encoder of full size, 5 GiB, instead of 2 layers.")
    parser.add_argument("--json", type=Path, default=ROOT / "output" / "ladder.json", help="Where the figures go.")
    parser.add_argument("--tiny", action="store_true", help="Rehearse on a CPU: a tiny model, 64 px, few steps.")
    return parser.parse_args()


def room() -> str | None:
    """A folder in memory for the models, if there is enough of it."""
    roomy = FAST_DISK.is_dir() and shutil.disk_usage(FAST_DISK).free > NEEDED_GIB * 2**30
    return str(FAST_DISK) if roomy else None


def climb(chosen: argparse.Namespace, work: Path, end: float) -> list[dict[str, Any]]:
    """All rungs; what was measured."""
    common = {
        **prepared(work, chosen.tiny, chosen.gemma),
        "model_type": "full",
        "max_train_steps": 6 if chosen.tiny else chosen.steps,
        "validation_prompt": "a photo of a fox on a hill",
        "validation_resolution": "64x64" if chosen.tiny else "1024x1024",
        "validation_on_startup": False,
        "validation_num_inference_steps": 2 if chosen.tiny else 20,
    }
    rows: list[dict[str, Any]] = []
    chosen.json.parent.mkdir(parents=True, exist_ok=True)
    for name in chosen.rungs:
        rung, longest = RUNGS[name], max((row.get("seconds", 0.0) for row in rows), default=0.0)
        if end and time.monotonic() + longest > end:
            row: dict[str, Any] = {"run": name, "failed": f"not run: --budget {chosen.budget:g} s is spent"}
        else:
            options = options_of(work, rung, common, chosen.tiny)
            row = compared(measure(work, name, options, 0 if chosen.tiny else rung.cap - CONTEXT))
        rows.append({**row, "options": rung.options, "cap": rung.cap, "model": rung.model, "edge": rung.edge})
        print(f"{HEAD}\n{table_row(name, rung, row)}", flush=True)
        chosen.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    return rows


def main() -> None:
    """Command line."""
    chosen = arguments()
    began = time.monotonic()
    if not chosen.tiny:
        need_gpu("add --tiny, which rehearses with a tiny model on the CPU")
    with tempfile.TemporaryDirectory(dir=None if chosen.tiny else room()) as folder:
        rows = climb(chosen, Path(folder), began + chosen.budget if chosen.budget else 0.0)
    print(f"\n{HEAD}")
    for row in rows:
        print(table_row(row["run"], RUNGS[row["run"]], row))
    print(f"figures in {chosen.json}")
    if any("failed" in row for row in rows):
        sys.exit(1)


if __name__ == "__main__":
    main()
