"""How fast several GPUs train beside one: the 1.6B configuration (random weights) at 1024 px through the real command.

    python bench/several_gpus.py                       # two GPUs, batch 8 and 1 on each; about four minutes
    python bench/several_gpus.py --processes 2 --batch 8
    python bench/several_gpus.py --tiny                # a rehearsal of two processes on a CPU: its figures mean nothing

Full rank, bf16, adamw_bf16, no recomputation. A model takes 10 GB and a run's export 4; they lie in memory where there is room.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from ladder import room
from needs_gpu import need_gpu
from real_run import measure, prepared
from train_1p6b import ROOT

HEAD = "| GPUs | batch on each | ms/step | pictures/s | beside one GPU |\n|---|---|---|---|---|"


def row(run: dict[str, Any], alone: dict[int, float]) -> str:
    """One line of the table; ``alone`` has pictures/s of one GPU by batch."""
    name = f"| {run['processes']} | {run['batch']} | "
    if "failed" in run:
        return f"{name} {run['failed']} | | |"
    speed, one = run["pictures/s"], alone.get(run["batch"])
    return f"{name}{1000 / run['it/s']:.1f} | {speed:.1f} | {f'{speed / one:.2f}x' if one else ''} |"


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--batch", type=int, nargs="+", default=[8, 1], help="Pictures on each GPU.")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--tiny", action="store_true", help="Rehearse on a CPU.")
    parser.add_argument("--json", type=Path, default=ROOT / "output" / "several_gpus.json")
    arguments = parser.parse_args()
    if not arguments.tiny:
        need_gpu("add --tiny, which rehearses with a tiny model on the CPU")
        if torch.cuda.device_count() < max(arguments.processes):
            raise SystemExit(f"there are {torch.cuda.device_count()} GPUs. What to do: name fewer --processes.")
    rows, alone = [], {}
    with tempfile.TemporaryDirectory(dir=room()) as folder:
        work = Path(folder)
        options = {**prepared(work, arguments.tiny), "model_type": "full", "optimizer": "adamw_bf16", "seed": 7}
        options |= {"validation_disable": True, "report_to": "none", "gradient_checkpointing": False}
        print(HEAD, flush=True)
        for batch in arguments.batch:
            for processes in sorted(arguments.processes):
                own = {"num_processes": processes, "train_batch_size": batch, "max_train_steps": arguments.steps}
                run = measure(work, f"{processes}x{batch}", {**options, **own})
                if processes > 1:  # memory was looked at in the process that starts the others
                    run = {key: value for key, value in run.items() if not key.startswith("GiB")}
                run |= {"processes": processes, "batch": batch}
                rows.append(run)
                if processes == 1 and "failed" not in run:
                    alone[batch] = run["pictures/s"]
                print(row(run, alone), flush=True)
                arguments.json.parent.mkdir(parents=True, exist_ok=True)
                arguments.json.write_text(json.dumps(rows, indent=1))
    print("\n".join(["", HEAD, *(row(run, alone) for run in rows)]))


if __name__ == "__main__":
    main()
