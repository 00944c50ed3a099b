"""Options of noise, loss and rollout; a part of ``options``."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from simpletuner.config.section import Probability, Section
from simpletuner.config.values import parse_four, parse_numbers


def _with_dash(value: Any) -> Any:
    """round_robin is round-robin."""
    return value.replace("_", "-") if isinstance(value, str) else value


Timestep = Annotated[float, Field(ge=0.0, le=1000.0)]


class FlowOptions(Section):
    """Noise."""

    flow_schedule_shift: Annotated[float, Field(gt=0.0)] | None = Field(
        None,
        description="Shift of training sigmas; by default the model's own, flow_shift of its scheduler (3 for Sana at 1024 px).",
    )
    flow_schedule_auto_shift: bool = Field(False, description="Shift by picture size instead.")
    flow_density: Literal["logit_normal", "uniform", "beta", "mode", "cosmap"] | None = Field(
        None, description="How sigmas are drawn before the shift; logit_normal where no other option says otherwise."
    )
    flow_sigmoid_mean: float = Field(0.0, description="Middle of the logit-normal density, before the sigmoid.")
    flow_sigmoid_scale: Annotated[float, Field(gt=0.0)] = Field(1.0, description="Spread of the logit-normal density.")
    flow_use_uniform_schedule: bool = Field(False, description="Draw sigmas uniformly instead of logit-normal.")
    flow_use_beta_schedule: bool = Field(False, description="Draw sigmas from a beta density instead of logit-normal.")
    flow_beta_schedule_alpha: Annotated[float, Field(ge=0.1, le=100.0)] = Field(
        2.0, description="Larger than beta: more noise."
    )
    flow_beta_schedule_beta: Annotated[float, Field(ge=0.1, le=100.0)] = Field(
        2.0, description="Larger than alpha: less noise."
    )
    flow_mode_scale: Annotated[float, Field(ge=-1.0, le=1.75)] = Field(
        1.29, description="With flow_density mode: above 0 more of the middle, below 0 more of the ends."
    )
    flow_cubic_schedule_weights: Annotated[
        tuple[Probability, Probability, Probability, Probability] | None, BeforeValidator(parse_four)
    ] = Field(None, description="Draw sigmas along a cubic Bezier curve of these four values from 0 to 1.")
    flow_custom_timesteps: Annotated[
        Annotated[tuple[Timestep, ...], Field(min_length=1)] | None, BeforeValidator(parse_numbers)
    ] = Field(None, description="Train these timesteps (0 to 1000) and no others; they are not shifted.")
    flow_timesteps_mode: Annotated[Literal["random", "round-robin"], BeforeValidator(_with_dash)] = Field(
        "random", description="flow_custom_timesteps at random, or in turn."
    )
    flow_stratified_sampling: bool = Field(
        False, description="Spread each micro-batch evenly over the density: less noise in the gradient."
    )
    timestep_bias_strategy: Literal["none", "earlier", "later", "range"] = Field(
        "none", description="Draw some sigmas more often: earlier is near the data, later near noise."
    )
    timestep_bias_multiplier: Annotated[float, Field(gt=0.0)] = Field(
        1.0, description="How many times as often; below 1 less often."
    )
    timestep_bias_portion: Annotated[float, Field(gt=0.0, le=1.0)] = Field(
        0.25, description="Part of the sigmas that is earlier or later."
    )
    timestep_bias_begin: Timestep = Field(0, description="First timestep of range.")
    timestep_bias_end: Timestep = Field(1000, description="Last timestep of range.")
    offset_noise: bool = Field(False, description="Shift the mean of some samples' noise, in input and target.")
    noise_offset: Annotated[float, Field(ge=0.0)] = Field(0.1, description="Size of that shift.")
    noise_offset_probability: Probability = Field(0.25, description="Share of samples that get it.")
    input_perturbation: Annotated[float, Field(ge=0.0)] = Field(
        0.0, description="Extra noise that only the model's input sees; 0.1 is usual, 0 is off."
    )
    input_perturbation_steps: Annotated[int, Field(ge=0)] = Field(
        0, description="Steps over which it falls to 0; 0 keeps it."
    )
    mixflow_enabled: bool = Field(False, description="MixFlow: show the model points noisier than it is told.")
    mixflow_gamma: Probability = Field(0.8, description="How much noisier at most, as a share of what is left.")


class LossOptions(Section):
    """Loss."""

    loss_type: Literal["l2", "huber", "smooth_l1"] = Field(
        "l2",
        description="Mean square, or pseudo-Huber losses that outliers move less; held-out loss is always a mean square.",
    )
    huber_c: Annotated[float, Field(gt=0.0)] = Field(0.1, description="Errors far above it count linearly.")
    huber_schedule: Literal["constant", "exponential", "snr"] = Field(
        "snr", description="huber_c for every sigma, or falling from 1 at the data to huber_c at noise."
    )
    weighting_scheme: Literal["none", "sigma_sqrt", "cosmap"] = Field(
        "none", description="How much a sample counts, by its sigma."
    )
    snr_gamma: Annotated[float, Field(ge=0.0)] = Field(
        0.0, description="Min-SNR weighting for the velocity, 5 is usual; 0 is off."
    )
    use_soft_min_snr: bool = Field(False, description="The same without a kink.")
    soft_min_snr_sigma_data: Annotated[float, Field(gt=0.0)] = Field(
        0.5, description="Of use_soft_min_snr; 1 / its square is the gamma."
    )


class RolloutOptions(Section):
    """Rollout (scheduled sampling)."""

    scheduled_sampling_max_step_offset: Annotated[int, Field(ge=0, le=999)] = Field(
        0, description="The model walks up to so many of 1000 timesteps by itself; each is a forward pass; 0 is off."
    )
    scheduled_sampling_strategy: Literal["uniform", "biased_early", "biased_late"] = Field(
        "uniform", description="Walks of all lengths alike, mostly short, or mostly long."
    )
    scheduled_sampling_probability: Probability = Field(0.0, description="Share of samples that walk.")
    scheduled_sampling_prob_start: Probability = Field(
        0.0, description="Share at the ramp's start; 0 takes scheduled_sampling_probability."
    )
    scheduled_sampling_prob_end: Probability = Field(0.5, description="Share at the ramp's end.")
    scheduled_sampling_ramp_steps: Annotated[int, Field(ge=0)] = Field(
        0, description="Steps of the ramp; 0 keeps scheduled_sampling_probability."
    )
    scheduled_sampling_start_step: Annotated[int, Field(ge=0)] = Field(0, description="Step where the ramp begins.")
    scheduled_sampling_ramp_shape: Literal["linear", "cosine"] = Field("linear", description="Its shape.")
    scheduled_sampling_sampler: Literal["unipc", "euler", "dpm"] = Field("unipc", description="Solver of the walk.")
    scheduled_sampling_order: Annotated[int, Field(ge=1, le=2)] = Field(2, description="Its order; euler has 1.")
