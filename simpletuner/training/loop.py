"""Room 8, Step: the training loop, whole and readable from top to bottom.

In: a Trainee, a stream of batches, a Recipe. Out: StepResults to hooks and listeners. Reads no options.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch

from simpletuner.data.types import Batch
from simpletuner.errors import NonFiniteError
from simpletuner.flow.losses import Loss, Weighting, mean_squared_error
from simpletuner.flow.path import TIMESTEP_SCALE, NoisedBatch
from simpletuner.flow.perturbation import Perturbation, noised
from simpletuner.flow.rollout import Rollout, draw_offsets, roll_out
from simpletuner.flow.schedules import Density, draw_sigmas
from simpletuner.models.base import Facts, Family
from simpletuner.training.ema import Ema
from simpletuner.training.guard import Guard
from simpletuner.training.learning_rate import Schedule
from simpletuner.training.precision import Precision


@dataclass(frozen=True, slots=True)
class Recipe:
    """How one step is made, in plain values.

    Attributes:
        density: How sigmas are drawn.
        schedule: Learning rate by step.
        accumulation: Micro-batches per optimizer step.
        clip_norm: Global norm or element bound; 0 is off.
        clip_by_value: Clip each element instead of the global norm.
        seed: Everything random is drawn from it and the position.
        precision: Dtypes in force.
        perturbation: What the model sees instead of the plain line from data to noise.
        loss: Prediction and target become one number per sample.
        weighting: How much that number counts, by sigma.
        rollout: Samples that the model itself leads to their sigma, or None.
    """

    density: Density
    schedule: Schedule
    accumulation: int
    clip_norm: float
    clip_by_value: bool
    seed: int
    precision: Precision
    perturbation: Perturbation = field(default_factory=Perturbation)
    loss: Loss = field(default_factory=Loss)
    weighting: Weighting = field(default_factory=Weighting)
    rollout: Rollout | None = None


@dataclass(slots=True)
class Trainee:
    """What is trained: the model, its optimizer and what goes with them."""

    family: Family
    facts: Facts
    transformer: Any
    optimizer: torch.optim.Optimizer
    ema: Ema | None
    device: torch.device
    scaler: torch.amp.GradScaler | None = None
    parameters: list[torch.nn.Parameter] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class StepResult:
    """What one optimizer step did.

    Attributes:
        step: Steps done, from 1.
        loss: Mean loss of the step's samples.
        grad_norm: Global gradient norm before clipping.
        learning_rate: In force in this step.
        seconds: Wall time of the step.
        samples: Pictures in the step.
        skipped: The sentence of a skipped step, or None.
    """

    step: int
    loss: float
    grad_norm: float
    learning_rate: float
    seconds: float
    samples: int
    skipped: str | None = None


class Hook(Protocol):
    """Acts on training between steps; an exception stops the run."""

    def on_start(self, step: int) -> None:
        """Before the first step; ``step`` are done already."""

    def on_step_end(self, result: StepResult) -> None:
        """After each step."""

    def on_stop(self, step: int, finished: bool) -> None:
        """After the last step; ``finished`` is False when stopped early, by the user or by the guard."""


def position_generator(seed: int, position: int, device: torch.device) -> torch.Generator:
    """The generator of one micro-batch's noise: a function of seed and position, so a resumed run draws the same.

    The multiplier is a large odd constant, so neighbouring seeds do not share streams at shifted positions.
    """
    mixed = (seed * 0x9E3779B97F4A7C15 + position * 0xBF58476D1CE4E5B9 + 0x94D049BB133111EB) % 2**63
    return torch.Generator(device).manual_seed(mixed)


def noise_batch(
    batch: Batch, trainee: Trainee, recipe: Recipe, position: int, generator: torch.Generator
) -> NoisedBatch:
    """Room 6 for micro-batch number ``position``, on the trainee's device."""
    latents = batch.latents.to(trainee.device, torch.float32)
    tokens = trainee.facts.tokens(latents.shape[-2], latents.shape[-1])
    count = len(latents)
    sigmas = draw_sigmas(recipe.density, count, tokens, batch.timestep_offset, generator, position * count)
    return noised(latents, sigmas, recipe.perturbation, position // recipe.accumulation, generator)


def rolled_out(
    batch: Batch, shown: NoisedBatch, trainee: Trainee, recipe: Recipe, position: int, generator: torch.Generator
) -> NoisedBatch:
    """Between rooms 6 and 7: samples that the model itself leads to their sigma; nothing is computed without rollout."""
    rollout = recipe.rollout
    if rollout is None:
        return shown
    shift = recipe.density.shift_for(trainee.facts.tokens(*shown.noisy_latents.shape[-2:]))
    offsets = draw_offsets(rollout, shown.sigmas, shift, position // recipe.accumulation, generator)
    text, mask = batch.text.to(trainee.device), batch.mask.to(trainee.device)

    def velocity_of(points: torch.Tensor, sigmas: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        with recipe.precision.context(trainee.device):
            return trainee.family.predict(trainee.transformer, points, sigmas * TIMESTEP_SCALE, text[rows], mask[rows])

    return roll_out(shown, offsets, shift, rollout, velocity_of)


def predict(trainee: Trainee, recipe: Recipe, batch: Batch, shown: NoisedBatch) -> torch.Tensor:
    """The model's velocity, [B, C, h, w]."""
    with recipe.precision.context(trainee.device):
        return trainee.family.predict(
            trainee.transformer,
            shown.noisy_latents,
            shown.timesteps,
            batch.text.to(trainee.device),
            batch.mask.to(trainee.device),
        )


def score(trainee: Trainee, recipe: Recipe, batch: Batch, shown: NoisedBatch) -> torch.Tensor:
    """Room 7: [B] float32 loss of each sample, by the recipe's loss, mask and weighting."""
    prediction = predict(trainee, recipe, batch, shown)
    weights = None if batch.loss_weights is None else batch.loss_weights.to(trainee.device)
    loss = recipe.loss.per_sample(prediction, shown.target, shown.sigmas, weights)
    return loss * recipe.weighting.at(shown.sigmas)


def plain_score(trainee: Trainee, recipe: Recipe, batch: Batch, shown: NoisedBatch) -> torch.Tensor:
    """[B] float32 mean squared error, whatever the recipe's loss and weighting: held-out figures compare across runs."""
    return mean_squared_error(predict(trainee, recipe, batch, shown), shown.target)


def gradients(trainee: Trainee, recipe: Recipe, batches: Iterator[Batch], step: int) -> tuple[list[float], list[str]]:
    """Forward and backward of every micro-batch of a step: the mean over its samples ends in ``.grad``.

    Returns:
        Loss and name of each sample.
    """
    losses: list[torch.Tensor] = []
    names: list[str] = []
    for micro in range(recipe.accumulation):
        batch = next(batches)
        position = step * recipe.accumulation + micro
        generator = position_generator(recipe.seed, position, trainee.device)
        shown = noise_batch(batch, trainee, recipe, position, generator)
        shown = rolled_out(batch, shown, trainee, recipe, position, generator)
        per_sample = score(trainee, recipe, batch, shown)
        loss = per_sample.mean() / recipe.accumulation
        (trainee.scaler.scale(loss) if trainee.scaler else loss).backward()
        losses.append(per_sample.detach())
        names += batch.sample_ids
    if trainee.scaler:
        trainee.scaler.unscale_(trainee.optimizer)
    return torch.cat(losses).tolist(), names


def clip(trainee: Trainee, recipe: Recipe) -> float:
    """Clip the gradients and return their global norm before clipping (infinite or NaN if any element is)."""
    if recipe.clip_norm and not recipe.clip_by_value:
        return torch.nn.utils.clip_grad_norm_(trainee.parameters, recipe.clip_norm).item()
    grads = [p.grad for p in trainee.parameters if p.grad is not None]
    norm = torch.nn.utils.get_total_norm(grads).item()
    if recipe.clip_norm:
        torch.nn.utils.clip_grad_value_(trainee.parameters, recipe.clip_norm)
    return norm


def update(
    trainee: Trainee, guard: Guard, step: int, losses: list[float], names: list[str], grad_norm: float
) -> str | None:
    """Step the optimizer and the EMA if everything is finite; otherwise return the sentence of the skipped step.

    Raises:
        NonFiniteError: Too many steps in a row were skipped.
    """
    skipped = None
    if all(map(math.isfinite, losses)) and math.isfinite(grad_norm):
        if trainee.scaler:
            trainee.scaler.step(trainee.optimizer)
        else:
            trainee.optimizer.step()
        if trainee.ema:
            trainee.ema.update(step)
        guard.good()
    else:
        culprits = [n for n, value in zip(names, losses, strict=True) if not math.isfinite(value)]
        if trainee.scaler is None or culprits:
            skipped = guard.skipped(step, "loss" if culprits else "gradient", culprits or names)
        else:  # an overflowing scale is the scaler's business: it lowers the scale and training goes on
            skipped = guard.scale_overflowed(step)
    if trainee.scaler:
        trainee.scaler.update()
    return skipped


def train(
    trainee: Trainee,
    recipe: Recipe,
    batches: Iterator[Batch],
    start: int,
    total: int,
    hooks: Sequence[Hook],
    should_stop: Callable[[], bool],
) -> int:
    """Train from step ``start`` to ``total``.

    Args:
        trainee: Model and optimizer; changed in place.
        recipe: How.
        batches: Micro-batches from position ``start * accumulation`` on.
        start: Optimizer steps done already.
        total: Optimizer steps of the whole run.
        hooks: Called in order.
        should_stop: Asked after each step; True ends the run cleanly.

    Returns:
        Optimizer steps done.

    Raises:
        NonFiniteError: Too many steps in a row were not finite.
    """
    guard = Guard()
    for hook in hooks:
        if should_stop():  # asked while pictures were drawn: nothing is trained yet, so there is nothing to keep
            return start
        hook.on_start(start)
    trainee.transformer.train()
    step = start
    while step < total and not should_stop():
        began = time.perf_counter()
        learning_rate = recipe.schedule.at(step)
        for group in trainee.optimizer.param_groups:
            group["lr"] = learning_rate
        losses, names = gradients(trainee, recipe, batches, step)
        grad_norm = clip(trainee, recipe)
        step += 1
        try:
            skipped = update(trainee, guard, step, losses, names, grad_norm)
        except NonFiniteError:
            for hook in hooks:  # what was learned until the last good step is saved
                hook.on_stop(step, False)
            raise
        trainee.optimizer.zero_grad(set_to_none=True)
        seconds = time.perf_counter() - began
        mean = sum(losses) / len(losses)
        result = StepResult(step, mean, grad_norm, learning_rate, seconds, samples=len(names), skipped=skipped)
        for hook in hooks:
            hook.on_step_end(result)
    if step > start:
        for hook in hooks:
            hook.on_stop(step, step >= total)
    return step
