"""The VAE in tiles: as good as whole, nowhere worse along the seams, and much nearer to it than diffusers' own tiling."""

from __future__ import annotations

import copy
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderDC
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from simpletuner.models.sana.tiling import MARGIN, OVERLAP, TILE, by_tiles, decode_only, enable, fade, starts

STRIDE = 8  # of the pocket's VAE: its tiles are 128 pixels


@pytest.fixture(scope="module")
def vae(pocket: Path) -> AutoencoderDC:
    return AutoencoderDC.from_pretrained(pocket / "model" / "vae").eval().requires_grad_(False)


def smooth(width: int, height: int) -> torch.Tensor:
    y, x = np.mgrid[0:height, 0:width]
    waves = np.stack([np.sin(x / 37), np.cos(y / 29), np.sin((x + y) / 53)])
    return torch.tensor(0.7 * waves, dtype=torch.float32)[None]


def real(pocket: Path, width: int, height: int) -> torch.Tensor:
    files = sorted((pocket / "blueprint").rglob("*.png"))
    whole = Image.new("RGB", (width, height))
    spots = [(x, y) for y in range(0, height, 128) for x in range(0, width, 128)]
    for spot, file in zip(spots, files, strict=False):
        whole.paste(Image.open(file).convert("RGB"), spot)
    return torch.tensor(np.asarray(whole)).permute(2, 0, 1)[None].float() / 127.5 - 1


def seams(width: int, height: int) -> torch.Tensor:
    """[H, W]: within two cells of where a tile begins or ends."""

    def side(length: int) -> torch.Tensor:
        cells = length // STRIDE
        edges = {e for start in starts(cells) for e in (start, start + TILE)} - {0, cells}
        position = torch.arange(length)
        near = [(position - edge * STRIDE).abs() < 2 * STRIDE for edge in edges if edge < cells]
        return torch.stack(near).any(0) if near else torch.zeros(length, dtype=torch.bool)

    return side(height)[:, None] | side(width)


@pytest.mark.parametrize("kind", ["smooth", "real"])
@pytest.mark.parametrize("size", [(256, 256), (320, 224), (136, 96)])
def test_no_seams(vae: AutoencoderDC, pocket: Path, kind: str, size: tuple[int, int]) -> None:
    pixels = smooth(*size) if kind == "smooth" else real(pocket, *size)
    tiled = copy.deepcopy(vae)
    enable(tiled, tiling=True, slicing=False)
    latents, whole = tiled.encode(pixels).latent, vae.encode(pixels).latent
    assert 0 < (latents - whole).norm() / whole.norm() < 2e-3
    error = (tiled.decode(latents).sample - pixels).square().mean((0, 1))
    without = (vae.decode(whole).sample - pixels).square().mean((0, 1))
    along = seams(*size)
    assert error.mean() < 1.05 * without.mean()
    # As good along the seams, compared with the same places untiled, as elsewhere.
    assert error[along].mean() / without[along].mean() < 1.1 * error[~along].mean() / without[~along].mean()


def test_nearer_than_diffusers_own(vae: AutoencoderDC) -> None:
    """Why tiling is not left to diffusers; if this fails it has become good, and ours may go."""
    pixels, theirs, ours = smooth(256, 256), copy.deepcopy(vae), copy.deepcopy(vae)
    theirs.enable_tiling(128, 128, 112, 112)
    enable(ours, tiling=True, slicing=False)
    whole = vae.encode(pixels).latent
    assert (theirs.encode(pixels).latent - whole).norm() > 20 * (ours.encode(pixels).latent - whole).norm()


def test_one_tile_is_the_whole(vae: AutoencoderDC) -> None:
    tiled, pixels = copy.deepcopy(vae), smooth(128, 96)
    enable(tiled, tiling=True, slicing=True)
    assert torch.equal(tiled.encode(pixels).latent, vae.encode(pixels).latent)
    assert tiled.config == vae.config and tiled.state_dict().keys() == vae.state_dict().keys()


def test_slicing_is_one_picture_at_a_time(vae: AutoencoderDC) -> None:
    sliced, pixels = copy.deepcopy(vae), torch.cat([smooth(64, 96), -smooth(64, 96), smooth(64, 96).flip(1)])
    enable(sliced, tiling=False, slicing=True)
    latents = sliced.encode(pixels).latent
    assert torch.equal(latents, torch.cat([vae.encode(p[None]).latent for p in pixels]))
    assert torch.equal(sliced.decode(latents).sample, torch.cat([vae.decode(z[None]).sample for z in latents]))


@settings(max_examples=60)
@given(st.integers(1, 200))
def test_tiles_cover_evenly(length: int) -> None:
    begun = starts(length)
    tile = min(TILE, length)
    assert begun[0] == 0 and begun[-1] + tile == length
    assert all(a + tile - b >= OVERLAP for a, b in pairwise(begun))
    total = torch.zeros(length)
    for start in begun:
        total[start : start + tile] += fade(start, tile, length, 1)
    assert total.min() > 0.05  # nowhere do only the cells near a tile's edge count


@settings(max_examples=20)
@given(st.integers(1, 40), st.integers(1, 40))
def test_work_on_single_cells_is_unchanged_by_tiles(height: int, width: int) -> None:
    x = torch.randn(1, 2, height, width, generator=torch.Generator().manual_seed(height * 100 + width))
    made = by_tiles(lambda piece: piece.repeat_interleave(2, -1).repeat_interleave(2, -2), x, (height, width))
    torch.testing.assert_close(made, x.repeat_interleave(2, -1).repeat_interleave(2, -2))


def test_a_tiles_edge_counts_where_the_picture_ends_and_nothing_inside() -> None:
    first, last = fade(0, TILE, 40, 1), fade(40 - TILE, TILE, 40, 1)
    assert first[:2].min() > 0.7 and first[-MARGIN:].max() < 1e-5
    assert torch.equal(first.flip(0), last)


def test_decoding_alone_in_tiles_leaves_the_encoder_as_it_was(vae: AutoencoderDC, pocket: Path) -> None:
    short, tiled = copy.deepcopy(vae), copy.deepcopy(vae)
    enable(tiled, tiling=True, slicing=False)
    assert decode_only(short) and not decode_only(short) and not decode_only(tiled)
    pixels = real(pocket, 256, 192)
    with torch.no_grad():
        latents = vae.encode(pixels).latent
        assert torch.equal(short.encode(pixels).latent, latents)
        assert torch.equal(short.decode(latents).sample, tiled.decode(latents).sample)
        assert not torch.equal(short.decode(latents).sample, vae.decode(latents).sample)
