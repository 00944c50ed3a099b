"""Room 8, Step: one training step, whole and readable: noise, rollout, score, backward, clip, update.

In: a Trainee, a stream of batches, a Recipe. Out: an Outcome, whose figures may still lie on the device. Reads no options.

Two ways of ending a step. Where the optimizer can guard itself (``guarded_step``), the device decides whether the
gradients are fit to be used, and the host goes on without waiting; figures are read late. Everywhere else the host reads
them first and decides.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from simpletuner.data.types import Batch
from simpletuner.flow.losses import mean_squared_error
from simpletuner.flow.path import TIMESTEP_SCALE, NoisedBatch
from simpletuner.flow.perturbation import noised
from simpletuner.flow.rollout import draw_offsets, roll_out
from simpletuner.flow.schedules import draw_sigmas
from simpletuner.training.clipping import clip, global_norm, gradients_of
from simpletuner.training.guard import Guard
from simpletuner.training.optimizers import set_learning_rate
from simpletuner.training.seeds import mixed_seed
from simpletuner.training.trainee import Recipe, Trainee

DROPOUT = 1  # its own stream of random numbers beside the noise of the same position


def position_generator(seed: int, position: int, device: torch.device) -> torch.Generator:
    """The generator of one micro-batch's noise: a function of seed and position, so a resumed run draws the same."""
    return torch.Generator(device).manual_seed(mixed_seed(seed, position))


def moved(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """The tensor on the device; from pinned memory the copy runs while the host goes on."""
    return tensor.to(device, non_blocking=tensor.is_pinned() if device.type == "cuda" else False)


def noise_batch(
    batch: Batch, trainee: Trainee, recipe: Recipe, position: int, generator: torch.Generator
) -> NoisedBatch:
    """Room 6 for micro-batch number ``position``, on the trainee's device."""
    # All ranks draw for the whole global micro-batch and keep their rows: together they are what one rank would draw.
    latents = trainee.ranks.whole(moved(batch.latents, trainee.device).float())
    tokens = trainee.facts.tokens(latents.shape[-2], latents.shape[-1])
    count = len(latents)
    sigmas = draw_sigmas(recipe.density, count, tokens, batch.timestep_offset, generator, batch.first)
    shown = noised(latents, sigmas, recipe.perturbation, position // recipe.accumulation, generator)
    parts = (shown.noisy_latents, shown.sigmas, shown.timesteps, shown.target)
    return NoisedBatch(*map(trainee.ranks.rows, parts))


def rolled_out(
    batch: Batch, shown: NoisedBatch, trainee: Trainee, recipe: Recipe, position: int, generator: torch.Generator
) -> NoisedBatch:
    """Between rooms 6 and 7: samples that the model itself leads to their sigma; nothing is computed without rollout."""
    rollout = recipe.rollout
    if rollout is None:
        return shown
    shift = recipe.density.shift_for(trainee.facts.tokens(*shown.noisy_latents.shape[-2:]))
    sigmas = trainee.ranks.whole(shown.sigmas)
    offsets = trainee.ranks.rows(draw_offsets(rollout, sigmas, shift, position // recipe.accumulation, generator))
    text, mask = moved(batch.text, trainee.device), moved(batch.mask, trainee.device)

    def velocity_of(points: torch.Tensor, sigmas: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        with recipe.precision.context(trainee.device):
            return trainee.family.predict(trainee.transformer, points, sigmas * TIMESTEP_SCALE, text[rows], mask[rows])

    was_training = trainee.transformer.training
    trainee.transformer.eval()  # the samples are the model's own: without dropout, as when it draws a picture
    try:
        return roll_out(shown, offsets, shift, rollout, velocity_of)
    finally:
        trainee.transformer.train(was_training)


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
            moved(batch.text, trainee.device),
            moved(batch.mask, trainee.device) if trainee.device.type == "cuda" else batch.mask,
        )


def score(trainee: Trainee, recipe: Recipe, batch: Batch, shown: NoisedBatch) -> torch.Tensor:
    """Room 7: [B] float32 loss of each sample, by the recipe's loss, mask and weighting."""
    prediction = predict(trainee, recipe, batch, shown)
    weights = None if batch.loss_weights is None else moved(batch.loss_weights, trainee.device)
    loss = recipe.loss.per_sample(prediction, shown.target, shown.sigmas, weights)
    return loss * recipe.weighting.at(shown.sigmas)


def plain_score(trainee: Trainee, recipe: Recipe, batch: Batch, shown: NoisedBatch) -> torch.Tensor:
    """[B] float32 mean squared error, whatever the recipe's loss and weighting: held-out figures compare across runs."""
    return mean_squared_error(predict(trainee, recipe, batch, shown), shown.target)


@dataclass(slots=True)
class Outcome:
    """What one step did.

    Attributes:
        losses: [samples] float32 loss of each sample of all ranks, rank after rank, on the device.
        names: Path of each picture.
        regularisation: Whether each belongs to a regularisation batch.
        grad_norm: [] global gradient norm before clipping, on the device.
        good: [] bool on the device: it took the step; None where the host decides.
        held: [] float32 on the device: parameters that gradient release left out of it; None where the host decides.
        decided: The host has read the figures, and knows what became of the step.
        skipped: The sentence of a skipped step, if ``decided``.
        averaged: Updates that the EMA counted, before it is known whether the device took the step.
        sigmas: [samples] float32 sigma of each sample, on the device.
    """

    losses: torch.Tensor
    names: list[str]
    regularisation: list[bool]
    grad_norm: torch.Tensor
    good: torch.Tensor | None = None
    held: torch.Tensor | None = None
    decided: bool = False
    skipped: str | None = None
    averaged: int = 0
    sigmas: torch.Tensor = field(default_factory=lambda: torch.zeros(0))


def one_step(trainee: Trainee, recipe: Recipe, batches: Iterator[Batch], step: int, guard: Guard) -> Outcome:
    """Optimizer step number ``step`` (from 0), from its batches to new weights.

    Raises:
        NonFiniteError: Too many steps in a row were skipped.
    """
    set_learning_rate(trainee.optimizer, recipe.schedule.at(step))
    outcome = gradients(trainee, recipe, batches, step)
    if outcome.good is None:  # in a graph the update belongs to the same launch, where the device decides
        finish(trainee, recipe, outcome, step, guard)
    if trainee.ema and outcome.good is not None:
        if trainee.ema.waits(step + 1):
            trainee.ranks.wait_until_now(trainee.device)
        before = trainee.ema.updates
        trainee.ema.update(step + 1, outcome.good)
        outcome.averaged = trainee.ema.updates - before
    return outcome


def gradients(trainee: Trainee, recipe: Recipe, batches: Iterator[Batch], step: int) -> Outcome:
    """Forward and backward of every micro-batch of a step: the mean over its samples, of all ranks, ends in ``.grad``.

    What the ranks exchange comes in one order, whether a rank makes its step by a graph or not.
    """
    losses: list[torch.Tensor] = []
    sigmas: list[torch.Tensor] = []
    names: list[Sequence[str]] = []
    regularisation: list[list[bool]] = []
    judged: list[torch.Tensor] = []
    for micro in range(recipe.accumulation):
        batch = next(batches)
        position = step * recipe.accumulation + micro
        generator = position_generator(recipe.seed, position, trainee.device)
        if trainee.adapter and trainee.adapter.draws:  # dropout: the same in a resumed run, and not the noise's numbers
            torch.manual_seed(mixed_seed(mixed_seed(recipe.seed, position), DROPOUT + trainee.ranks.rank))
        shown = noise_batch(batch, trainee, recipe, position, generator)
        if recipe.rollout:  # the host reads how far samples walk, and would hear nothing while it waits for that
            trainee.ranks.wait_until_now(trainee.device)
        if trainee.graphs and (recipe.rollout or batch.regularisation):
            trainee.graphs.make_room()
        shown = rolled_out(batch, shown, trainee, recipe, position, generator)
        shown = keep_base(trainee, recipe, batch, shown)
        names.append(batch.sample_ids)
        regularisation.append([batch.regularisation] * len(batch.sample_ids))
        if trainee.graphs:  # then there is one micro-batch
            work, inputs = learned(trainee, recipe, batch, shown, rate_on(trainee, recipe, step))
            every_loss, every_sigma, *judged = trainee.graphs(work, inputs)
        else:
            per_sample = score(trainee, recipe, batch, shown)
            backward(trainee, per_sample.mean() / recipe.accumulation, rate_on(trainee, recipe, step))
            losses.append(per_sample.detach())
            sigmas.append(shown.sigmas)
    if not trainee.graphs:
        average(trainee)
        every_loss, every_sigma = trainee.ranks.gathered(torch.cat(losses), torch.cat(sigmas))
    in_order = trainee.ranks.in_order
    outcome = Outcome(every_loss, in_order(names), in_order(regularisation), torch.zeros(()), sigmas=every_sigma)
    if judged:
        outcome.grad_norm, outcome.good, outcome.held = judged
    return outcome


def finish(trainee: Trainee, recipe: Recipe, outcome: Outcome, step: int, guard: Guard) -> None:
    """From gradients to new weights; gradients are gone afterwards.

    Every rank clips, judges and steps with the same numbers.
    """
    if trainee.guards_itself:
        rate = rate_on(trainee, recipe, step)
        outcome.grad_norm, outcome.good, outcome.held = guarded_update(trainee, recipe, outcome.losses, rate)
    else:
        if trainee.sums:
            trainee.sums.deliver()
        if trainee.scaler:
            trainee.scaler.unscale_(trainee.optimizer)
        if trainee.release:
            outcome.grad_norm = trainee.release.outcome()[0]
        else:
            outcome.grad_norm = clip(trainee.parameters, recipe.clip_norm, recipe.clip_by_value)
        trainee.ranks.wait_until_now(trainee.device)
        values, norm = outcome.losses.tolist(), outcome.grad_norm.item()
        outcome.skipped = update(trainee, guard, step + 1, values, outcome.names, norm)
        outcome.decided = True
    trainee.optimizer.zero_grad(set_to_none=True)


def learned(
    trainee: Trainee, recipe: Recipe, batch: Batch, shown: NoisedBatch, rate: torch.Tensor
) -> tuple[Callable[..., tuple[torch.Tensor, ...]], tuple[torch.Tensor | None, ...]]:
    """Everything after the noise, as a function of tensors alone, and these tensors on the device."""

    def work(
        noisy: torch.Tensor, sigmas: torch.Tensor, timesteps: torch.Tensor, target: torch.Tensor, rate: torch.Tensor,
        text: torch.Tensor, mask: torch.Tensor, weights: torch.Tensor | None,
    ) -> tuple[torch.Tensor, ...]:  # fmt: skip
        """Losses and sigmas of all ranks, and what ``guarded_update`` returns, the weights being new.

        Where the host decides, no more than the losses and sigmas, the gradients being there.
        """
        again = replace(batch, text=text, mask=mask, loss_weights=weights)
        per_sample = score(trainee, recipe, again, NoisedBatch(noisy, sigmas, timesteps, target))
        backward(trainee, per_sample.mean(), rate)
        average(trainee)
        every_loss, every_sigma = trainee.ranks.gathered(per_sample.detach(), sigmas)
        if not trainee.guards_itself:
            return every_loss, every_sigma
        judged = guarded_update(trainee, recipe, every_loss, rate)
        trainee.optimizer.zero_grad(set_to_none=True)
        return every_loss, every_sigma, *judged

    device = trainee.device
    weights = None if batch.loss_weights is None else moved(batch.loss_weights, device)
    tensors = (shown.noisy_latents, shown.sigmas, shown.timesteps, shown.target, rate)
    return work, (*tensors, moved(batch.text, device), moved(batch.mask, device), weights)


def rate_on(trainee: Trainee, recipe: Recipe, step: int) -> torch.Tensor:
    """[] float32: the learning rate of a step, on the device."""
    return torch.full((), recipe.schedule.at(step), device=trainee.device)


def backward(trainee: Trainee, loss: torch.Tensor, rate: torch.Tensor) -> None:
    """Backward of one micro-batch's loss, by way of the scaler, the gradient release or the float32 sums.

    Gradient release steps the weights within it, at this rate.
    """
    if trainee.release:
        trainee.release.backward(loss, rate)
        return
    (trainee.scaler.scale(loss) if trainee.scaler else loss).backward()
    if trainee.sums:
        trainee.sums.collect()


def average(trainee: Trainee) -> None:
    """The mean of all ranks' gradients, in their place; alone they stay as they are.

    Slices are equally long, so it is the gradient of the global batch.
    """
    gradients = trainee.sums.totals() if trainee.sums else gradients_of(trainee.parameters)
    (trainee.averaging.finish if trainee.averaging else trainee.ranks.average)(gradients)


def guarded_update(
    trainee: Trainee, recipe: Recipe, losses: torch.Tensor, rate: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Clip and step where the device itself sees that everything is finite; the host does not wait.

    The factor of clipping goes into the optimizer's own pass over the gradients. A clipped element needs one of its own. With
    gradient release all this was done in backward.

    Args:
        trainee: With gradients.
        recipe: Says how to clip.
        losses: Of this step's samples.
        rate: [] float32 learning rate on the device.

    Returns:
        [] float32, the global norm before clipping; [] bool, whether the step was taken; [] float32, how many parameters were
        left out of it.
    """
    if trainee.release:
        return trainee.release.outcome()
    if trainee.sums:
        trainee.sums.deliver()
    norm = global_norm(trainee.parameters)
    good = torch.isfinite(norm) & torch.isfinite(losses).all()
    scale = torch.ones_like(norm)
    if recipe.clip_norm and recipe.clip_by_value:
        torch.nn.utils.clip_grad_value_(trainee.parameters, recipe.clip_norm)
    elif recipe.clip_norm:
        scale = (recipe.clip_norm / (norm + 1e-6)).clamp(max=1.0)  # as torch's clip_grad_norm_
    guarded: Any = trainee.optimizer
    guarded.guarded_step(rate, scale, good)
    return norm, good, torch.zeros_like(norm)


def update(
    trainee: Trainee, guard: Guard, step: int, losses: list[float], names: list[str], grad_norm: float
) -> str | None:
    """Step the optimizer and the EMA if everything is finite; otherwise return the sentence of the skipped step.

    Raises:
        NonFiniteError: Too many steps in a row were skipped.
    """
    if all(map(math.isfinite, losses)) and math.isfinite(grad_norm):
        skipped = _step_optimizer(trainee, guard, step, names)
        if trainee.ema:
            trainee.ema.update(step)
    elif trainee.scaler and all(map(math.isfinite, losses)):
        # An overflowing scale is the scaler's business: it lowers the scale and training goes on.
        skipped = guard.scale_overflowed(step)
    else:
        skipped = guard.verdict(step, losses, names, grad_norm)
    if trainee.scaler:
        trainee.scaler.update()
    return skipped


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
