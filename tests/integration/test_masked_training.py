"""Masked loss through the real command."""

import json
from collections.abc import Callable
from pathlib import Path

import torch
from conftest import Command
from PIL import Image
from safetensors.torch import load_file


def with_masks(folder: Path, masks: Path, **fields: object) -> None:
    entries = json.loads((folder / "multidatabackend.json").read_text())
    entries[0]["conditioning_data"] = "masks"
    mask = {"id": "masks", "dataset_type": "conditioning", "conditioning_type": "mask", "instance_data_dir": str(masks)}
    (folder / "multidatabackend.json").write_text(json.dumps([*entries, {**mask, **fields}]))


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "pipeline" / "transformer" / "diffusion_pytorch_model.safetensors")


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(first[name], second[name]) for name in first)


def test_white_masks_change_nothing_black_ones_stop_learning_and_half_ones_differ(
    simpletuner: Command, pocket_run: Callable[..., Path], tmp_path: Path, pocket: Path
) -> None:
    config = pocket_run(max_train_steps=2, optimizer_config="weight_decay=0", output_dir=str(tmp_path / "plain"))
    simpletuner("train", "--config", config)
    results = {}
    for name, left, right in (("white", 255, 255), ("black", 0, 0), ("half", 255, 0)):
        folder = tmp_path / name
        folder.mkdir()
        for number in range(4):
            mask = Image.new("L", (64, 64), left)
            mask.paste(right, (32, 0, 64, 64))
            mask.save(folder / f"picture_{number}.png")
        config = pocket_run(
            max_train_steps=2, optimizer_config="weight_decay=0", output_dir=str(tmp_path / f"out {name}")
        )
        with_masks(tmp_path / "config", folder, resolution=64, crop=False, cache_dir_vae="x")
        simpletuner("train", "--config", config)
        results[name] = weights(tmp_path / f"out {name}")
    plain = weights(tmp_path / "plain")
    base = load_file(pocket / "model" / "transformer" / "diffusion_pytorch_model.safetensors")
    assert same(results["white"], plain)
    assert same(results["black"], base), "without any white there is no gradient at all"
    assert not same(results["half"], plain) and not same(results["half"], base)


def test_a_picture_without_its_mask_is_skipped_by_name(
    simpletuner: Command, pocket_run: Callable[..., Path], tmp_path: Path
) -> None:
    (tmp_path / "masks").mkdir()
    for number, size in ((0, (64, 64)), (1, (64, 64)), (2, (20, 64))):
        Image.new("L", size, 255).save(tmp_path / "masks" / f"picture_{number}.png")
    config = pocket_run(max_train_steps=1)
    with_masks(tmp_path / "config", tmp_path / "masks", conditioning_type="segmentation")
    said = simpletuner("train", "--config", config, "--masked_loss_probability=0.5").stdout
    assert "4 pictures found, 2 used" in said
    assert "picture_3.png: it has no mask of the same name" in said and "picture_2.png: its mask" in said


def test_wrong_conditioning_is_told(simpletuner: Command, pocket_run: Callable[..., Path], tmp_path: Path) -> None:
    config = pocket_run()
    with_masks(tmp_path / "config", tmp_path / "nowhere", id="mask", conditioning_type="controlnet")
    said = simpletuner("train", "--config", config, check=False).stderr
    assert "3 problems" in said and "controlnet" in said and "no such folder" in said
    assert "no enabled entry with dataset_type conditioning has this id" in said
