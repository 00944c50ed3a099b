"""vae_enable_tiling acts on the cache, and tiled latents are kept apart from whole ones."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from conftest import Command
from safetensors.torch import load_file


def test_tiled_latents_are_other_latents(
    simpletuner: Command, pocket_run: Callable[..., Path], pictures: Callable[..., Path], tmp_path: Path
) -> None:
    config = pocket_run(vae_enable_tiling=True, vae_enable_slicing=True)
    pictures(size=(192, 192), count=2)
    entries = json.loads((config.parent / "multidatabackend.json").read_text())
    entries[0]["resolution"] = 192
    (config.parent / "multidatabackend.json").write_text(json.dumps(entries))
    told = simpletuner("cache", "build", "--config", config).stdout
    assert "pictures above 128 px are encoded in overlapping tiles" in told
    tiled = {path.parent.name: load_file(path) for path in (tmp_path / "cache" / "vae").glob("*/shard-*.safetensors")}
    simpletuner("cache", "build", "--config", config, "--vae_enable_tiling=false")
    both = {path.parent.name: load_file(path) for path in (tmp_path / "cache" / "vae").glob("*/shard-*.safetensors")}
    assert len(tiled) == 1 and len(both) == 2
    (ours,), (whole,) = tiled.values(), (both[name] for name in both.keys() - tiled.keys())
    assert [latents.shape[-2:] for latents in ours.values()] == [(24, 24)] * 4, "192 px, at 8 a latent cell"
    assert all(0 < (ours[key] - whole[key]).norm() / whole[key].norm() < 0.01 for key in ours)
