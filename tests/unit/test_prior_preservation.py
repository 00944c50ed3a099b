"""Regularisation data keeps the base model's own prediction, and masks hold, whatever adapter is trained."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import small_sana
import torch
import toy

from simpletuner.data.types import Batch
from simpletuner.models import adapters
from simpletuner.models.adapters import LoraSettings, LycorisSettings
from simpletuner.models.sana.family import Sana
from simpletuner.training.learning_rate import Schedule
from simpletuner.training.loop import StepResult, train
from simpletuner.training.step import gradients, keep_base, noise_batch, position_generator, predict, score
from simpletuner.training.trainee import Trainee

LOKR = {"algo": "lokr", "multiplier": 1.0, "linear_dim": 4, "linear_alpha": 4.0, "factor": 4,
        "apply_preset": {"target_module": ["Attention", "GLUMBConv"]}}  # fmt: skip
KINDS: dict[str, Any] = {
    "lora": LoraSettings(4, 4.0),
    "lora-dropout": LoraSettings(4, 4.0, dropout=0.5),
    "dora": LoraSettings(4, 4.0, dora=True),
    "lokr": LycorisSettings(LOKR),
    "loha": LycorisSettings({**LOKR, "algo": "loha"}),
}
CPU = torch.device("cpu")


def trainee(kind: str) -> Trainee:
    transformer = small_sana.base()
    adapter = adapters.put_on(transformer, KINDS[kind], seed=1)
    return Trainee(
        family=Sana(),
        facts=toy.FACTS,
        transformer=transformer,
        optimizer=torch.optim.AdamW(adapter.parameters, 1e-2, weight_decay=0.0),
        ema=None,
        device=CPU,
        parameters=adapter.parameters,
        adapter=adapter,
    )


def batch(number: int, regularisation: bool = False) -> Batch:
    generator = torch.Generator().manual_seed(number)
    latents = torch.randn(2, small_sana.CHANNELS, 4, 4, generator=generator)
    text = torch.randn(2, 5, small_sana.CAPTION, generator=generator)
    return Batch(latents, text, torch.ones(2, 5), ("a.png", "b.png"), "set", regularisation=regularisation)


class Results:
    """A hook that keeps them."""

    def __init__(self) -> None:
        self.all: list[StepResult] = []

    def on_start(self, step: int) -> None: ...

    def acts_at(self, step: int) -> bool:
        return False

    def on_step_end(self, result: StepResult) -> None:
        self.all.append(result)

    def on_stop(self, step: int, finished: bool) -> None: ...


@pytest.mark.parametrize("kind", KINDS)
def test_an_untrained_adapter_has_nothing_to_keep(kind: str) -> None:
    """Its prediction is the base model's, to the bit: loss and gradient are exactly 0."""
    who = trainee(kind)
    who.transformer.train()
    losses = gradients(who, toy.recipe(accumulation=1), iter([batch(1, True)]), 0)
    assert losses.losses.tolist() == [0.0, 0.0] and losses.regularisation == [True, True]
    assert not any(p.grad is not None and p.grad.any() for p in who.parameters)
    ordinary = gradients(who, toy.recipe(accumulation=1), iter([batch(1, False)]), 0)
    assert min(ordinary.losses.tolist()) > 0 and any(p.grad is not None and p.grad.any() for p in who.parameters)


@pytest.mark.parametrize("kind", ["lora", "dora", "lokr", "loha"])
def test_the_target_is_the_base_models_answer_to_the_same_question(kind: str) -> None:
    who, recipe = trainee(kind), toy.recipe()
    with torch.no_grad():
        for parameter in who.parameters:
            parameter += 0.1
    shown = noise_batch(batch(1, True), who, recipe, 0, position_generator(0, 0, CPU))
    kept = keep_base(who, recipe, batch(1, True), shown)
    plain = replace(who, transformer=small_sana.base(), adapter=None)
    assert torch.equal(kept.target, predict(plain, recipe, batch(1), shown)) and not kept.target.requires_grad
    assert kept.noisy_latents is shown.noisy_latents and kept.timesteps is shown.timesteps
    assert not torch.equal(kept.target, predict(who, recipe, batch(1), shown))
    assert keep_base(who, recipe, batch(1, False), shown) is shown
    assert keep_base(plain, recipe, batch(1, True), shown) is shown, "full training: ordinary data"


def drift(kind: str, regularised: bool) -> tuple[float, list[StepResult]]:
    """How far the model's answers to unrelated questions move while it learns something else."""
    who, results, steps = trainee(kind), Results(), 40
    recipe = toy.recipe(schedule=Schedule("constant", 1e-2, 0.0, 0, steps))

    def stream() -> Iterator[Batch]:
        for position in range(steps):
            other = regularised and position % 2 == 1
            yield batch(100 + position % 8, True) if other else batch(1)

    train(who, recipe, stream(), 0, steps, [results], lambda: False)
    who.transformer.eval()
    plain = replace(who, transformer=small_sana.base(), adapter=None)
    with torch.no_grad():
        moved = []
        for number in range(200, 204):
            shown = noise_batch(batch(number), who, recipe, 0, position_generator(1, number, CPU))
            moved.append(predict(who, recipe, batch(number), shown) - predict(plain, recipe, batch(number), shown))
    return torch.cat(moved).square().mean().item(), results.all


@pytest.mark.parametrize("kind", ["lora", "lokr"])
def test_a_model_with_regularisation_data_drifts_less(kind: str) -> None:
    without, plain = drift(kind, regularised=False)
    with_it, results = drift(kind, regularised=True)
    assert with_it < 0.6 * without
    assert all(r.regularisation_loss is None and r.regularisation_samples == 0 for r in plain)
    apart = [r for r in results if r.regularisation_loss is not None]
    assert len(apart) == 20 and all(r.regularisation_samples == r.samples == 2 for r in apart)
    assert all(r.loss is None for r in apart), "it is no part of the course that loss shows"
    assert all(r.loss is not None for r in results if r not in apart)


def test_a_step_of_both_kinds_tells_them_apart() -> None:
    who, results = trainee("lora"), Results()
    with torch.no_grad():
        for parameter in who.parameters:
            parameter += 0.1
    alone = gradients(who, toy.recipe(), iter([batch(1)]), 0)
    who.optimizer.zero_grad()
    train(who, toy.recipe(accumulation=2), iter([batch(1), batch(2, True)]), 0, 1, [results], lambda: False)
    (result,) = results.all
    assert result.samples == 4 and result.regularisation_samples == 2
    assert result.loss == pytest.approx(alone.losses.mean().item()) and result.regularisation_loss not in (
        None,
        result.loss,
    )


def test_dropout_is_drawn_from_seed_and_position_alone() -> None:
    def change(start: int) -> torch.Tensor:
        who = trainee("lora-dropout")
        torch.manual_seed(start)  # whatever was drawn before
        train(who, toy.recipe(), iter([batch(1), batch(2)]), 0, 2, [], lambda: False)
        return torch.cat([p.detach().flatten() for p in who.parameters])

    assert torch.equal(change(1), change(2))


@pytest.mark.parametrize("kind", ["lora", "dora", "lokr", "loha"])
@pytest.mark.parametrize("regularisation", [False, True])
def test_nothing_outside_a_mask_reaches_an_adapters_gradient(kind: str, regularisation: bool) -> None:
    who, recipe = trainee(kind), toy.recipe()
    with torch.no_grad():
        for parameter in who.parameters:
            parameter += 0.05
    mask = torch.zeros(2, 1, 4, 4)
    mask[:, :, :2] = 1.0
    masked = replace(batch(1, regularisation), loss_weights=mask)
    shown = noise_batch(masked, who, recipe, 0, position_generator(0, 0, CPU))
    shown = keep_base(who, recipe, masked, shown)

    def gradient(target: torch.Tensor) -> torch.Tensor:
        for parameter in who.parameters:
            parameter.grad = None
        score(who, recipe, masked, replace(shown, target=target)).sum().backward()
        return torch.cat([p.grad.flatten() for p in who.parameters if p.grad is not None])

    plain = gradient(shown.target)
    assert plain.any()
    assert torch.equal(gradient(shown.target + 100 * (1 - mask)), plain)
    assert not torch.equal(gradient(shown.target + mask), plain)
