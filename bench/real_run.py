"""One training run of the real command in a process of its own: what it took. Used by low_memory.py and ladder.py."""

from __future__ import annotations

import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import time
from datetime import datetime
from pathlib import Path
from typing import Any

from train_1p6b import ROOT, WARM_UP, write_pictures

SHOWN = ("Quantised", "Adapter", "Training", "Encoding", "step", "Optimizer", "Memory", "memory", "WARNING", "Done")
ESTIMATE = re.compile(r"Memory: about ([\d.]+) GiB .*?steps ([\d.]+)(?:.*graphs take up to ([\d.]+))?")
# Runs the command in a process of its own, and writes down its peaks: of all, and from the first step on.
MEASURED = """
import json, sys, torch
from simpletuner.training import run
steps, peaks = run.run_steps, {}
cap = float(sys.argv.pop())
if cap and torch.cuda.is_available():  # what is asked for beyond it fails, as on a smaller card
    torch.cuda.set_per_process_memory_fraction(min(1.0, cap * 2**30 / torch.cuda.get_device_properties(0).total_memory))
def measured(*arguments):
    if torch.cuda.is_available():
        peaks["encoding"] = torch.cuda.max_memory_reserved()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    done = steps(*arguments)
    if torch.cuda.is_available():
        peaks["steps"] = torch.cuda.max_memory_reserved()
        peaks["allocated"] = torch.cuda.max_memory_allocated()
        torch.cuda.reset_peak_memory_stats()
    return done
run.run_steps = measured
from simpletuner.cli.app import main
try:
    main()
finally:
    if torch.cuda.is_available():
        peaks["end"] = torch.cuda.max_memory_reserved()
    print("PEAKS " + json.dumps(peaks))
"""


def a_model(work: Path, size: str, gemma: bool = False) -> Path:
    """A random model of this size, made once; a second size shares the first one's other parts."""
    folder, first = work / f"model-{size}", next(work.glob("model-*"), None)
    if not folder.exists():  # by a process of its own: what it takes of the GPU is free afterwards
        tool = [sys.executable, str(ROOT / "tools" / "random_sana.py"), str(folder), "--size", size]
        tool += ["--device", "cpu" if size == "tiny" else "cuda", *(["--gemma"] if gemma else [])]
        subprocess.run([*tool, *(["--beside", str(first)] if first else [])], check=True)
    return folder


def datasets(work: Path, edge: int, tiny: bool) -> Path:
    """The pictures at one edge in pixels; a configuration of datasets, whose caches all runs share."""
    if not (work / "pictures").exists():
        write_pictures(work / "pictures", 4 if tiny else 8)
    dataset = {
        "id": "pictures",
        "instance_data_dir": str(work / "pictures"),
        "caption_strategy": "textfile",
        "resolution": edge,
        "resolution_type": "pixel",
        "repeats": 63,
        "cache_dir_vae": str(work / "cache" / f"vae-{edge}"),
    }
    texts = {"id": "texts", "dataset_type": "text_embeds", "default": True, "cache_dir": str(work / "cache" / "text")}
    file = work / f"datasets-{edge}.json"
    file.write_text(json.dumps([dataset, texts]))
    return file


def prepared(work: Path, tiny: bool, gemma: bool = False) -> dict[str, Any]:
    """A random model, pictures and datasets in an empty folder; the options that name them."""
    return {
        "pretrained_model_name_or_path": str(a_model(work, "tiny" if tiny else "1.6b", gemma)),
        "data_backend_config": str(datasets(work, 64 if tiny else 1024, tiny)),
        "model_family": "sana",
        "mixed_precision": "bf16",
        "vae_batch_size": 1,
        "checkpoint_step_interval": 0,
    }


def stages(events: Path) -> dict[str, float]:
    """Seconds of each phase of the run, by the run's own events."""
    spans: dict[str, list[float]] = {}
    lines = [json.loads(line) for line in events.read_text().splitlines()] if events.is_file() else []
    for line in lines:
        stage = line.get("stage") or line
        key, moment = stage.get("key"), line.get("timestamp") or line.get("time")
        if key and moment:
            at = datetime.fromisoformat(moment).timestamp() if isinstance(moment, str) else float(moment)
            spans.setdefault(key, []).append(at)
    return {key: round(max(at) - min(at), 1) for key, at in spans.items() if max(at) - min(at) >= 0.1}


def measure(work: Path, name: str, options: dict[str, Any], cap: float = 0.0) -> dict[str, Any]:
    """One training run; what it took. ``cap`` bounds torch's memory on the GPU, in GiB; 0 does not."""
    folder, began = work / name.replace(" ", "-"), time.monotonic()
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({**options, "output_dir": str(folder / "out")}))
    command = [sys.executable, "-c", MEASURED, "train", "--debug", "--config", str(folder / "config.json"), str(cap)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    said = []
    with (folder / "complaints").open("w+") as complaints:
        pipe = {"stdout": subprocess.PIPE, "stderr": complaints, "text": True}
        with subprocess.Popen(command, cwd=folder, env=environment, **pipe) as running:
            assert running.stdout is not None
            for line in running.stdout:  # shown as it comes: a run that is cut short tells how far it was
                said.append(line.rstrip())
                if line.startswith(SHOWN):
                    print(f"  {time.monotonic() - began:5.0f} s  {line.rstrip()[:160]}", flush=True)
        if running.returncode:
            complaints.seek(0)
            told = [line for line in complaints.read().splitlines() if not line.startswith("frame #")]
            print("\n".join([*said[-5:], *told[-60:]]))
            return {"run": name, "failed": next((line for line in reversed(told) if line.strip()), "no message")[:300]}
    peaks = json.loads(next(line for line in said if line.startswith("PEAKS "))[6:])
    metrics = [json.loads(line) for line in (folder / "out" / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in metrics if line["kind"] == "step"]
    seconds = statistics.median(line["seconds"] for line in steps[min(WARM_UP, len(steps) - 1) :])
    adapter = folder / "out" / "pytorch_lora_weights.safetensors"
    estimate = next((found for found in map(ESTIMATE.search, said) if found), None)
    row = {
        "run": name,
        **({"estimate": float(estimate[1]), "estimate graphs": float(estimate[3] or 0)} if estimate else {}),
        **{f"GiB {key}": round(value / 2**30, 2) for key, value in peaks.items()},
        "it/s": round(1 / seconds, 3),
        "pictures/s": round(steps[-1]["samples"] / seconds, 2),
        **({"file MB": round(adapter.stat().st_size / 1e6, 1)} if adapter.is_file() else {}),
        "first loss": round(steps[0]["loss"], 4),
        "last loss": round(steps[-1]["loss"], 4),
        "seconds": round(time.monotonic() - began, 1),
        "stages": stages(folder / "out" / "events.jsonl"),
    }
    shutil.rmtree(folder)  # a checkpoint and an export of 1.6B are 13 GB
    print(json.dumps(row), flush=True)
    return row
