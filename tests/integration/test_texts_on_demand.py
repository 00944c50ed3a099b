"""Captions encoded on demand or never kept, through the real program: the very same weights come out."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from simpletuner.config.read import load
from simpletuner.data.cache import TensorStore
from simpletuner.data.encode import text_key
from simpletuner.data.ondemand import TextsOnDemand
from simpletuner.errors import CacheError, ConfigError
from simpletuner.training.run import train


def test_the_same_weights_come_out(
    pocket_run: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def weights(name: str, **options: object) -> dict[str, torch.Tensor]:
        train(load(str(pocket_run(max_train_steps=3, output_dir=str(tmp_path / name), **options))))
        return load_file(tmp_path / name / "pipeline" / "transformer" / "diffusion_pytorch_model.safetensors")

    never = weights("never", text_cache_disable=True)
    assert "and not kept" in capsys.readouterr().out
    kept = tmp_path / "cache" / "text"
    assert not list(kept.rglob("shard-*"))
    first = weights("first", text_cache_ondemand=True)
    (shard,) = kept.rglob("shard-*.safetensors")
    written = shard.stat().st_mtime_ns
    second = weights("second", text_cache_ondemand=True)
    assert list(kept.rglob("shard-*.safetensors")) == [shard] and shard.stat().st_mtime_ns == written
    ahead = weights("ahead")
    for name, value in first.items():
        assert torch.equal(value, never[name]) and torch.equal(value, second[name])
        assert torch.allclose(value, ahead[name], atol=1e-4)


def test_only_what_was_announced_is_encoded_and_once(tmp_path: Path) -> None:
    asked: list[str] = []

    def encode(captions: list[str]) -> list[torch.Tensor]:
        asked.extend(captions)
        return [torch.full((len(c), 2), float(len(c)), dtype=torch.float64) for c in captions]

    texts = TextsOnDemand(TensorStore(tmp_path), encode, torch.float32, ["", "one", "two"], print)
    for caption in ("one", "", "one", "two", ""):
        assert texts.get(text_key(caption)).shape == (len(caption), 2)
    assert asked == ["one", "", "two"] and texts.get(text_key("one")).dtype == torch.float32
    with pytest.raises(CacheError, match="run again"):
        texts.get(text_key("three"))
    texts.close()
    again = TextsOnDemand(TensorStore(tmp_path), encode, torch.float32, ["one"], print)
    assert torch.equal(again.get(text_key("one")), torch.full((3, 2), 3.0)) and asked == ["one", "", "two"]


def test_of_a_damaged_shard_only_the_damaged_caption_is_encoded_anew(tmp_path: Path) -> None:
    asked: list[str] = []
    told: list[str] = []

    def encode(captions: list[str]) -> list[torch.Tensor]:
        asked.extend(captions)
        return [torch.full((len(c), 2), float(len(c))) for c in captions]

    def texts() -> TextsOnDemand:
        return TextsOnDemand(TensorStore(tmp_path), encode, torch.float32, ["one", "three"], told.append)

    first = texts()
    whole = {caption: first.get(text_key(caption)) for caption in ("one", "three")}
    first.close()
    (shard,) = tmp_path.glob("shard-*")
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    shard.write_bytes(data)
    asked.clear()
    again = texts()
    for _ in range(2):
        assert all(torch.equal(again.get(text_key(caption)), tensor) for caption, tensor in whole.items())
    assert len(asked) == 1 and len(told) == 1 and "1 caption was encoded anew" in told[0]
    again.close()
    assert TensorStore.problem_with(shard) is None and list(tmp_path.glob("shard-*")) == [shard]


def test_where_it_is_said(pocket_run: Callable[..., Path], tmp_path: Path) -> None:
    path = tmp_path / "config" / "multidatabackend.json"
    config = str(pocket_run(text_cache_disable=True))
    assert load(config).datasets.text_caching == "never"
    entries = json.loads(path.read_text())
    entries[1] |= {"text_cache_disable": False, "text_cache_ondemand": True}
    path.write_text(json.dumps(entries))
    assert load(config).datasets.text_caching == "ondemand"
    entries[1] |= {"text_cache_disable": True}
    path.write_text(json.dumps(entries))
    with pytest.raises(ConfigError, match="keeps nothing to fill on demand"):
        load(config)
    entries[0] |= {"text_cache_disable": True, "filter": "x", "composite_image_config": {"a": 1}}
    path.write_text(json.dumps(entries))
    with pytest.raises(ConfigError, match=r"(?s)dataset_type text_embeds.*(library|composites)"):
        load(config)
