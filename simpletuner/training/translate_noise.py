"""Options become plain values: what is drawn, what the model sees, and what an error costs (rooms 6 and 7)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from simpletuner.config.noise_rules import density_of
from simpletuner.config.options import Options
from simpletuner.flow.densities import Beta, CosMap, Cubic, Listed, LogitNormal, Mode, Shape, Uniform
from simpletuner.flow.losses import Loss, Weighting
from simpletuner.flow.perturbation import Perturbation
from simpletuner.flow.rollout import Ramp, Rollout
from simpletuner.flow.schedules import Bias, Density, auto_shift, histogram
from simpletuner.models.base import Facts
from simpletuner.training.prepare import Found
from simpletuner.training.trainee import Recipe


def density(options: Options, facts: Facts) -> Density:
    """How sigmas are drawn: the model's own shift where the user is silent."""
    flow = options.flow
    return Density(
        shape=_shape(options),
        shift="auto" if flow.flow_schedule_auto_shift else flow.flow_schedule_shift or facts.shift,
        stratified=flow.flow_stratified_sampling,
        bias=_bias(options),
    )


def _shape(options: Options) -> Shape:
    flow = options.flow
    kind = density_of(flow)
    if kind == "custom":
        return Listed(tuple(t / 1000 for t in flow.flow_custom_timesteps or ()), flow.flow_timesteps_mode)
    if kind == "cubic" and flow.flow_cubic_schedule_weights is not None:
        return Cubic(flow.flow_cubic_schedule_weights)
    shapes: dict[str, Shape] = {
        "logit_normal": LogitNormal(flow.flow_sigmoid_mean, flow.flow_sigmoid_scale),
        "uniform": Uniform(),
        "beta": Beta(flow.flow_beta_schedule_alpha, flow.flow_beta_schedule_beta),
        "mode": Mode(flow.flow_mode_scale),
        "cosmap": CosMap(),
    }
    return shapes[kind]


def _bias(options: Options) -> Bias | None:
    flow = options.flow
    low, high = {
        "none": (0.0, 0.0),
        "earlier": (0.0, flow.timestep_bias_portion),
        "later": (1.0 - flow.timestep_bias_portion, 1.0),
        "range": (flow.timestep_bias_begin / 1000, flow.timestep_bias_end / 1000),
    }[flow.timestep_bias_strategy]
    biased = flow.timestep_bias_strategy != "none" and flow.timestep_bias_multiplier != 1.0
    return Bias(low, high, flow.timestep_bias_multiplier) if biased else None


def perturbation(options: Options) -> Perturbation:
    """What the model sees instead of the plain line from data to noise."""
    flow = options.flow
    return Perturbation(
        input_strength=flow.input_perturbation,
        input_steps=flow.input_perturbation_steps,
        offset=flow.noise_offset if flow.offset_noise else 0.0,
        offset_probability=flow.noise_offset_probability,
        slowed=flow.mixflow_gamma if flow.mixflow_enabled else 0.0,
    )


def loss(options: Options) -> Loss:
    """How far a prediction is from its target."""
    settings = options.loss
    return Loss(settings.loss_type, settings.huber_c, settings.huber_schedule)


def weighting(options: Options) -> Weighting:
    """How much a sample counts, by its sigma."""
    settings = options.loss
    if settings.use_soft_min_snr:
        return Weighting("soft_min_snr", sigma_data=settings.soft_min_snr_sigma_data)
    if settings.snr_gamma:
        return Weighting("min_snr", gamma=settings.snr_gamma)
    return Weighting(settings.weighting_scheme)


def rollout(options: Options) -> Rollout | None:
    """Scheduled sampling, or None if no sample would ever be rolled out."""
    chosen = options.rollout
    probability = chosen.scheduled_sampling_probability
    ramp = Ramp(
        start=(chosen.scheduled_sampling_prob_start or probability)
        if chosen.scheduled_sampling_ramp_steps
        else probability,
        end=chosen.scheduled_sampling_prob_end,
        first_step=chosen.scheduled_sampling_start_step,
        steps=chosen.scheduled_sampling_ramp_steps,
        shape=chosen.scheduled_sampling_ramp_shape,
    )
    never = ramp.start == 0 and (ramp.end == 0 or not ramp.steps)
    if not chosen.scheduled_sampling_max_step_offset or never:
        return None
    return Rollout(
        max_offset=chosen.scheduled_sampling_max_step_offset,
        ramp=ramp,
        strategy=chosen.scheduled_sampling_strategy,
        sampler=chosen.scheduled_sampling_sampler,
        order=chosen.scheduled_sampling_order,
    )


def _sizes(training: Sequence[Found], facts: Facts, below: str) -> tuple[int, str]:
    """Tokens of the smallest picture, at which histograms are drawn, and the shifts of it and of the largest."""
    buckets = {placed.placement.bucket for item in training for placed in item.placed}
    counts = {bucket: facts.tokens(bucket.height // facts.stride, bucket.width // facts.stride) for bucket in buckets}
    ordered = sorted(counts, key=lambda bucket: (counts[bucket], bucket.width))
    small, large = ordered[0], ordered[-1]
    note = f"{auto_shift(counts[small]):.3f} at {small}"
    if counts[small] != counts[large]:
        note += f"{below} to {auto_shift(counts[large]):.3f} at {large}"
    return counts[small], f" ({note})"


def describe(recipe: Recipe, training: Sequence[Found], facts: Facts, resumed: bool = False) -> list[str]:
    """Sentences on everything in force, and histograms of the sigmas, one for each distinct offset.

    A run that is resumed drew them when it began.
    """
    drawn = recipe.density
    tokens, note = _sizes(training, facts, "" if resumed else ", as below,")
    note = note if drawn.shift == "auto" else ""
    lines = []
    for offset in sorted({item.source.timestep_offset for item in training}):
        where = f", offset {offset:g}" if offset else ""
        lines.append(f"Noise: {drawn.describe()}{note}{where}")
        if not resumed:
            lines += [f"  {line}" for line in histogram(drawn, tokens, offset)]
    lines += [f"Noise: {sentence}" for sentence in recipe.perturbation.describe()]
    lines.append(f"Loss: {recipe.loss.describe()}, {recipe.weighting.describe()}")
    if recipe.rollout:
        lines.append(recipe.rollout.describe())
    return lines


def identity(options: Options) -> dict[str, Any]:
    """What of this shapes the result, for comparison on resume."""
    return {  # not the sentences of the log, which round
        "noise changes": repr(perturbation(options)),
        "loss": repr(loss(options)),
        "loss weighting": repr(weighting(options)),
        "rollout": repr(rollout(options)),
    }
