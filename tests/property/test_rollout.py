"""Rollout: the plan, the walk over a known field, and the batch when there is nothing to do."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from simpletuner.flow.path import NoisedBatch, add_noise
from simpletuner.flow.rollout import Ramp, Rollout, draw_offsets, roll_out
from simpletuner.flow.schedules import shift_sigmas

ALWAYS = Ramp(1.0, 1.0)
samplers = st.sampled_from(["unipc", "euler", "dpm"])
strategies = st.sampled_from(["uniform", "biased_early", "biased_late"])


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def batch_of(sigmas: list[float], seed: int = 0) -> NoisedBatch:
    latents, noise = (torch.randn(len(sigmas), 2, 3, 3, generator=generator(seed + i)) for i in (0, 1))
    return add_noise(latents, noise, torch.tensor(sigmas))


@given(st.floats(0, 1), st.floats(0, 1), st.integers(0, 50), st.integers(1, 50), st.integers(0, 150), st.booleans())
def test_a_ramp_goes_from_start_to_end(a: float, b: float, first: int, steps: int, step: int, cosine: bool) -> None:
    ramp = Ramp(a, b, first, steps, "cosine" if cosine else "linear")
    assert ramp.at(first) == a and ramp.at(first + steps) == pytest.approx(b) and ramp.at(first + 999) == ramp.at(10**6)
    assert min(a, b) - 1e-9 <= ramp.at(step) <= max(a, b) + 1e-9
    assert (ramp.at(step + 1) - ramp.at(step)) * (b - a) >= -1e-12, "never back"
    assert ramp.at(first + steps / 2) == pytest.approx((a + b) / 2)  # type: ignore[arg-type]
    quarter = ramp.at(first + steps / 4)  # type: ignore[arg-type]
    assert quarter == pytest.approx(a + (b - a) * ((1 - math.cos(math.pi / 4)) / 2 if cosine else 0.25))


def test_without_a_ramp_the_share_stays() -> None:
    assert [Ramp(0.3, 0.9).at(n) for n in (0, 5, 10**6)] == [0.3] * 3


@settings(max_examples=60)
@given(
    st.integers(1, 300), strategies, st.floats(0, 1), st.lists(st.floats(0, 1), min_size=1, max_size=8),
    st.floats(0.1, 10), st.integers(0, 99),
)  # fmt: skip
def test_offsets_stay_on_the_schedule(
    most: int, strategy: str, share: float, sigmas: list[float], shift: float, seed: int
) -> None:
    rollout = Rollout(most, Ramp(share, share), strategy)  # type: ignore[arg-type]
    values = torch.tensor(sigmas)
    first, second = (draw_offsets(rollout, values, shift, 0, generator(seed)) for _ in range(2))
    assert torch.equal(first, second) and first.dtype == torch.int64
    assert (first >= 0).all() and (first <= most).all()
    walked = first > 0
    position = shift_sigmas(values.double(), 1 / shift) + first / 1000
    assert (position[walked] <= 0.999 + 1e-6).all()


@pytest.mark.parametrize(("strategy", "mean"), [("uniform", 5.0), ("biased_early", 10 / 3), ("biased_late", 20 / 3)])
def test_offsets_have_the_mean_of_their_strategy_and_hit_that_share(strategy: str, mean: float) -> None:
    sigmas = torch.full((20_000,), 0.3)
    all_of_them = draw_offsets(Rollout(10, ALWAYS, strategy), sigmas, 1.0, 0, generator())  # type: ignore[arg-type]
    assert all_of_them.double().mean().item() == pytest.approx(mean, abs=0.1)
    assert (all_of_them.min(), all_of_them.max()) == (0, 10)
    ramp = Ramp(0.0, 0.5, 0, 10)
    some = draw_offsets(Rollout(10, ramp, strategy), sigmas, 1.0, 5, generator())  # type: ignore[arg-type]
    assert some.double().mean().item() == pytest.approx(mean / 4, abs=0.1)
    none = draw_offsets(Rollout(10, ramp, strategy), sigmas, 1.0, 0, generator())  # type: ignore[arg-type]
    assert none.max() == 0


def test_nothing_to_walk_leaves_the_very_same_batch_and_asks_nothing() -> None:
    batch = batch_of([0.2, 0.7])

    def never(*_: torch.Tensor) -> torch.Tensor:
        raise AssertionError("the model was asked")

    assert roll_out(batch, torch.tensor([0, 0]), 3.0, Rollout(5, ALWAYS), never) is batch


@settings(max_examples=40)
@given(
    samplers, st.integers(1, 2), st.floats(0.1, 10),
    st.lists(st.tuples(st.floats(0.0, 0.9), st.integers(0, 40)), min_size=1, max_size=5),
)  # fmt: skip
def test_a_perfect_velocity_lands_exactly_on_the_line(
    sampler: str, order: int, shift: float, samples: list[tuple[float, int]]
) -> None:
    """Where the model knows each sample's line, walking it changes nothing, from wherever it starts."""
    batch = batch_of(shift_sigmas(torch.tensor([s for s, _ in samples]), shift).tolist())
    offsets = torch.tensor([k for _, k in samples])
    asked: list[tuple[torch.Tensor, torch.Tensor]] = []

    def perfect(points: torch.Tensor, sigmas: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        asked.append((sigmas, rows))
        on_line = batch.noisy_latents[rows] + (sigmas - batch.sigmas[rows])[:, None, None, None] * batch.target[rows]
        torch.testing.assert_close(points, on_line, rtol=0, atol=1e-4)
        return batch.target[rows]

    made = roll_out(batch, offsets, shift, Rollout(40, ALWAYS, "uniform", sampler, order), perfect)  # type: ignore[arg-type]
    torch.testing.assert_close(made.noisy_latents, batch.noisy_latents, rtol=0, atol=1e-4)
    still = offsets == 0
    assert torch.equal(made.noisy_latents[still], batch.noisy_latents[still])
    assert torch.equal(made.target, batch.target) and torch.equal(made.sigmas, batch.sigmas)
    assert len(asked) == offsets.max() and sum(len(rows) for _, rows in asked) == offsets.sum()


@pytest.mark.parametrize("sampler", ["unipc", "euler", "dpm"])
def test_a_sample_walks_alike_alone_and_in_a_batch(sampler: str) -> None:
    """Samples that join later have no part in what the others remember."""
    sigmas, offsets = [0.2, 0.5, 0.7, 0.4], [7, 2, 11, 0]
    batch = batch_of(sigmas)
    rollout = Rollout(20, ALWAYS, "uniform", sampler, 2)  # type: ignore[arg-type]

    def field(points: torch.Tensor, sigmas: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        return torch.sin(3 * points) * (1 + sigmas)[:, None, None, None]

    together = roll_out(batch, torch.tensor(offsets), 3.0, rollout, field).noisy_latents
    for n, offset in enumerate(offsets):
        one = NoisedBatch(*(t[n : n + 1] for t in (batch.noisy_latents, batch.sigmas, batch.timesteps, batch.target)))
        alone = roll_out(one, torch.tensor([offset]), 3.0, rollout, field).noisy_latents
        torch.testing.assert_close(alone[0], together[n], rtol=1e-6, atol=1e-6)
        assert (together[n] - batch.noisy_latents[n]).abs().max() > 1e-3 or offset == 0


def test_the_start_is_further_towards_noise_by_the_offset_in_unshifted_timesteps() -> None:
    batch = batch_of([shift_sigmas(torch.tensor(0.5), 3.0).item()])
    asked: list[float] = []

    def field(points: torch.Tensor, sigmas: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        asked.append(sigmas.item())
        return batch.target[rows]

    roll_out(batch, torch.tensor([3]), 3.0, Rollout(3, ALWAYS), field)
    wanted = [shift_sigmas(torch.tensor(0.5 + k / 1000, dtype=torch.float64), 3.0).item() for k in (3, 2, 1)]
    assert asked == pytest.approx(wanted, abs=1e-6)


def test_no_gradient_flows_through_a_walk() -> None:
    weight = torch.ones((), requires_grad=True)

    def field(points: torch.Tensor, sigmas: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        return weight * points

    assert not roll_out(batch_of([0.5]), torch.tensor([4]), 1.0, Rollout(4, ALWAYS), field).noisy_latents.requires_grad


def test_what_it_costs_is_said() -> None:
    text = Rollout(12, Ramp(0.2, 0.5, 10, 100), "uniform", "dpm", 2).describe()
    assert "20% to 50%" in text and "dpm of order 2" in text and "up to 12 extra forward passes" in text
    assert "about 3 a picture" in text
