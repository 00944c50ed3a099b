"""Loss types, weightings and perturbations against their formulas."""

import math

import pytest
import torch
from diffusers.training_utils import compute_loss_weighting_for_sd3
from hypothesis import given, settings
from hypothesis import strategies as st

from simpletuner.flow.losses import Loss, Weighting, mean_squared_error
from simpletuner.flow.path import add_noise, interpolate
from simpletuner.flow.perturbation import Perturbation, noised, slow_sigmas

sigma = st.floats(0.0, 1.0)
kinds = st.sampled_from(["huber", "smooth_l1"])
schedules = st.sampled_from(["constant", "exponential", "snr"])


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@settings(max_examples=40)
@given(kinds, st.floats(0.01, 1), schedules, sigma, st.floats(-50, 50))
def test_huber_losses_are_their_formula(kind: str, c: float, schedule: str, at: float, error: float) -> None:
    loss = Loss(kind, c, schedule)  # type: ignore[arg-type]
    sigmas = torch.tensor([at], dtype=torch.float64)
    width = {"constant": c, "exponential": c**at, "snr": (1 - c) * (1 - at) ** 2 + c}[schedule]
    assert loss.threshold(sigmas).item() == pytest.approx(width)
    wanted = 2 * (math.sqrt(error**2 + width**2) - width) * (width if kind == "huber" else 1.0)
    made = loss.per_sample(torch.full((1, 2, 3, 3), error), torch.zeros(1, 2, 3, 3), sigmas)
    assert made.item() == pytest.approx(wanted, rel=2e-4, abs=1e-6)


def test_far_errors_count_linearly_and_near_ones_squared() -> None:
    zero, sigmas = torch.zeros(1, 1, 1, 1), torch.ones(1)

    def at(error: float, kind: str) -> float:
        return Loss(kind, 0.1, "constant").per_sample(zero + error, zero, sigmas).item()  # type: ignore[arg-type]

    assert at(1e-4, "huber") == pytest.approx(1e-8, rel=1e-3)
    for kind in ("huber", "smooth_l1"):
        assert at(200, kind) / at(100, kind) == pytest.approx(2, rel=2e-3)


@settings(max_examples=20)
@given(st.sampled_from(["l2", "huber", "smooth_l1"]), schedules)
def test_masks_act_on_every_loss_type(kind: str, schedule: str) -> None:
    loss = Loss(kind, 0.2, schedule)  # type: ignore[arg-type]
    prediction = torch.randn(2, 3, 4, 4, generator=generator(), requires_grad=True)
    target, sigmas = torch.randn(2, 3, 4, 4, generator=generator(1)), torch.tensor([0.2, 0.9])
    plain = loss.per_sample(prediction, target, sigmas)
    assert torch.equal(loss.per_sample(prediction, target, sigmas, torch.ones(2, 1, 4, 4)), plain)
    mask = torch.zeros(2, 1, 4, 4)
    mask[:, :, :2] = 1
    loss.per_sample(prediction, target, sigmas, mask).sum().backward()
    assert prediction.grad is not None
    assert prediction.grad[:, :, 2:].abs().max() == 0 and prediction.grad[:, :, :2].abs().min() > 0


def test_l2_is_the_plain_mean_square() -> None:
    a, b = torch.randn(2, 1, 3, 3), torch.randn(2, 1, 3, 3)
    assert torch.equal(Loss().per_sample(a, b, torch.rand(2)), mean_squared_error(a, b))


@pytest.mark.parametrize("scheme", ["none", "sigma_sqrt", "cosmap"])
def test_weightings_equal_those_of_diffusers(scheme: str) -> None:
    sigmas = torch.linspace(0.001, 1, 1000)
    torch.testing.assert_close(
        Weighting(scheme).at(sigmas),  # type: ignore[arg-type]
        compute_loss_weighting_for_sd3(scheme, sigmas),
    )


@given(st.floats(0.001, 0.999), st.floats(0.1, 50))
def test_min_snr_weighs_the_clean_picture(at: float, gamma: float) -> None:
    """Weight times an error in the velocity is min(SNR, gamma) times the same error seen in the clean picture."""
    x0, noise, error = torch.tensor(0.7), torch.tensor(-1.2), 0.3
    shown = interpolate(x0.reshape(1, 1), noise.reshape(1, 1), torch.tensor([at]))
    implied = shown - at * (noise - x0 + error)
    ratio = ((1 - at) / at) ** 2
    wanted = min(ratio, gamma) * (implied - x0).square().item()
    made = Weighting("min_snr", gamma=gamma).at(torch.tensor([at])).item() * error**2
    assert made == pytest.approx(wanted, rel=2e-3)
    soft = Weighting("soft_min_snr", sigma_data=gamma**-0.5).at(torch.tensor([at])).item() * error**2
    assert soft == pytest.approx((implied - x0).square().item() / (1 / ratio + 1 / gamma), rel=2e-3)
    assert soft <= made * (1 + 2e-3), "a soft minimum lies below the hard one"


@given(st.sampled_from(["sigma_sqrt", "cosmap", "min_snr", "soft_min_snr"]), sigma)
def test_weights_are_finite_everywhere(scheme: str, at: float) -> None:
    weight = Weighting(scheme).at(torch.tensor([at]))  # type: ignore[arg-type]
    assert weight.isfinite().all() and weight.min() >= 0


LATENTS = torch.randn(400, 2, 3, 3, generator=generator(9))
SIGMAS = torch.full((400,), 0.4)


def test_without_changes_the_batch_is_the_plain_line() -> None:
    made = noised(LATENTS, SIGMAS, Perturbation(), 5, generator(3))
    noise = torch.randn(LATENTS.shape, generator=generator(3))
    plain = add_noise(LATENTS, noise, SIGMAS)
    assert torch.equal(made.noisy_latents, plain.noisy_latents) and torch.equal(made.target, plain.target)


def test_input_perturbation_moves_the_input_and_not_the_target() -> None:
    plain = noised(LATENTS, SIGMAS, Perturbation(), 0, generator())
    made = noised(LATENTS, SIGMAS, Perturbation(input_strength=0.1), 0, generator())
    assert torch.equal(made.target, plain.target) and torch.equal(made.timesteps, plain.timesteps)
    extra = (made.noisy_latents - plain.noisy_latents) / 0.4
    assert extra.std().item() == pytest.approx(0.1, rel=0.05) and abs(extra.mean().item()) < 0.01


@given(st.integers(0, 50), st.integers(1, 40))
def test_input_perturbation_falls_to_0(step: int, steps: int) -> None:
    changes = Perturbation(input_strength=0.2, input_steps=steps)
    assert changes.input_strength_at(step) == pytest.approx(0.2 * max(0, 1 - step / steps))
    assert Perturbation(input_strength=0.2).input_strength_at(step) == 0.2


def test_offset_noise_shifts_channels_of_a_share_of_samples_in_input_and_target() -> None:
    plain = noised(LATENTS, SIGMAS, Perturbation(), 0, generator())
    made = noised(LATENTS, SIGMAS, Perturbation(offset=0.5, offset_probability=0.25), 0, generator())
    shift = made.target - plain.target
    torch.testing.assert_close(made.noisy_latents - plain.noisy_latents, 0.4 * shift, rtol=0, atol=1e-6)
    assert shift.flatten(2).std(2).max() < 1e-6, "the same everywhere in a channel"
    hit = shift[:, :, 0, 0].abs().amax(1) > 1e-6
    assert hit.float().mean().item() == pytest.approx(0.25, abs=0.07)
    assert shift[hit][:, :, 0, 0].std().item() == pytest.approx(0.5, rel=0.15)


@given(st.lists(sigma, min_size=1, max_size=8), sigma, st.integers(0, 99))
def test_slowed_sigmas_lie_in_the_published_range(sigmas: list[float], gamma: float, seed: int) -> None:
    given_sigmas = torch.tensor(sigmas)
    slowed = slow_sigmas(given_sigmas, gamma, generator(seed))
    t, m = 1 - given_sigmas, 1 - slowed  # the paper counts from noise
    assert (m <= t + 1e-6).all() and (m >= (1 - gamma) * t - 1e-6).all()


def test_mixflow_shows_a_noisier_point_under_the_same_timestep_and_target() -> None:
    plain = noised(LATENTS, SIGMAS, Perturbation(), 0, generator())
    made = noised(LATENTS, SIGMAS, Perturbation(slowed=0.8), 0, generator())
    assert torch.equal(made.target, plain.target) and torch.equal(made.timesteps, plain.timesteps)
    moved = ((made.noisy_latents - plain.noisy_latents) / plain.target).flatten(1).median(1).values
    assert moved.min() >= -1e-4 and moved.max() <= 0.8 * 0.6 + 1e-4
    assert moved.mean().item() == pytest.approx(0.24, abs=0.03)
