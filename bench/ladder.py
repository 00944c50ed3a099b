"""Full rank on cards of 8 to 80 GiB: Sana 1.6B at 1024 px, random weights, through the real command under a cap.

    python bench/ladder.py                       # needs a GPU, 30 GiB of disk and two minutes a rung
    python bench/ladder.py --rungs 8 16 --steps 12
    python bench/ladder.py --tiny                # a rehearsal on a CPU with a tiny model: its figures mean nothing

Each rung is one run: caching, 20 steps, one validation picture, checkpoint and export, in a process whose torch may take no
more than the card's memory less the driver's context. A rung that needs more fails, as it would there. GiB are torch's
reserved memory in each phase.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

from needs_gpu import need_gpu
from real_run import measure, prepared

CONTEXT = 0.6  # GiB of the driver's, on this card and a smaller one alike
RECOMPUTED: dict[str, Any] = {"gradient_checkpointing": True}
RELEASED = {**RECOMPUTED, "optimizer_release_gradients": True, "max_grad_norm": 0}
# Each the fastest that is expected to fit: bf16 weights take 3.0 GiB, gradients 3.0, AdamW's bf16 states 6.0, in 8 bits 3.1.
RUNGS: dict[int, dict[str, Any]] = {
    8: {**RELEASED, "optimizer": "ao-adamw8bit", "train_batch_size": 1, "vae_enable_tiling": True},
    12: {**RELEASED, "optimizer": "adamw_bf16", "train_batch_size": 2},
    16: {**RECOMPUTED, "optimizer": "adamw_bf16", "train_batch_size": 4},
    24: {"gradient_checkpointing": False, "optimizer": "adamw_bf16", "train_batch_size": 4},
    80: {"gradient_checkpointing": False, "optimizer": "adamw_bf16", "train_batch_size": 16},
}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rungs", type=int, nargs="+", choices=RUNGS, default=list(RUNGS), help="GiB of the card.")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--tiny", action="store_true", help="Rehearse on a CPU: a tiny model, 64 px, few steps.")
    arguments = parser.parse_args()
    if not arguments.tiny:
        need_gpu("add --tiny, which rehearses with a tiny model on the CPU")
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        options = {
            **prepared(work, arguments.tiny),
            "model_type": "full",
            "max_train_steps": 6 if arguments.tiny else arguments.steps,
            "validation_prompt": "a photo of a fox on a hill",
            "validation_resolution": "64x64" if arguments.tiny else "1024x1024",
            "validation_on_startup": False,
            "validation_num_inference_steps": 2 if arguments.tiny else 20,
        }
        rows = [
            measure(work, f"{rung} GiB", {**options, **RUNGS[rung]}, 0 if arguments.tiny else rung - CONTEXT)
            for rung in arguments.rungs
        ]
    print(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
