"""Densities of sigma: valid, repeatable, and what the formulas say, evenly spread or not."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from simpletuner.flow.densities import MODE_SCALES, Beta, CosMap, Cubic, Listed, LogitNormal, Mode, Shape, Uniform
from simpletuner.flow.schedules import (
    Bias,
    Density,
    biased_quantile,
    draw_sigmas,
    histogram,
    rank_of,
    shift_sigmas,
    spread_evenly,
)

GRID = torch.linspace(0, 1, 2001, dtype=torch.float64)

shapes = st.one_of(
    st.builds(LogitNormal, st.floats(-2, 2), st.floats(0.1, 3)),
    st.just(Uniform()),
    st.builds(Beta, st.floats(0.1, 100), st.floats(0.1, 100)),
    st.lists(st.floats(0, 1), min_size=4, max_size=4).map(lambda w: Cubic(tuple(sorted(w)))),
    st.builds(Mode, st.floats(*MODE_SCALES)),
    st.just(CosMap()),
    st.lists(st.floats(0, 1), min_size=1, max_size=5).map(lambda s: Listed(tuple(s))),
)
biases = st.one_of(
    st.none(),
    st.builds(
        lambda a, b, m: Bias(min(a, b), max(a, b) + 1e-3, m), st.floats(0, 0.9), st.floats(0, 0.9), st.floats(0.1, 9)
    ),
)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@settings(max_examples=60)
@given(shapes)
def test_a_quantile_rises_from_0_to_1(shape: Shape) -> None:
    values = shape.quantile(GRID)
    assert values.dtype == torch.float64 and values.isfinite().all()
    assert values.min() >= 0 and values.max() <= 1 and (values.diff() >= -1e-12).all()


@settings(max_examples=60)
@given(shapes, st.floats(0.05, 20), st.booleans(), biases, st.integers(1, 9), st.integers(0, 99))
def test_draws_are_valid_and_repeatable(
    shape: Shape, shift: float, stratified: bool, bias: Bias | None, count: int, seed: int
) -> None:
    density = Density(shape, shift, stratified, None if isinstance(shape, Listed) else bias)
    first, second = (draw_sigmas(density, count, 64, 0.0, generator(seed)) for _ in range(2))
    assert torch.equal(first, second) and first.shape == (count,) and first.dtype == torch.float32
    assert (first >= 0).all() and (first <= 1).all()
    assert density.describe().startswith("sigma drawn from ")


@pytest.mark.parametrize(
    ("shape", "quantile"),
    [
        (Beta(1, 1), lambda u: u),
        (Beta(2, 1), torch.sqrt),
        (Beta(1, 2), lambda u: 1 - torch.sqrt(1 - u)),
        (Beta(0.5, 0.5), lambda u: torch.sin(math.pi * u / 2) ** 2),
        (Beta(100, 1), lambda u: u**0.01),
        (Cubic((0, 1 / 3, 2 / 3, 1)), lambda u: u),
        (Cubic((0, 0, 0, 1)), lambda u: u**3),
        (Mode(0.0), lambda u: u),
        # the distribution function of the cosmap density 2 / (pi - 2 pi t + 2 pi t²), inverted
        (CosMap(), lambda u: 0.5 + 0.5 * torch.tan(math.pi / 2 * (u - 0.5))),
        (LogitNormal(0.5, 2.0), lambda u: torch.sigmoid(2 * torch.special.ndtri(u) + 0.5)),
    ],
)
def test_quantiles_with_a_closed_form(shape: Shape, quantile: object) -> None:
    inside = GRID[1:-1]
    torch.testing.assert_close(shape.quantile(inside), quantile(inside), rtol=0, atol=2e-5)  # type: ignore[operator]


@settings(max_examples=20)
@given(st.floats(0.3, 20), st.floats(0.3, 20))
def test_a_beta_density_has_its_mean_and_variance(alpha: float, beta: float) -> None:
    middle = (torch.arange(20_000, dtype=torch.float64) + 0.5) / 20_000
    values, total = Beta(alpha, beta).quantile(middle), alpha + beta
    assert values.mean().item() == pytest.approx(alpha / total, abs=1e-4)
    assert values.var().item() == pytest.approx(alpha * beta / total**2 / (total + 1), abs=1e-4)


@settings(max_examples=40)
@given(st.integers(1, 16), st.integers(0, 999))
def test_evenly_spread_draws_leave_no_gap(count: int, seed: int) -> None:
    values = spread_evenly(count, generator(seed)).sort().values
    gaps = torch.cat([values.diff(), (values[:1] + 1 - values[-1:])])
    torch.testing.assert_close(gaps, torch.full_like(gaps, 1 / count))


@pytest.mark.parametrize("shape", [LogitNormal(), Beta(3, 1), Mode(), Listed((0.2, 0.9))])
def test_spreading_keeps_each_samples_own_distribution(shape: Shape) -> None:
    """Over many micro-batches every place of the batch sees the density itself, while the batch mean varies less."""
    even, free = Density(shape, 2.0, stratified=True), Density(shape, 2.0)
    a = torch.stack([draw_sigmas(even, 4, 64, 0.0, generator(n)) for n in range(3000)])
    b = torch.stack([draw_sigmas(free, 4, 64, 0.0, generator(n)) for n in range(3000)])
    levels = torch.tensor([0.1, 0.25, 0.5, 0.75, 0.9])
    for place in range(4):
        gap = (a[:, place].quantile(levels) - b.flatten().quantile(levels)).abs().max()
        assert gap < 0.05 or isinstance(shape, Listed)
        assert a[:, place].mean().item() == pytest.approx(b.mean().item(), abs=0.03)
    assert a.mean(1).std() < 0.7 * b.mean(1).std()


@given(st.floats(0, 1), st.floats(0, 1), st.floats(0.05, 20))
def test_a_bias_gives_its_range_that_many_times_the_share(a: float, b: float, multiplier: float) -> None:
    low, high = sorted((a, b))
    middle = (torch.arange(4000, dtype=torch.float64) + 0.5) / 4000
    values = biased_quantile(middle, low, high, multiplier)
    assert (values.diff() >= -1e-12).all() and values.min() >= 0 and values.max() <= 1
    share = ((values >= low) & (values < high)).double().mean().item()
    wanted = multiplier * (high - low) / (1 + (multiplier - 1) * (high - low))
    assert share == pytest.approx(wanted, abs=1e-3)


def test_a_bias_acts_on_the_shifted_sigmas_of_any_density() -> None:
    for shape in (LogitNormal(), Beta(2, 3), CosMap()):
        plain = draw_sigmas(Density(shape, 3.0), 40_000, 64, 0.0, generator())
        biased = draw_sigmas(Density(shape, 3.0, bias=Bias(0.75, 1.0, 3.0)), 40_000, 64, 0.0, generator(1))
        before, after = ((x > 0.75).float().mean().item() for x in (plain, biased))
        assert after / (1 - after) == pytest.approx(3 * before / (1 - before), rel=0.06)


@given(shapes, st.floats(0.05, 0.95))
def test_rank_and_quantile_undo_each_other(shape: Shape, u: float) -> None:
    sigma = shape.quantile(torch.tensor(u, dtype=torch.float64)).item()
    back = shape.quantile(torch.tensor(rank_of(shape, sigma), dtype=torch.float64)).item()
    assert back == pytest.approx(sigma, abs=1e-6) or isinstance(shape, Listed)


def test_the_offset_moves_the_evenly_spread_density_as_the_plain_one() -> None:
    for stratified in (False, True):
        density = Density(LogitNormal(0.2, 1.1), 1.0, stratified)
        logits = torch.logit(draw_sigmas(density, 100_000, 64, 0.3, generator()).double())
        assert logits.mean().item() == pytest.approx(0.5, abs=0.02)
        assert logits.std().item() == pytest.approx(1.1, abs=0.02)


def test_listed_timesteps_in_turn_and_at_random() -> None:
    in_turn = Density(Listed((0.9, 0.1, 0.5), "round-robin"), 3.0)
    seen = [draw_sigmas(in_turn, 2, 64, 0.0, generator(), first=2 * n).tolist() for n in range(3)]
    assert [round(x, 3) for pair in seen for x in pair] == [0.9, 0.1, 0.5, 0.9, 0.1, 0.5]
    at_random = draw_sigmas(Density(Listed((0.9, 0.1, 0.5)), 3.0), 3000, 64, 0.0, generator())
    values, counts = at_random.unique(return_counts=True)
    assert [round(v, 3) for v in values.tolist()] == [0.1, 0.5, 0.9] and counts.min() > 900, "never shifted"


def test_the_shift_acts_after_the_density() -> None:
    for shape in (Beta(2, 3), Mode(), Uniform()):
        plain, moved = (draw_sigmas(Density(shape, by), 64, 64, 0.0, generator()) for by in (1.0, 4.0))
        torch.testing.assert_close(shift_sigmas(plain, 4.0), moved)


def test_the_histogram_shows_the_density() -> None:
    lines = histogram(Density(Beta(1, 20), 1.0), 64)
    assert len(lines) == 10 and "█" * 30 in lines[0] and "█" not in lines[-1]
