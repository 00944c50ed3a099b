"""Two GPUs: the same course as one for the same global batch. How fast they are: bench/several_gpus.py."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from conftest import Command, has_recorded, started
from processes import until

pytestmark = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")


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
        assert ("one CUDA graph" in said) == (kind != "float32")
    one, two = (steps(tmp_path / f"out{world}") for world in (1, 2))
    assert [line["samples"] for line in two] == [4] * 8
    for alone, together in zip(one, two, strict=True):
        assert together["loss"] == pytest.approx(alone["loss"], rel=1e-5 if kind == "float32" else 2e-2)


WAITS: dict[str, dict[str, Any]] = {  # the host, in each step, for a figure or for weights
    "for losses": {},
    "for an average on the CPU": {"use_ema": True, "ema_device": "cpu"},
    "for how far samples walk": {"scheduled_sampling_max_step_offset": 3, "scheduled_sampling_probability": 0.5},
}


@pytest.mark.parametrize("waits", WAITS)
def test_a_process_that_dies_ends_the_other_though_its_gpu_waits(
    waits: str, pocket_run: Callable[..., Path], tmp_path: Path
) -> None:
    options = {"mixed_precision": "bf16", "optimizer": "adamw_bf16", "num_processes": 2, "report_to": "none"}
    config, output = pocket_run(**options, **WAITS[waits], max_train_steps=1_000_000), tmp_path / "out"
    with started("train", "--config", config, cwd=tmp_path, CUDA_VISIBLE_DEVICES="0,1") as process:
        until(lambda: has_recorded(output, 50), process)  # by graphs
        children = psutil.Process(process.pid).children()
        (one,) = [child for child in children if child.environ().get("RANK") == "1"]
        one.kill()
        began = time.monotonic()
        said, _ = process.communicate(timeout=90)
    assert time.monotonic() - began < 25, "torchrun ends by force after 30 s"
    assert process.returncode == 1 and "process 1 of 2" in said, said
