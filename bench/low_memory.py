"""The guide's setting for the least memory, over the 1.6B configuration with random weights, through the real command.

    python bench/low_memory.py                   # needs a GPU; about 10 GiB of disk and two minutes a run
    python bench/low_memory.py --tiny            # the same on a CPU with a tiny model: a rehearsal, its figures mean nothing

nf4-bnb base, bnb-lion8bit-paged, batch 1, quantize_via cpu, gradient checkpointing, 1024 px, latents cached; LoRA and LoKr,
and the same over the bf16 base for comparison. Peak memory is that of the whole run (encoding of pictures and captions
included) and of the steps alone: torch's reserved memory, to which the driver adds its context of about half a GiB.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))
from needs_gpu import need_gpu
from real_run import measure, prepared

LOKR = {"algo": "lokr", "multiplier": 1.0, "linear_dim": 10000, "linear_alpha": 1, "full_matrix": True, "factor": 16}
ADAPTERS: dict[str, dict[str, Any]] = {
    "lora": {"lora_rank": 16, "peft_lora_target_modules": ["all"]},
    "lokr": {
        "lora_type": "lycoris",
        "lycoris_config": {**LOKR, "apply_preset": {"target_module": ["Attention", "GLUMBConv"]}},
    },
}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="Rehearse on a CPU: a tiny model, 64 px, few steps.")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--base", nargs="+", default=["nf4-bnb", "no_change"], help="Values of base_model_precision.")
    parser.add_argument("--optimizer", default="bnb-lion8bit-paged")
    parser.add_argument("--adapters", nargs="+", choices=ADAPTERS, default=list(ADAPTERS))
    parser.add_argument("--forward", default="auto", help="Of the transformer's blocks.")
    arguments = parser.parse_args()
    if not arguments.tiny:
        need_gpu("add --tiny, which rehearses with a tiny model on the CPU")
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        options = {
            **prepared(work, arguments.tiny),
            "model_type": "lora",
            "quantize_via": "cpu",
            "gradient_checkpointing": True,
            "train_batch_size": 1,
            "optimizer": arguments.optimizer,
            "transformer_forward": arguments.forward,
            "learning_rate": 1e-4,
            "max_train_steps": 6 if arguments.tiny else arguments.steps,
            "validation_disable": True,
        }
        rows = [
            measure(
                work,
                f"{adapter} over {base}",
                {**options, **more, "base_model_precision": base, "text_encoder_1_precision": base},
            )
            for base in arguments.base
            for adapter, more in ((name, ADAPTERS[name]) for name in arguments.adapters)
        ]
        print(json.dumps(rows, indent=1))
    if any("failed" in row for row in rows):
        sys.exit(1)


if __name__ == "__main__":
    main()
