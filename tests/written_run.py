"""A run's output folder as training leaves it, with figures made up: for the pages that only read files."""

from __future__ import annotations

import json
import os
from pathlib import Path

from PIL import Image

from simpletuner.reporting.metrics import MetricsFile

HOSTILE = """<img src=x onerror="window.hacked=1"><script>window.hacked=1</script>'"&</style></title>"""


def step_line(step: int, loss: float) -> dict[str, object]:
    return {
        "step": step,
        "loss": loss,
        "grad_norm": 1.0 + 1 / step,
        "learning_rate": 1e-4,
        "seconds": 0.5,
        "samples": 8,
        "skipped": None,
        "by_sigma": [loss / 2, None, loss, loss * 1.2, loss * 1.5],
    }


def draw(run: Path, name: str, colour: tuple[int, int, int], size: int = 64) -> Path:
    path = run / "validation_images" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (size, size), colour).save(path)
    return path


def picture_line(step: int, nickname: str, prompt: str, path: str) -> dict[str, object]:
    size = {"width": 64, "height": 64, "index": 0, "label": "", "seed": 0}
    return {"step": step, "nickname": nickname, "prompt": prompt, "path": path, **size}


def write_run(run: Path, steps: int = 30, running: bool = False, words: str = "a fox") -> Path:
    """Two prompts at three steps, held-out loss that turns, a log and a sheet; ``words`` stands wherever people write."""
    run.mkdir(parents=True, exist_ok=True)
    metrics = MetricsFile(run / "metrics.jsonl")
    for step in range(1, steps + 1):
        metrics.write("step", step_line(step, 1 / step**0.5))
    for step, loss in ((0, 1.5), (10, 0.8), (15, 0.9), (20, 0.95), (25, 1.0)):
        bands = {"by_sigma": [loss * s for s in (0.5, 0.7, 1, 1.2, 1.6)], "zero_predictor": 2.7, "samples": 4}
        alarm = {"low": 10, "held_out": (0.8, 1.0), "training": (0.5, 0.25), "evaluations": 3} if step == 25 else None
        metrics.write("eval", {"step": step, "loss": loss, **bands, "overfitting": alarm})
    best = {"checkpoint": "checkpoint-15", "step": 15, "held_out_loss": 0.9, "weights": "weights"}
    (run / "best.json").write_text(json.dumps(best), encoding="utf-8")
    for step in (0, 10, 20):
        for number, nickname in enumerate(("fox", "whale")):
            name = f"step_{step}_{nickname}_0_64x64.png"
            draw(run, name, (40 + 9 * step, 90, 200 - 90 * number))
            metrics.write("picture", picture_line(step, nickname, words, f"validation_images/{name}"))
    metrics.write("score", {"step": 20, "nickname": "fox", "label": "", "name": "clip", "value": 31.5})
    where = {"step": 20, "nickname": "fox", "label": "", "width": 64, "height": 64, "index": 0}
    near = {"name": "nearest_distance", "value": 0.01, "memorised": True, "nearest": words}
    metrics.write("score", where | near)
    event = {"type": "notification", "severity": "info", "timestamp": "2026-01-02T03:04:05.000+00:00", "message": words}
    (run / "events.jsonl").write_text(json.dumps(event) + "\n", encoding="utf-8")
    config = {"model_type": "full", "learning_rate": 1e-4, "max_train_steps": steps, "hub_token": "hf_abcdefghijkl"}
    (run / "config.resolved.json").write_text(json.dumps({**config, "validation_prompt": words}), encoding="utf-8")
    state = {"status": "running" if running else "finished", "pid": os.getpid(), "total_steps": steps}
    (run / "run.json").write_text(json.dumps(state), encoding="utf-8")
    thumbnail = "data:image/jpeg;base64,/9j/4AAQSkZJRg=="
    picture = {"name": words, "captions": [words], "size": "64x64", "bucket": "64x64", "thumbnail": thumbnail}
    entry = {"id": words, "role": "image", "found": 1, "used": 1, "buckets": [["64x64", 1]], "pictures": [picture]}
    (run / "dataset_sheet.json").write_text(json.dumps({"version": 1, "datasets": [entry]}), encoding="utf-8")
    return run
