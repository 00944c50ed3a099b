"""Two GPUs: the same course as one for the same global batch, and how fast each is.

python -m pytest tests/gpu/test_two_gpus.py -s        # prints pictures/s of one and of two
"""

import json
import shutil
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ROOT, Command

pytestmark = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")

WARM_UP = 10


def steps(output: Path) -> list[dict[str, Any]]:
    lines = (json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines())
    return [line for line in lines if line["kind"] == "step"]


@pytest.mark.parametrize("kind", ["float32", "bf16, fast"])
def test_two_gpus_take_the_course_of_one(
    kind: str, pocket_run: Callable[..., Path], simpletuner: Command, tmp_path: Path
) -> None:
    options: dict[str, Any] = {"mixed_precision": "no", "disable_tf32": True, "optimizer": "torch-sgd"}
    if kind != "float32":
        options = {"mixed_precision": "bf16", "optimizer": "adamw_bf16", "learning_rate": 1e-4}
    for world in (1, 2):
        output = tmp_path / f"out{world}"
        more = {"num_processes": world, "train_batch_size": 4 // world, "output_dir": str(output), "max_train_steps": 8}
        config = pocket_run(**options, **more, use_ema=True, report_to="none")
        said = simpletuner("train", "--config", config, CUDA_VISIBLE_DEVICES="0,1").stdout
        assert "Done: 8 steps." in said and "WARNING" not in said
    one, two = (steps(tmp_path / f"out{world}") for world in (1, 2))
    assert [line["samples"] for line in two] == [4] * 8
    for alone, together in zip(one, two, strict=True):
        assert together["loss"] == pytest.approx(alone["loss"], rel=1e-5 if kind == "float32" else 2e-2)


def test_the_speed_of_one_and_of_two(tmp_path: Path, simpletuner: Command, pictures: Callable[..., Path]) -> None:
    """The 1.6B model with random weights at 1024 px, batch 8 on each GPU, bf16; needs 18 GiB of disk."""
    model = tmp_path / "model"
    tool = [sys.executable, str(ROOT / "tools" / "random_sana.py"), str(model), "--size", "1.6b", "--device", "cuda"]
    made = subprocess.run(tool, capture_output=True, text=True, check=False)
    assert made.returncode == 0, made.stderr
    folder = pictures("large", 32, (1024, 1024))
    dataset = {"id": "set", "instance_data_dir": str(folder), "resolution": 1024, "caption_strategy": "textfile"}
    dataset |= {"resolution_type": "pixel", "repeats": 20, "cache_dir_vae": str(tmp_path / "vae")}
    texts = {"id": "texts", "dataset_type": "text_embeds", "default": True, "cache_dir": str(tmp_path / "text")}
    config = {"model_type": "full", "model_family": "sana", "pretrained_model_name_or_path": str(model), "seed": 7}
    config |= {"mixed_precision": "bf16", "optimizer": "adamw_bf16", "validation_disable": True, "report_to": "none"}
    config |= {
        "train_batch_size": 8,
        "max_train_steps": 40,
        "checkpoint_step_interval": 0,
        "gradient_checkpointing": False,
    }
    (tmp_path / "multidatabackend.json").write_text(json.dumps([dataset, texts]), encoding="utf-8")
    speeds = {}
    for world in (1, 2):
        output = tmp_path / f"out{world}"
        whole = config | {"num_processes": world, "output_dir": str(output)}
        (tmp_path / "config.json").write_text(json.dumps(whole), encoding="utf-8")
        simpletuner("train", "--config", tmp_path / "config.json", CUDA_VISIBLE_DEVICES="0,1")
        steady = steps(output)[WARM_UP:]
        speeds[world] = steady[0]["samples"] / statistics.median(line["seconds"] for line in steady)
        shutil.rmtree(output)  # a checkpoint and an export are 13 GB
    shutil.rmtree(model)
    print(f"\none GPU {speeds[1]:.1f} pictures/s, two {speeds[2]:.1f}: {speeds[2] / speeds[1]:.2f} times as fast")
    assert speeds[2] > 1.5 * speeds[1]
