import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from simpletuner.flow.densities import LogitNormal, Uniform
from simpletuner.flow.losses import mean_squared_error
from simpletuner.flow.path import add_noise, interpolate, velocity
from simpletuner.flow.schedules import Density, auto_shift, draw_sigmas, shift_sigmas

sigma = st.floats(0.0, 1.0)
shift = st.floats(0.05, 20.0)


@given(sigma, shift)
def test_a_shift_is_undone_by_its_inverse(value: float, by: float) -> None:
    moved = shift_sigmas(torch.tensor([value], dtype=torch.float64), by)
    assert 0.0 <= moved.item() <= 1.0
    assert shift_sigmas(moved, 1 / by).item() == pytest.approx(value, abs=1e-9)


@given(shift)
def test_a_shift_keeps_the_ends_and_the_order(by: float) -> None:
    grid = shift_sigmas(torch.linspace(0, 1, 50, dtype=torch.float64), by)
    assert grid[0] == 0 and grid[-1] == pytest.approx(1.0)
    assert (grid.diff() > 0).all()
    if by > 1:
        assert (grid >= torch.linspace(0, 1, 50, dtype=torch.float64) - 1e-12).all()


@given(st.integers(0, 2**31), sigma)
def test_latents_and_noise_come_back_from_the_path(seed: int, value: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    latents, noise = (torch.randn(2, 3, 4, 4, generator=generator, dtype=torch.float64) for _ in range(2))
    sigmas = torch.full((2,), value, dtype=torch.float64)
    point, direction = interpolate(latents, noise, sigmas), velocity(latents, noise)
    torch.testing.assert_close(point - value * direction, latents)
    torch.testing.assert_close(point + (1 - value) * direction, noise)


@given(st.booleans(), st.floats(0.1, 3), st.floats(-2, 2), shift, st.integers(0, 1000))
def test_sigmas_are_valid_and_repeatable(uniform: bool, scale: float, offset: float, by: float, seed: int) -> None:
    density = Density(Uniform() if uniform else LogitNormal(0.0, scale), by)
    first, second = (draw_sigmas(density, 64, 1024, offset, torch.Generator().manual_seed(seed)) for _ in range(2))
    assert torch.equal(first, second)
    assert first.dtype == torch.float32 and (first >= 0).all() and (first <= 1).all()


def test_the_median_of_the_official_density_is_where_the_formula_says() -> None:
    sigmas = draw_sigmas(Density(), 200_000, 1024, 0.0, torch.Generator().manual_seed(0))
    assert sigmas.median().item() == pytest.approx(3 * 0.5 / (1 + 2 * 0.5), abs=5e-3)


def test_the_offset_moves_the_density_as_the_pocket_was_trained() -> None:
    sigmas = draw_sigmas(Density(LogitNormal(0.0, 1.1), 1.0), 200_000, 64, 0.3, torch.Generator().manual_seed(0))
    logits = torch.logit(sigmas.double())
    assert logits.mean().item() == pytest.approx(0.3, abs=0.01)
    assert logits.std().item() == pytest.approx(1.1, abs=0.01)


def test_auto_shift_at_1024_px() -> None:
    # 1024 px Sana: 32 x 32 latents, patch 1; mu = 0.5 + (1024 - 256) * 0.65 / 3840 = 0.63
    assert auto_shift(32 * 32) == pytest.approx(math.exp(0.63), rel=1e-12)
    assert auto_shift(256) == pytest.approx(math.exp(0.5))
    assert auto_shift(64 * 64) == pytest.approx(math.exp(1.15))
    assert auto_shift(8192) > auto_shift(4096)  # not clamped


def test_auto_shift_acts() -> None:
    draws = [
        draw_sigmas(Density(shift="auto"), 1000, n, 0.0, torch.Generator().manual_seed(0)).mean()
        for n in (256, 1024, 4096)
    ]
    assert draws[0] < draws[1] < draws[2]


def test_noised_batch_bundles_the_formulas() -> None:
    latents, noise = torch.ones(2, 1, 2, 2), torch.zeros(2, 1, 2, 2)
    batch = add_noise(latents.bfloat16(), noise, torch.tensor([0.25, 1.0]))
    assert batch.noisy_latents[0].unique().item() == 0.75 and batch.noisy_latents[1].unique().item() == 0.0
    assert batch.timesteps.tolist() == [250.0, 1000.0]
    assert batch.target.unique().item() == -1.0 and batch.target.dtype == torch.float32


def test_the_loss_is_the_mean_over_each_sample() -> None:
    prediction, target = torch.zeros(2, 1, 2, 2), torch.stack([torch.ones(1, 2, 2), 3 * torch.ones(1, 2, 2)])
    assert mean_squared_error(prediction, target).tolist() == [1.0, 9.0]
