"""Latents encoded ahead, on demand or never kept are the same latents, through the real command."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import Command
from safetensors.torch import load_file


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "pipeline" / "transformer" / "diffusion_pytorch_model.safetensors")


def shards(folder: Path) -> list[Path]:
    return sorted(folder.rglob("shard-*.safetensors"))


@pytest.mark.parametrize("mode", ["vae_cache_ondemand", "vae_cache_disable"])
def test_the_same_weights_come_out(
    simpletuner: Command, pocket_run: Callable[..., Path], tmp_path: Path, mode: str
) -> None:
    # One picture per VAE call everywhere: on a CPU the results are then equal bit for bit.
    options = {"vae_batch_size": 1, "max_train_steps": 6}
    config = pocket_run(**options, output_dir=str(tmp_path / "ahead"))
    simpletuner("train", "--config", config)
    latents = tmp_path / "cache" / "vae"
    kept = {key: tensor for shard in shards(latents) for key, tensor in load_file(shard).items()}
    for shard in shards(latents):
        shard.unlink()
    config = pocket_run(**options, **{mode: True}, output_dir=str(tmp_path / mode))
    simpletuner("train", "--config", config)
    first, second = weights(tmp_path / "ahead"), weights(tmp_path / mode)
    assert all(torch.equal(first[name], second[name]) for name in first)
    again = {key: tensor for shard in shards(latents) for key, tensor in load_file(shard).items()}
    if mode == "vae_cache_disable":
        assert not again
    else:
        assert again.keys() == kept.keys() and all(torch.equal(again[key], kept[key]) for key in kept)


def test_a_picture_that_cannot_be_decoded_is_stood_in_for(
    simpletuner: Command, pocket_run: Callable[..., Path], tmp_path: Path
) -> None:
    config = pocket_run(vae_cache_disable=True, max_train_steps=4)
    broken = tmp_path / "pictures" / "picture_2.png"
    broken.write_bytes(broken.read_bytes()[:-200])
    said = simpletuner("train", "--config", config).stdout
    assert said.count("picture_2.png cannot be used") == 1 and "Done: 4 steps" in said
    memory = tmp_path / "cache" / "vae" / "undecodable.json"
    (digest,) = json.loads(memory.read_text())["pictures"]
    memory.write_text(memory.read_text().replace("damaged", "dented"))
    again = simpletuner("train", "--config", config, "--output_dir", tmp_path / "second").stdout
    assert "the file is dented" in again, "what is remembered is not decoded again"
    assert len(digest) == 64
    first, second = weights(tmp_path / "out"), weights(tmp_path / "second")
    assert all(torch.equal(first[name], second[name]) for name in first), "the plan is the same as before"


def test_a_damaged_latent_is_encoded_anew(
    simpletuner: Command, pocket_run: Callable[..., Path], tmp_path: Path
) -> None:
    config = pocket_run(max_train_steps=4, vae_batch_size=1, output_dir=str(tmp_path / "whole"))
    simpletuner("train", "--config", config)
    (shard,) = shards(tmp_path / "cache" / "vae")
    data = bytearray(shard.read_bytes())
    data[-3] ^= 0x40  # one bit of the last sample's numbers
    shard.write_bytes(data)
    config = pocket_run(max_train_steps=4, vae_batch_size=1, output_dir=str(tmp_path / "healed"))
    said = simpletuner("train", "--config", config).stdout
    assert said.count("was damaged") == 1
    first, second = weights(tmp_path / "whole"), weights(tmp_path / "healed")
    assert all(torch.equal(first[name], second[name]) for name in first)
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    assert len(header) == 5  # four pictures and the checksums
