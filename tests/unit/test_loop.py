"""One step against sums done by hand: accumulation, noise, clipping, learning rate, hooks."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
import toy

from simpletuner.data.types import Batch
from simpletuner.errors import DataError
from simpletuner.flow.rollout import Ramp, Rollout
from simpletuner.training.adamw_bf16 import AdamWBF16
from simpletuner.training.ema import Ema
from simpletuner.training.learning_rate import Schedule
from simpletuner.training.loop import Hook, StepResult, train
from simpletuner.training.ranks import Ranks
from simpletuner.training.trainee import Recipe, Trainee

WALK: dict[str, Any] = {"rollout": Rollout(6, Ramp(1.0, 1.0), "biased_late", "euler")}


@dataclass
class Notes:
    """A hook that writes down what it is told, and after how many steps it asks to stop."""

    told: list[Any] = field(default_factory=list)

    def on_start(self, step: int) -> None:
        self.told.append(("start", step))

    def acts_at(self, step: int) -> bool:
        return False

    def on_step_end(self, result: StepResult) -> None:
        self.told.append(result)

    def on_stop(self, step: int, finished: bool) -> None:
        self.told.append(("stop", step, finished))

    @property
    def results(self) -> list[StepResult]:
        return [entry for entry in self.told if isinstance(entry, StepResult)]


def run(
    trainee: Trainee, recipe: Recipe, batches: Sequence[Batch], start: int = 0, hooks: Sequence[Hook] = ()
) -> torch.Tensor:
    """Train over exactly these micro-batches; the change of all weights as one vector."""
    before = toy.flat(trainee.transformer)
    stream = iter(batches)
    total = start + len(batches) // recipe.accumulation
    assert train(trainee, recipe, stream, start, total, hooks, lambda: False) == total
    assert next(stream, None) is None
    return toy.flat(trainee.transformer) - before


def draws(trainee: Trainee, batches: Sequence[Batch]) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """(sigmas, noise) of each micro-batch, worked out from what the model was shown."""
    shown: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = trainee.family.shown  # type: ignore[attr-defined]
    found = []
    for (noisy, sigmas, _), batch in zip(shown, batches, strict=True):
        weight = sigmas[:, None, None, None]
        found.append((sigmas, (noisy - (1 - weight) * batch.latents) / weight))
    return found


def gradient_by_hand(trainee: Trainee, batches: Sequence[Batch]) -> torch.Tensor:
    """Of the mean loss over all pictures of all micro-batches as ONE batch, at fresh weights and the same draws."""
    fresh = toy.trainee()
    losses = []
    for (noisy, sigmas, text), (_, noise), batch in zip(
        trainee.family.shown,  # type: ignore[attr-defined]
        draws(trainee, batches),
        batches,
        strict=True,
    ):
        error = fresh.transformer(noisy, sigmas, text) - (noise - batch.latents)
        losses.append(error.square().flatten(1).mean(1))
    torch.cat(losses).mean().backward()
    return torch.cat([p.grad.flatten() for p in fresh.parameters if p.grad is not None])


def test_accumulated_micro_batches_are_one_large_batch() -> None:
    """Batch 1 × accumulation 4 and batch 2 × 2 make the update of the mean loss over the 4 pictures."""
    for batches in ([toy.batch(n) for n in range(4)], [toy.batch(0, 1), toy.batch(2, 3)]):
        trainee, notes = toy.trainee(), Notes()
        update = run(trainee, toy.recipe(accumulation=len(batches)), batches, hooks=[notes])
        torch.testing.assert_close(update, -gradient_by_hand(trainee, batches), rtol=1e-4, atol=1e-6)
        (result,) = notes.results
        assert result.samples == 4 and result.grad_norm == pytest.approx(update.norm().item(), rel=1e-4)


def test_gradients_do_not_leak_into_the_next_step() -> None:
    """After a step that changes nothing, the second step's gradient is what it would be alone."""
    trainee, notes = toy.trainee(), Notes()
    batches = [toy.batch(0), toy.batch(1)]
    run(trainee, toy.recipe(schedule=Schedule("constant", 1e-30, 0.0, 0, 9)), batches, hooks=[notes])
    alone = Notes()
    run(toy.trainee(), toy.recipe(), batches[1:], start=1, hooks=[alone])
    assert notes.results[1].grad_norm == pytest.approx(alone.results[0].grad_norm, rel=1e-5)


def test_every_micro_batch_has_noise_of_its_own_and_a_resumed_run_the_same() -> None:
    batches = [toy.batch(0, 0)] * 6  # the same picture twice in every micro-batch: whatever differs is drawn
    recipe = toy.recipe(accumulation=2)
    trainee = toy.trainee()
    run(trainee, recipe, batches)
    whole = draws(trainee, batches)
    sigmas = torch.cat([sigma for sigma, _ in whole])
    noises = torch.cat([noise for _, noise in whole]).flatten(1)
    apart = torch.cdist(noises, noises) + torch.eye(12) * 9
    assert len(set(sigmas.tolist())) == 12 and apart.min() > 1, "no two pictures share sigma or noise"
    for start, seed, same in ((1, 3, True), (1, 4, False)):
        other = toy.trainee()
        run(other, toy.recipe(accumulation=2, seed=seed), batches[2:], start=start)
        again = torch.cat([sigma for sigma, _ in draws(other, batches[2:])])
        assert torch.equal(again, sigmas[4:]) is same


def test_a_datasets_timestep_offset_moves_its_sigmas() -> None:
    def mean_sigma(offset: float) -> float:
        trainee, batches = toy.trainee(), [toy.batch(*range(8), timestep_offset=offset)]
        run(trainee, toy.recipe(), batches)
        return draws(trainee, batches)[0][0].mean().item()

    assert mean_sigma(-2.0) + 0.2 < mean_sigma(0.0) < mean_sigma(2.0) - 0.1


BOUND = 0.02


def test_clipping_by_norm_by_value_and_not_at_all() -> None:
    batches = [toy.batch(0, 1)]
    free = run(toy.trainee(), toy.recipe(clip_norm=0.0), batches)
    by_norm = run(toy.trainee(), toy.recipe(clip_norm=BOUND), batches)
    by_value = run(toy.trainee(), toy.recipe(clip_norm=BOUND, clip_by_value=True), batches)
    assert free.norm() > 10 * BOUND and free.abs().max() > BOUND > free.abs().min()
    torch.testing.assert_close(by_norm, free * BOUND / free.norm(), rtol=1e-4, atol=0)
    torch.testing.assert_close(by_value, free.clamp(-BOUND, BOUND), rtol=1e-4, atol=1e-9)
    loose = run(toy.trainee(), toy.recipe(clip_norm=1e3), batches)
    torch.testing.assert_close(loose, free)


@pytest.mark.parametrize(("bound", "by_value"), [(0.0, False), (BOUND, False), (BOUND, True)])
def test_the_reported_norm_is_the_one_before_clipping(bound: float, by_value: bool) -> None:
    notes, batches = Notes(), [toy.batch(0, 1)]
    run(toy.trainee(), toy.recipe(clip_norm=bound, clip_by_value=by_value), batches, hooks=[notes])
    free = run(toy.trainee(), toy.recipe(), batches)
    assert notes.results[0].grad_norm == pytest.approx(free.norm().item(), rel=1e-4)


def test_each_step_uses_its_own_learning_rate() -> None:
    schedule = Schedule("linear", 0.1, 0.0, 2, 6)
    notes, batches = Notes(), [toy.batch(n) for n in range(4)]
    run(toy.trainee(), toy.recipe(schedule=schedule), batches, hooks=[notes])
    assert [r.learning_rate for r in notes.results] == [schedule.at(step) for step in range(4)]
    warm = run(toy.trainee(), toy.recipe(schedule=schedule), batches[:1])
    full = run(toy.trainee(), toy.recipe(schedule=Schedule("constant", 0.1, 0.0, 0, 6)), batches[:1])
    torch.testing.assert_close(warm * 2, full, rtol=1e-4, atol=1e-7)


def test_hooks_are_called_in_order_around_every_step() -> None:
    told: list[str] = []

    class Named(Notes):
        def on_start(self, step: int) -> None:
            told.append(f"{id(self)} start")

        def on_step_end(self, result: StepResult) -> None:
            told.append(f"{id(self)} {result.step}")

        def on_stop(self, step: int, finished: bool) -> None:
            told.append(f"{id(self)} stop {step} {finished}")

    hooks = [Named(), Named()]
    run(toy.trainee(), toy.recipe(), [toy.batch(0)] * 2, start=5, hooks=hooks)
    assert told == [f"{id(hook)} {what}" for what in ("start", "6", "7", "stop 7 True") for hook in hooks]


@pytest.mark.parametrize("moment", ["on_start", "on_step_end", "on_stop"])
def test_an_error_in_a_hook_stops_the_run(moment: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError("the disk is full")

    hook = Notes()
    monkeypatch.setattr(hook, moment, fail)
    with pytest.raises(OSError, match="the disk is full"):
        run(toy.trainee(), toy.recipe(), [toy.batch(0)] * 2, hooks=[hook])


@pytest.mark.parametrize("steps", [0, 2])
def test_pictures_that_are_gone_cost_no_step_that_was_taken(steps: int) -> None:
    """A drive that is not there any more: what was learned is saved, and nothing where nothing was."""

    def batches() -> Iterator[Batch]:
        yield from [toy.batch(0)] * steps
        raise DataError("no picture of this batch can be decoded")

    notes = Notes()
    with pytest.raises(DataError, match="no picture"):
        train(toy.trainee(), toy.recipe(), batches(), 0, 9, [notes], lambda: False)
    assert notes.told[-1] == (("stop", 2, False) if steps else ("start", 0))
    assert len(notes.results) == steps


def test_a_stop_is_clean_and_told_as_unfinished() -> None:
    notes = Notes()
    done = train(toy.trainee(), toy.recipe(), iter([toy.batch(0)] * 9), 0, 9, [notes], lambda: len(notes.told) >= 3)
    assert done == 2 and notes.told[-1] == ("stop", 2, False)


def test_a_stop_before_the_first_step_keeps_nothing() -> None:
    """Ctrl-C while the first pictures are drawn: no more of them, and no checkpoint of untrained weights."""
    first, second = Notes(), Notes()
    done = train(toy.trainee(), toy.recipe(), iter([]), 0, 9, [first, second], lambda: bool(first.told))
    assert done == 0 and first.told == [("start", 0)] and second.told == []


def test_the_ema_follows_the_weights_and_the_model_is_in_training_mode() -> None:
    trainee = toy.trainee(lr=0.1, ema=True)
    assert trainee.ema is not None
    run(trainee, toy.recipe(schedule=Schedule("constant", 0.1, 0.0, 0, 9)), [toy.batch(0)] * 3)
    assert trainee.ema.updates == 3
    average = torch.cat([tensor.flatten() for tensor in trainee.ema.shadow])
    assert not torch.equal(average, toy.flat(trainee.transformer))
    assert all(trainee.family.in_training)  # type: ignore[attr-defined]


def test_a_rollout_walks_in_evaluation_mode_and_the_step_trains() -> None:
    trainee = toy.trainee()
    run(trainee, toy.recipe(**WALK), [toy.batch(0, 1)])
    *walk, step = trainee.family.in_training  # type: ignore[attr-defined]
    assert walk and not any(walk) and step and trainee.transformer.training


class Looking(Ranks):
    """Counts how often the other processes are looked after."""

    looked = 0

    def wait_until_now(self, device: torch.device) -> None:
        self.looked += 1


@pytest.mark.parametrize(
    ("changes", "average_on_cpu", "host", "looked"),
    [
        ({}, False, True, 1),
        (WALK, False, True, 2),
        (WALK, False, False, 1),
        ({}, True, False, 1),
        ({}, False, False, 0),
    ],
)
def test_the_others_are_looked_after_before_the_host_waits_for_its_device(
    changes: dict[str, Any], average_on_cpu: bool, host: bool, looked: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For how far samples walk, for weights that are averaged on the CPU, for the figures that it decides by."""
    trainee, ranks = toy.trainee(ema=True), Looking()
    trainee.ranks = ranks
    if not host:
        trainee.optimizer = AdamWBF16(trainee.parameters, lr=1.0)
    monkeypatch.setattr(Ema, "waits", lambda ema, step: average_on_cpu)
    run(trainee, toy.recipe(**changes), [toy.batch(0, 1)] * 3)
    assert ranks.looked == 3 * looked


@pytest.mark.parametrize("clipped", [{}, {"clip_norm": 0.1}, {"clip_norm": 0.02, "clip_by_value": True}])
def test_where_the_host_decides_a_graph_ends_with_the_gradients(clipped: dict[str, Any]) -> None:
    batches = [toy.batch(0, 1), toy.batch(2, 3), toy.batch(4, 5)]
    batches[1].latents[0] = float("nan")
    plain, other = toy.trainee(ema=True), toy.trainee(ema=True)
    other.graphs = toy.Replayed()  # type: ignore[assignment]
    assert not other.guards_itself
    notes, more = Notes(), Notes()
    change = run(plain, toy.recipe(**clipped), batches, hooks=[notes])
    assert torch.equal(run(other, toy.recipe(**clipped), batches, hooks=[more]), change)
    assert change.abs().max() > 0 and [r.skipped for r in notes.results] == [r.skipped for r in more.results]
    assert [r.grad_norm for r in notes.results][::2] == [r.grad_norm for r in more.results][::2]
    assert plain.ema is not None and other.ema is not None and plain.ema.updates == other.ema.updates == 2
