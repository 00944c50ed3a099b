"""Damaged caches through the real program: the very weights of an undisturbed run come out, and the caches are whole."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import has_recorded, started
from PIL import Image
from processes import until
from safetensors.torch import load_file

from simpletuner.config.read import load
from simpletuner.data.shards import read_header
from simpletuner.reporting.progress import Reporter
from simpletuner.training import caching
from simpletuner.training.run import train


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "pipeline" / "transformer" / "diffusion_pytorch_model.safetensors")


def same(first: Path, second: Path) -> bool:
    one, other = weights(first), weights(second)
    return all(torch.equal(one[name], other[name]) for name in one)


def shards(folder: Path) -> list[Path]:
    return sorted(folder.rglob("shard-*.safetensors"))


def flip_all(shard: Path) -> None:
    """One bit in the middle of each of its tensors."""
    entries = read_header(shard)
    assert entries
    with open(shard, "r+b") as file:
        for entry in entries.values():
            file.seek(entry.offset + entry.length // 2)
            (byte,) = file.read(1)
            file.seek(-1, os.SEEK_CUR)
            file.write(bytes([byte ^ 16]))


def clean(config: Path, files: list[Path], reporter: Reporter) -> bool:
    """`simpletuner cache verify` finds nothing, and no other shards than these."""
    homes = caching.homes(load(str(config)), reporter)
    return caching.verify(homes, reporter) and sorted(s for home in homes for s in shards(home.folder)) == sorted(files)


def disturbed(config: Path, output: Path, damage: Callable[[], None]) -> str:
    """Train with the real command; after a few steps it is held, the caches are damaged, and it goes on."""
    with started("train", "--config", config, "--output_dir", output, cwd=config.parent) as run:
        until(lambda: has_recorded(output, 2), run)
        run.send_signal(signal.SIGSTOP)
        damage()
        run.send_signal(signal.SIGCONT)
        said, _ = run.communicate(timeout=120)
    assert run.returncode == 0, said
    return said


def test_flipped_and_cut_shards_change_nothing(
    pocket_run: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # One picture per VAE call: on a CPU latents are then equal bit for bit; text embeds are anyway.
    config = pocket_run(max_train_steps=30, vae_batch_size=1, caption_dropout_probability=0.3)
    train(load(str(config)))
    (text,), (latents,) = shards(tmp_path / "cache" / "text"), shards(tmp_path / "cache" / "vae")

    flip_all(text)
    flip_all(latents)
    capsys.readouterr()
    train(load(str(config), overrides={"output_dir": str(tmp_path / "flipped")}))
    said = capsys.readouterr().out
    assert said.count("was damaged") == 2 and "5 captions were encoded anew" in said
    assert same(tmp_path / "out", tmp_path / "flipped")
    now = shards(tmp_path / "cache" / "vae")
    assert clean(config, [text, *now], Reporter())

    os.truncate(text, text.stat().st_size - 40)
    os.truncate(now[0], 30)

    def damage() -> None:
        flip_all(text)
        for shard in shards(tmp_path / "cache" / "vae"):
            os.truncate(shard, shard.stat().st_size - 400)

    said = disturbed(config, tmp_path / "middle", damage)
    assert f"{text} was damaged and is encoded anew" in said and f"{now[0]} was damaged and is encoded anew" in said
    assert "5 captions were encoded anew" in said and said.count("what it has lost is encoded anew") >= 1
    assert same(tmp_path / "out", tmp_path / "middle")
    assert clean(config, [text, *shards(tmp_path / "cache" / "vae")], Reporter())


def test_a_text_encoder_that_was_let_go_comes_back_as_it_was(
    pocket_run: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Quantised, it is dropped before training; and held-out captions are healed as well."""
    config = pocket_run(max_train_steps=2, text_encoder_1_precision="nf4-bnb", eval_steps_interval=2)
    entries = tmp_path / "config" / "multidatabackend.json"
    pictures, texts = json.loads(entries.read_text())
    entries.write_text(json.dumps([pictures, {**pictures, "id": "held-out", "dataset_type": "eval"}, texts]))
    train(load(str(config)))
    (text,) = shards(tmp_path / "cache" / "text")
    good = text.read_bytes()
    flip_all(text)
    capsys.readouterr()
    train(load(str(config), overrides={"output_dir": str(tmp_path / "again")}))
    assert "5 captions were encoded anew" in capsys.readouterr().out
    assert text.read_bytes() == good and same(tmp_path / "out", tmp_path / "again")
    losses = [
        [line for line in map(json.loads, (out / "metrics.jsonl").read_text().splitlines()) if line["kind"] == "eval"]
        for out in (tmp_path / "out", tmp_path / "again")
    ]
    assert losses[0][0]["loss"] == losses[1][0]["loss"]


def test_masks_are_healed_and_a_broken_one_is_read_once(
    pocket_run: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = pocket_run(max_train_steps=3, train_batch_size=1)
    folder = tmp_path / "masks"
    folder.mkdir()
    for number in range(4):
        Image.linear_gradient("L").resize((64, 64)).save(folder / f"picture_{number}.png")
    broken = folder / "picture_2.png"
    whole = broken.read_bytes()
    broken.write_bytes(whole[: len(whole) // 2])
    entries = tmp_path / "config" / "multidatabackend.json"
    pictures, texts = json.loads(entries.read_text())
    masks = {"id": "masks", "dataset_type": "conditioning", "conditioning_type": "mask"}
    masks["instance_data_dir"] = str(folder)
    entries.write_text(json.dumps([{**pictures, "conditioning_data": "masks"}, masks, texts]))

    def said(name: str) -> str:
        train(load(str(config), overrides={"output_dir": str(tmp_path / name)}))
        return capsys.readouterr().out

    first = said("first")
    assert "4 pictures found, 3 used" in first and "picture_2.png: its mask cannot be used" in first
    memory = tmp_path / "cache" / "vae" / "masks" / "undecodable.json"
    memory.write_text(memory.read_text().replace("damaged", "dented"))
    (shard,) = shards(tmp_path / "cache" / "vae" / "masks")
    good = shard.read_bytes()
    flip_all(shard)
    again = said("again")
    assert "4 pictures found, 3 used" in again and "4 used" not in again
    assert "its mask cannot be used" in again and "dented" in again
    assert again.count("mask was read anew") == 1 and shard.read_bytes() == good
    assert same(tmp_path / "first", tmp_path / "again")
    broken.write_bytes(whole)
    assert "4 pictures found, 4 used" in said("mended")
