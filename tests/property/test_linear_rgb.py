"""The linear map from latents to colours: exact where there is one, sober where too little was seen."""

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from simpletuner.data.linear_rgb import FILE, Gathered, Moments
from simpletuner.models.linear_preview import LinearDecoder


def planted(channels: int, seed: int, spread: float = 1.0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """A map [C + 1, 3], latents [2, C, 9, 8] and the pixels [2, 3, 36, 32] that it makes of them."""
    generator = torch.Generator().manual_seed(seed)
    wanted = torch.randn(channels + 1, 3, generator=generator) * 0.1
    latents = torch.randn(2, channels, 9, 8, generator=generator) * spread
    colours = torch.einsum("bchw,cd->bdhw", latents, wanted[:-1]) + wanted[-1][:, None, None]
    return wanted, latents, torch.nn.functional.interpolate(colours, scale_factor=4)


@settings(max_examples=25)
@given(st.integers(1, 32), st.integers(0, 10_000), st.sampled_from([0.01, 1.0, 30.0]))
def test_a_planted_map_is_found(channels: int, seed: int, spread: float) -> None:
    wanted, latents, pixels = planted(channels, seed, spread)
    moments = Moments(channels)
    for latent, pixel in zip(latents, pixels, strict=True):
        moments.add(latent[None], pixel[None])
    assert moments.cells == 2 * 72
    assert torch.allclose(moments.solve(), wanted, atol=1e-4, rtol=1e-3)


def test_of_channels_that_say_the_same_none_gets_everything_and_colours_are_right() -> None:
    wanted, latents, pixels = planted(4, 1)
    twice = torch.cat([latents, latents, torch.zeros_like(latents)], dim=1)  # rank 5 of 13
    moments = Moments(12)
    moments.add(twice, pixels)
    found = moments.solve()
    assert torch.allclose(found[:4], wanted[:4] / 2, atol=1e-4) and torch.allclose(
        found[4:8], wanted[:4] / 2, atol=1e-4
    )
    assert found[8:12].abs().max() < 1e-6 and torch.allclose(found[-1], wanted[-1], atol=1e-4)


def test_fewer_cells_than_unknowns_give_the_shortest_map_that_fits() -> None:
    generator = torch.Generator().manual_seed(2)
    latents = torch.randn(1, 32, 1, 3, generator=generator)
    pixels = torch.rand(1, 3, 32, 96, generator=generator) * 2 - 1
    moments = Moments(32)
    moments.add(latents, pixels)
    found = moments.solve()
    made = LinearDecoder(found, 32)(latents)
    assert found.isfinite().all() and found.norm() < 2 and made.isfinite().all()
    colours = torch.einsum("bchw,cd->bdhw", latents, found[:-1]) + found[-1][:, None, None]
    assert torch.allclose(colours, torch.nn.functional.adaptive_avg_pool2d(pixels, (1, 3)), atol=1e-4)


def test_nothing_seen_and_what_is_not_finite_are_refused() -> None:
    with pytest.raises(ValueError, match="no latents"):
        Moments(3).solve()
    moments = Moments(3)
    moments.add(torch.full((1, 3, 2, 2), float("nan")), torch.zeros(1, 3, 8, 8))
    with pytest.raises(ValueError, match="finite"):
        moments.solve()


def test_sums_are_kept_and_added_to(tmp_path: Path) -> None:
    wanted, latents, pixels = planted(8, 3)
    for latent, pixel in zip(latents, pixels, strict=True):  # two runs, each with half of the pictures
        gathered = Gathered()
        gathered(latent[None], pixel[None])
        gathered.keep(tmp_path)
    kept = Moments.load(tmp_path, 8)
    assert kept and kept.cells == 144 and torch.allclose(kept.solve(), wanted, atol=1e-4)
    Gathered().keep(tmp_path)
    assert [f.name for f in tmp_path.iterdir()] == [FILE]
    assert Moments.load(tmp_path, 9) is None, "sums of other latents"
    (tmp_path / FILE).write_bytes((tmp_path / FILE).read_bytes()[:100])
    assert Moments.load(tmp_path, 8) is None, "cut off"
    assert Moments.load(tmp_path / "none", 8) is None
