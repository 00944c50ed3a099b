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
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))
from needs_gpu import need_gpu
from train_1p6b import ROOT, WARM_UP, write_pictures

LOKR = {"algo": "lokr", "multiplier": 1.0, "linear_dim": 10000, "linear_alpha": 1, "full_matrix": True, "factor": 16}
ADAPTERS: dict[str, dict[str, Any]] = {
    "lora": {"lora_rank": 16, "peft_lora_target_modules": ["all"]},
    "lokr": {
        "lora_type": "lycoris",
        "lycoris_config": {**LOKR, "apply_preset": {"target_module": ["Attention", "GLUMBConv"]}},
    },
}
# Runs the command in a process of its own, and writes down its peaks: of all, and from the first step on.
MEASURED = """
import json, sys, torch
from simpletuner.training import run
steps, peaks = run.run_steps, {}
def measured(*arguments):
    if torch.cuda.is_available():
        peaks["encoding"] = torch.cuda.max_memory_reserved()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    done = steps(*arguments)
    if torch.cuda.is_available():
        peaks["steps"] = torch.cuda.max_memory_reserved()
        peaks["allocated"] = torch.cuda.max_memory_allocated()
    return done
run.run_steps = measured
from simpletuner.cli.app import main
try:
    main()
finally:
    print("PEAKS " + json.dumps(peaks))
"""


def measure(work: Path, name: str, options: dict[str, Any]) -> dict[str, Any]:
    """One training run; what it took."""
    folder, began = work / name.replace(" ", "-"), time.monotonic()
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({**options, "output_dir": str(folder / "out")}))
    command = [sys.executable, "-c", MEASURED, "train", "--debug", "--config", str(folder / "config.json")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    said = []
    with (folder / "complaints").open("w+") as complaints:
        pipe = {"stdout": subprocess.PIPE, "stderr": complaints, "text": True}
        with subprocess.Popen(command, cwd=folder, env=environment, **pipe) as running:
            assert running.stdout is not None
            for line in running.stdout:  # shown as it comes: a run that is cut short tells how far it was
                said.append(line.rstrip())
                if line.startswith(("Quantised", "Adapter", "Training", "Encoding", "step", "Optimizer")):
                    print(f"  {time.monotonic() - began:5.0f} s  {line.rstrip()[:160]}", flush=True)
        if running.returncode:
            complaints.seek(0)
            told = [line for line in complaints.read().splitlines() if not line.startswith("frame #")]
            print("\n".join([*said[-5:], *told[-60:]]))
            raise SystemExit(running.returncode)
    peaks = json.loads(next(line for line in said if line.startswith("PEAKS "))[6:])
    metrics = [json.loads(line) for line in (folder / "out" / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in metrics if line["kind"] == "step"]
    seconds = statistics.median(line["seconds"] for line in steps[min(WARM_UP, len(steps) - 1) :])
    row = {
        "run": name,
        **{f"GiB {key}": round(value / 2**30, 2) for key, value in peaks.items()},
        "it/s": round(1 / seconds, 3),
        "file MB": round((folder / "out" / "pytorch_lora_weights.safetensors").stat().st_size / 1e6, 1),
        "first loss": round(steps[0]["loss"], 4),
        "last loss": round(steps[-1]["loss"], 4),
    }
    print(json.dumps(row), flush=True)
    return row


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
    sys.path.insert(0, str(ROOT / "tools"))
    from random_sana import write

    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        (work / "model").mkdir()
        write(work / "model", *(("tiny", "cpu") if arguments.tiny else ("1.6b", "cuda")))
        write_pictures(work / "pictures", 4 if arguments.tiny else 8)
        dataset = {
            "id": "pictures",
            "instance_data_dir": str(work / "pictures"),
            "caption_strategy": "textfile",
            "resolution": 64 if arguments.tiny else 1024,
            "resolution_type": "pixel",
            "cache_dir_vae": str(work / "cache" / "vae"),
        }
        texts = {
            "id": "texts",
            "dataset_type": "text_embeds",
            "default": True,
            "cache_dir": str(work / "cache" / "text"),
        }
        (work / "multidatabackend.json").write_text(json.dumps([dataset, texts]))
        options = {
            "model_type": "lora",
            "model_family": "sana",
            "pretrained_model_name_or_path": str(work / "model"),
            "data_backend_config": str(work / "multidatabackend.json"),
            "mixed_precision": "bf16",
            "quantize_via": "cpu",
            "gradient_checkpointing": True,
            "train_batch_size": 1,
            "vae_batch_size": 1,
            "optimizer": arguments.optimizer,
            "transformer_forward": arguments.forward,
            "learning_rate": 1e-4,
            "max_train_steps": 6 if arguments.tiny else arguments.steps,
            "checkpoint_step_interval": 0,
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


if __name__ == "__main__":
    main()
