"""New crops in each epoch, through the real program: a killed run goes on to the very same weights."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from conftest import stopped_when
from safetensors.torch import load_file

from simpletuner.config.read import load
from simpletuner.training.run import train


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "pipeline" / "transformer" / "diffusion_pytorch_model.safetensors")


def test_a_killed_run_goes_on_to_the_same_weights(pocket_run: Callable[..., Path], tmp_path: Path) -> None:
    def configured(name: str, redraw: bool = True) -> Path:
        config = pocket_run(max_train_steps=6, checkpoint_step_interval=3, output_dir=str(tmp_path / name))
        path = tmp_path / "config" / "multidatabackend.json"
        entries = json.loads(path.read_text())
        entries[0] |= {"crop": True, "crop_style": "random", "crop_aspect": "square", "resolution": 32}
        entries[0] |= {"vae_cache_clear_each_epoch": redraw, "cache_dir_vae": str(tmp_path / f"latents {name}")}
        path.write_text(json.dumps(entries))
        return config

    train(load(str(configured("still", redraw=False))))
    train(load(str(configured("whole"))))
    config, out = configured("killed"), tmp_path / "killed"
    stopped_when((out / "checkpoint-3").is_dir, config, tmp_path)
    for later in (out / "checkpoint-6", out / "pipeline"):  # if the machine was faster than we were
        shutil.rmtree(later, ignore_errors=True)
    train(load(str(config)))
    still, whole, killed = (weights(tmp_path / name) for name in ("still", "whole", "killed"))
    assert all(torch.equal(whole[name], killed[name]) for name in whole)
    assert any(not torch.equal(whole[name], still[name]) for name in whole), "new crops were drawn"
