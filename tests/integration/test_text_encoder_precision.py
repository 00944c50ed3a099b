"""text_encoder_1_precision acts on the cache of captions, and never on what is exported."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from conftest import Command
from safetensors.torch import load_file


def captions(root: Path) -> dict[str, dict[str, torch.Tensor]]:
    """Text embeds by folder, which the fingerprint names."""
    return {path.parent.name: load_file(path) for path in (root / "cache" / "text").glob("*/shard-*.safetensors")}


def test_captions_are_encoded_by_a_quantised_text_encoder(
    simpletuner: Command, pocket_run: Callable[..., Path], pocket: Path, tmp_path: Path
) -> None:
    config = pocket_run(max_train_steps=1)
    simpletuner("cache", "build", "--config", config)
    before = captions(tmp_path)
    told = simpletuner("train", "--config", config, "--text_encoder_1_precision=nf4-bnb").stdout
    (line,) = [line for line in told.splitlines() if line.startswith("Quantised text encoder")]
    assert "nf4-bnb" in line and "% of its weights, on the CPU; its output moved by" in line
    after = captions(tmp_path)
    assert len(before) == 1 and len(after) == 2
    (exact,), (rounded,) = before.values(), [after[name] for name in after.keys() - before.keys()]
    assert exact.keys() == rounded.keys()
    moved = [(rounded[k].float() - v.float()).norm() / v.float().norm() for k, v in exact.items() if v.ndim == 2]
    assert moved and 1e-4 < max(moved) < 1
    original = load_file(pocket / "model" / "text_encoder" / "model.safetensors")
    exported = load_file(tmp_path / "out" / "pipeline" / "text_encoder" / "model.safetensors")
    assert exported.keys() == original.keys()
    assert all(torch.equal(exported[key].float(), tensor.float()) for key, tensor in original.items())
