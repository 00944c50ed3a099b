"""Room 8, Step: the training loop, whole and readable from top to bottom.

In: a Trainee, a stream of batches, a Recipe. Out: StepResults to hooks and listeners. Reads no options.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch

from simpletuner.data.types import Batch
from simpletuner.errors import NonFiniteError
from simpletuner.flow.losses import Loss, Weighting, mean_squared_error
from simpletuner.flow.path import TIMESTEP_SCALE, NoisedBatch
from simpletuner.flow.perturbation import Perturbation, noised
from simpletuner.flow.rollout import Rollout, draw_offsets, roll_out
from simpletuner.flow.schedules import Density, draw_sigmas
from simpletuner.models.adapters import Adapter
from simpletuner.models.base import Facts, Family
from simpletuner.training.ema import Ema
from simpletuner.training.gradient_release import GradientRelease
from simpletuner.training.gradient_sums import Float32Sums
from simpletuner.training.guard import Guard
from simpletuner.training.learning_rate import Schedule
from simpletuner.training.optimizers import set_learning_rate
from simpletuner.training.precision import Precision
from simpletuner.training.seeds import mixed_seed

DROPOUT = 1  # its own stream of random numbers beside the noise of the same position


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
    """What is trained: the model, its optimizer and what goes with them.

    Attributes:
        release: Steps the optimizer inside backward, or None for one step after it.
        sums: Adds up micro-batches in float32, or None for the weights' dtype.
    """

    family: Family
    facts: Facts
    transformer: Any
    optimizer: torch.optim.Optimizer
    ema: Ema | None
    device: torch.device
    scaler: torch.amp.GradScaler | None = None
    parameters: list[torch.nn.Parameter] = field(default_factory=list)
    adapter: Adapter | None = None
    release: GradientRelease | None = None
    sums: Float32Sums | None = None


@dataclass(frozen=True, slots=True)
class StepResult:
    """What one optimizer step did.

    Attributes:
        step: Steps done, from 1.
        loss: Mean loss of the step's ordinary samples, None without any: what keeps a model is no part of its course.
        grad_norm: Global gradient norm before clipping.
        learning_rate: In force in this step.
        seconds: Wall time of the step.
        samples: Pictures in the step.
        skipped: The sentence of a skipped step, or None.
        regularisation_loss: Mean loss of the step's regularisation samples, or None without any.
        regularisation_samples: How many of ``samples`` these are.
    """

    step: int
    loss: float | None
    grad_norm: float
    learning_rate: float
    seconds: float
    samples: int
    skipped: str | None = None
    regularisation_loss: float | None = None
    regularisation_samples: int = 0


@dataclass(slots=True)
class Losses:
    """Of each sample of one step, in order.

    Attributes:
        values: Loss.
        names: Path of the picture.
        regularisation: Whether it belongs to a regularisation batch.
    """

    values: list[float] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    regularisation: list[bool] = field(default_factory=list)

    def mean(self, regularisation: bool) -> float | None:
        """Mean over one kind of samples, None without any."""
        kind = [v for v, r in zip(self.values, self.regularisation, strict=True) if r is regularisation]
        return sum(kind) / len(kind) if kind else None


class Hook(Protocol):
    """Acts on training between steps; an exception stops the run."""

    def on_start(self, step: int) -> None:
        """Before the first step; ``step`` are done already."""

    def on_step_end(self, result: StepResult) -> None:
        """After each step."""

    def on_stop(self, step: int, finished: bool) -> None:
        """After the last step; ``finished`` is False when stopped early, by the user or by the guard."""


def position_generator(seed: int, position: int, device: torch.device) -> torch.Generator:
    """The generator of one micro-batch's noise: a function of seed and position, so a resumed run draws the same."""
    return torch.Generator(device).manual_seed(mixed_seed(seed, position))


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


def keep_base(trainee: Trainee, recipe: Recipe, batch: Batch, shown: NoisedBatch) -> NoisedBatch:
    """Prior preservation: in a regularisation batch the target is what the model says without its adapter.

    Same noise, time and text; no gradient. Other batches, and runs without an adapter, stay as they are.
    Source: Li & Hoiem 2016, Learning without Forgetting (arXiv 1606.09282): old outputs as targets on new inputs.
    """
    if not batch.regularisation or trainee.adapter is None:
        return shown
    with torch.no_grad(), trainee.adapter.disabled():
        return replace(shown, target=predict(trainee, recipe, batch, shown).float())


def predict(trainee: Trainee, recipe: Recipe, batch: Batch, shown: NoisedBatch) -> torch.Tensor:
    """The model's velocity, [B, C, h, w]."""
    with recipe.precision.context(trainee.device):
        return trainee.family.predict(
            trainee.transformer,
            shown.noisy_latents,
            shown.timesteps,
            batch.text.to(trainee.device),
            batch.mask,
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


def gradients(trainee: Trainee, recipe: Recipe, batches: Iterator[Batch], step: int) -> Losses:
    """Forward and backward of every micro-batch of a step: the mean over its samples ends in ``.grad``."""
    losses: list[torch.Tensor] = []
    step_losses = Losses()
    for micro in range(recipe.accumulation):
        batch = next(batches)
        position = step * recipe.accumulation + micro
        generator = position_generator(recipe.seed, position, trainee.device)
        if trainee.adapter and trainee.adapter.draws:  # dropout: the same in a resumed run, and not the noise's numbers
            torch.manual_seed(mixed_seed(mixed_seed(recipe.seed, position), DROPOUT))
        shown = noise_batch(batch, trainee, recipe, position, generator)
        shown = rolled_out(batch, shown, trainee, recipe, position, generator)
        shown = keep_base(trainee, recipe, batch, shown)
        per_sample = score(trainee, recipe, batch, shown)
        loss = per_sample.mean() / recipe.accumulation
        backward(trainee, loss)
        losses.append(per_sample.detach())
        step_losses.names += batch.sample_ids
        step_losses.regularisation += [batch.regularisation] * len(batch.sample_ids)
    if trainee.sums:
        trainee.sums.deliver()
    if trainee.scaler:
        trainee.scaler.unscale_(trainee.optimizer)
    step_losses.values = torch.cat(losses).tolist()
    return step_losses


def backward(trainee: Trainee, loss: torch.Tensor) -> None:
    """Backward of one micro-batch's loss, by way of the scaler, the gradient release or the float32 sums."""
    if trainee.release:
        trainee.release.backward(loss)
        return
    (trainee.scaler.scale(loss) if trainee.scaler else loss).backward()
    if trainee.sums:
        trainee.sums.collect()


def clip(trainee: Trainee, recipe: Recipe) -> float:
    """Clip the gradients and return their global norm before clipping (infinite or NaN if any element is).

    With gradient release they are clipped and gone already; the norm is that of those that were finite.
    """
    if trainee.release:
        return trainee.release.norm()
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
        skipped = _step_optimizer(trainee, guard, step, names)
        if trainee.ema:
            trainee.ema.update(step)
    else:
        culprits = [n for n, value in zip(names, losses, strict=True) if not math.isfinite(value)]
        if trainee.scaler is None or culprits:
            skipped = guard.skipped(step, "loss" if culprits else "gradient", culprits or names)
        else:  # an overflowing scale is the scaler's business: it lowers the scale and training goes on
            skipped = guard.scale_overflowed(step)
    if trainee.scaler:
        trainee.scaler.update()
    return skipped


def result_of(
    step: int, losses: Losses, grad_norm: float, learning_rate: float, seconds: float, skipped: str | None
) -> StepResult:
    """What hooks are told of a step; regularisation samples apart."""
    return StepResult(
        step=step,
        loss=losses.mean(False),
        grad_norm=grad_norm,
        learning_rate=learning_rate,
        seconds=seconds,
        samples=len(losses.values),
        skipped=skipped,
        regularisation_loss=losses.mean(True),
        regularisation_samples=sum(losses.regularisation),
    )


def _step_optimizer(trainee: Trainee, guard: Guard, step: int, names: list[str]) -> str | None:
    """Apply finite gradients; with gradient release that was done in backward, maybe not for every parameter."""
    if trainee.release:
        if trainee.release.held:
            return guard.held_back(step, trainee.release.held, trainee.release.count, names)
    elif trainee.scaler:
        trainee.scaler.step(trainee.optimizer)
    else:
        trainee.optimizer.step()
    guard.good()
    return None


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
        set_learning_rate(trainee.optimizer, learning_rate)
        losses = gradients(trainee, recipe, batches, step)
        grad_norm = clip(trainee, recipe)
        step += 1
        try:
            skipped = update(trainee, guard, step, losses.values, losses.names, grad_norm)
        except NonFiniteError:
            for hook in hooks:  # what was learned until the last good step is saved
                hook.on_stop(step, False)
            raise
        trainee.optimizer.zero_grad(set_to_none=True)
        seconds = time.perf_counter() - began
        result = result_of(step, losses, grad_norm, learning_rate, seconds, skipped)
        for hook in hooks:
            hook.on_step_end(result)
    if step > start:
        for hook in hooks:
            hook.on_stop(step, step >= total)
    return step
