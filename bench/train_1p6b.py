"""Trains the 1.6B configuration (random weights) at 1024 px with the real command; prints steps/s and peak memory.

    python bench/train_1p6b.py --batch 1 4 --steps 15            # needs a GPU; about 20 GiB of disk

Not the speed goal's benchmark: it shows that the real architecture trains through the whole program.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from needs_gpu import need_gpu
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
WARM_UP = 5


def write_pictures(folder: Path, count: int) -> None:
    """Random 1024 px pictures with caption files."""
    folder.mkdir(parents=True)
    generator = np.random.default_rng(0)
    for index in range(count):
        small = generator.integers(0, 255, (32, 32, 3), dtype=np.uint8)
        Image.fromarray(small).resize((1024, 1024)).save(folder / f"{index}.png")
        (folder / f"{index}.txt").write_text(f"a photo of thing number {index} on a hill at night\n")


def run(work: Path, batch: int, steps: int, extra: list[str]) -> dict[str, float]:
    """One training run; its steady seconds per step and peak GiB."""
    output = work / f"out{batch}{'-'.join(extra)}"
    command = [
        *(sys.executable, "-c", "from simpletuner.cli.app import main; main()", "train", "--debug"),
        *("--config", str(work / "config.json"), f"--output_dir={output}", f"--train_batch_size={batch}"),
        *(f"--max_train_steps={steps}", *extra),
    ]
    done = subprocess.run(command, text=True, capture_output=True, check=False, cwd=work)
    print(done.stdout[-1500:], done.stderr[-1500:] if done.returncode else "", flush=True)
    if done.returncode:
        raise SystemExit(done.returncode)
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    seconds = [line["seconds"] for line in lines if line["kind"] == "step"][WARM_UP:]
    losses = [line["loss"] for line in lines if line["kind"] == "step"]
    peak = next(line for line in done.stdout.splitlines() if "peak GPU memory" in line)
    shutil.rmtree(output)  # a checkpoint and an export of 1.6B are 13 GB
    row = {
        "batch": batch,
        "ms_per_step": 1000 * statistics.median(seconds),
        "pictures_per_s": batch / statistics.median(seconds),
        "peak_gib": float(peak.split()[-2]),
        "first_loss": losses[0],
        "last_loss": losses[-1],
    }
    print(json.dumps({key: round(value, 2) for key, value in row.items()}), flush=True)
    return row


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--steps", type=int, default=15)
    arguments = parser.parse_args()
    need_gpu("run it where there is one; bench/low_memory.py --tiny rehearses such a run on the CPU")
    sys.path.insert(0, str(ROOT / "tools"))
    from random_sana import write

    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        (work / "model").mkdir()
        write(work / "model", "1.6b", "cuda")
        write_pictures(work / "pictures", 16)
        config = {
            "model_type": "full",
            "model_family": "sana",
            "pretrained_model_name_or_path": str(work / "model"),
            "mixed_precision": "bf16",
            "gradient_checkpointing": True,
            "checkpoint_step_interval": 0,
            "validation_prompt": "a photo of a fox on a hill",
            "validation_on_startup": False,
        }
        dataset = {
            "id": "pictures",
            "instance_data_dir": str(work / "pictures"),
            "caption_strategy": "textfile",
            "resolution": 1024,
            "cache_dir_vae": str(work / "cache"),
        }
        (work / "config.json").write_text(json.dumps(config))
        (work / "multidatabackend.json").write_text(json.dumps([dataset]))
        rows = [run(work, batch, arguments.steps, []) for batch in arguments.batch]
        rows.append(run(work, 8, arguments.steps, ["--gradient_checkpointing=false"]))
        print(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
