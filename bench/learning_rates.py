"""Which learning rate suits which method: held-out loss on the pocket model after a short run at each rate.

    python bench/learning_rates.py                       # all methods, about 10 minutes on 2 quiet cores
    python bench/learning_rates.py --methods lora lokr --steps 80

The embedded recipe with constant rate after warm-up, no EMA, so that the rate alone differs. The presets
(tools/write_presets.py) carry the ratio of adapters to full rank over to the real model.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import tempfile
from pathlib import Path

METHODS: dict[str, tuple[str, tuple[float, ...]]] = {
    "full": ("pocket", (1e-4, 2e-4, 4e-4, 8e-4)),
    "lora": ("pocket-lora", (5e-4, 1e-3, 2e-3, 4e-3, 8e-3)),
    "lokr": ("pocket-lokr", (5e-4, 1e-3, 2e-3, 4e-3, 8e-3)),
}


def held_out_loss(example: str, rate: float, steps: int, folder: Path) -> float:
    """Train with the real command; infinity if it diverged."""
    command = [sys.executable, "-c", "from simpletuner.cli.app import main; main()", "train", f"--example={example}"]
    command += [f"--output_dir={folder}", f"--learning_rate={rate}", f"--max_train_steps={steps}"]
    command += [
        "--optimizer=torch-adamw",
        "--lr_scheduler=constant_with_warmup",
        "--use_ema=false",
        "--validation_disable=true",
    ]
    command += ["--checkpoint_step_interval=0", "--resume_from_checkpoint=false"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        if "NaN" in done.stderr:
            return math.inf
        raise SystemExit(done.stdout + done.stderr)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return float(next(line["loss"] for line in reversed(lines) if line["kind"] == "eval" and line["step"] == steps))


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--steps", type=int, default=80)
    arguments = parser.parse_args()
    print(f"held-out loss after {arguments.steps} steps\n| method | rate | held-out loss |\n|---|---|---|", flush=True)
    for method in arguments.methods:
        example, rates = METHODS[method]
        for rate in rates:
            with tempfile.TemporaryDirectory() as folder:
                loss = held_out_loss(example, rate, arguments.steps, Path(folder))
            print(f"| {method} | {rate:g} | {loss:.3f} |", flush=True)


if __name__ == "__main__":
    main()
