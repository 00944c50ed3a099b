"""The held-out loss: a function of weights and pictures alone, and of the EMA weights where there are any."""

from collections.abc import Callable
from io import StringIO
from pathlib import Path

import pytest
import torch
import toy
from rich.console import Console

from simpletuner.data.cache import TensorStore, content_key
from simpletuner.data.encode import text_key
from simpletuner.data.loader import LatentRef
from simpletuner.evaluation import eval_loss
from simpletuner.evaluation.eval_loss import EvalResult
from simpletuner.reporting.metrics import MetricsFile
from simpletuner.reporting.progress import Reporter
from simpletuner.training.held_out import HeldOutLoss
from simpletuner.training.interrupt import GivenUp
from simpletuner.training.interval import Interval
from simpletuner.training.loop import StepResult
from simpletuner.training.step import score
from simpletuner.training.trainee import Trainee

PICTURES = 11  # more than one micro-batch


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> TensorStore:
    store = TensorStore(tmp_path_factory.mktemp("held-out"))
    with store.writer() as writer:
        for number in range(PICTURES):
            writer.add(content_key(number), toy.latents_of(number), f"{number}")
            writer.add(text_key(f"caption {number}"), toy.text_of(number), f"{number}")
    return store


def references(store: TensorStore) -> list[LatentRef]:
    return [LatentRef(f"{n}.png", store, content_key(n), (f"caption {n}",)) for n in range(PICTURES)]


def measure(trainee: Trainee, store: TensorStore, samples: list[LatentRef], at_once: int = PICTURES) -> EvalResult:
    """The loss of the samples, handed over ``at_once`` at a time."""
    groups = [samples[start : start + at_once] for start in range(0, len(samples), at_once)]
    stacked = [pair for group in groups for pair in eval_loss.batches(group, store.get)]
    recipe = toy.recipe()
    return eval_loss.measure(stacked, lambda b, n: score(trainee, recipe, b, n), trainee.device)


def test_two_measurements_are_equal_whatever_was_drawn_between(store: TensorStore) -> None:
    trainee = toy.trainee()
    first = measure(trainee, store, references(store))
    torch.randn(17)
    assert measure(trainee, store, references(store)) == first
    assert measure(toy.trainee(), store, references(store)) == first
    assert first.samples == PICTURES and len(set(first.by_sigma)) == len(eval_loss.SIGMAS)


@pytest.mark.parametrize("at_once", [1, 2, 7])
def test_it_does_not_depend_on_batch_size_or_order(store: TensorStore, at_once: int) -> None:
    whole = measure(toy.trainee(), store, references(store))
    for samples in (references(store), references(store)[::-1]):
        parts = measure(toy.trainee(), store, samples, at_once)
        assert parts.loss == pytest.approx(whole.loss, rel=1e-5)
        assert parts.by_sigma == pytest.approx(whole.by_sigma, rel=1e-5)
        assert parts.zero_predictor == pytest.approx(whole.zero_predictor, rel=1e-5)


def test_it_does_depend_on_weights_and_pictures(store: TensorStore) -> None:
    trainee = toy.trainee()
    whole = measure(trainee, store, references(store))
    assert measure(trainee, store, references(store)[:1]).loss != pytest.approx(whole.loss, rel=1e-3)
    with torch.no_grad():
        trainee.parameters[0].add_(0.5)
    assert measure(trainee, store, references(store)).loss != pytest.approx(whole.loss, rel=1e-3)


def test_every_sigma_and_picture_has_noise_of_its_own_and_all_sigmas_are_scored(store: TensorStore) -> None:
    trainee = toy.trainee()
    measure(trainee, store, references(store), at_once=1)
    noises = []
    shown: list[tuple[torch.Tensor, ...]] = trainee.family.shown  # type: ignore[attr-defined]
    for index, (noisy, sigmas, _) in enumerate(shown):
        latents = toy.latents_of(index // len(eval_loss.SIGMAS))
        noises.append(((noisy[0] - (1 - sigmas[0]) * latents) / sigmas[0]).flatten())
    apart = torch.cdist(torch.stack(noises), torch.stack(noises)) + torch.eye(len(noises)) * 9
    assert apart.min() > 1
    assert torch.cat([s for _, s, _ in shown]).unique().tolist() == pytest.approx(eval_loss.SIGMAS)


def test_nothing_learned_scores_the_zero_predictors_loss(store: TensorStore) -> None:
    trainee = toy.trainee()
    with torch.no_grad():
        for parameter in trainee.parameters:
            parameter.zero_()
    result = measure(trainee, store, references(store))
    assert result.loss == pytest.approx(result.zero_predictor) and result.loss > 1


Hooked = Callable[[Trainee, int | None], tuple[HeldOutLoss, list[tuple[torch.Tensor, bool]]]]


@pytest.fixture
def hooked(tmp_path: Path) -> Hooked:
    """The hook over a trainee, and the weights and training mode at each measurement."""

    def make(trainee: Trainee, interval: int | None) -> tuple[HeldOutLoss, list[tuple[torch.Tensor, bool]]]:
        seen: list[tuple[torch.Tensor, bool]] = []

        def measured() -> EvalResult:
            seen.append((toy.flat(trainee.transformer), trainee.transformer.training))
            return EvalResult(1.0, (1.0,), 2.0, 1)

        metrics = MetricsFile(tmp_path / "metrics.jsonl")
        reporter = Reporter(Console(file=StringIO()))
        return HeldOutLoss(Interval(interval), measured, trainee, tmp_path, metrics, reporter), seen

    return make


def step(number: int) -> StepResult:
    return StepResult(number, 1.0, 1.0, 1e-3, 0.1, 2)


def drifted(ema: bool) -> tuple[Trainee, torch.Tensor, torch.Tensor]:
    """A trainee in training whose live weights have left their average; both as vectors."""
    trainee = toy.trainee(ema=ema)
    trainee.transformer.train()
    average = toy.flat(trainee.transformer)
    with torch.no_grad():
        for parameter in trainee.parameters:
            parameter.add_(1.0)
    return trainee, toy.flat(trainee.transformer), average


def test_it_measures_the_ema_weights_and_gives_the_live_ones_back(hooked: Hooked) -> None:
    trainee, live, average = drifted(ema=True)
    hook, seen = hooked(trainee, 2)
    hook.on_start(5)  # resumed: nothing to measure
    hook.on_step_end(step(6))
    (weights, training), (beside, also) = seen
    assert torch.equal(weights, average) and torch.equal(beside, live) and not training and not also
    assert torch.equal(toy.flat(trainee.transformer), live) and trainee.transformer.training
    assert hook.metrics.read("eval")[0]["weights"] == "EMA weights"
    assert [(line["step"], line["weights"]) for line in hook.metrics.read("eval_live")] == [(6, "live weights")]
    hook.live_beside_ema = False
    hook.on_step_end(step(8))
    assert len(seen) == 3 and len(hook.metrics.read("eval_live")) == 1


def test_without_an_ema_it_measures_the_live_weights(hooked: Hooked) -> None:
    trainee, live, _ = drifted(ema=False)
    hook, seen = hooked(trainee, None)
    hook.on_start(0)
    hook.on_step_end(step(1))
    hook.on_stop(1, finished=True)
    assert len(seen) == 2 and all(torch.equal(weights, live) for weights, _ in seen)
    assert [line["step"] for line in hook.metrics.read("eval")] == [0, 1]


def test_a_run_that_is_to_stop_has_no_half_figure_and_its_live_weights_back(hooked: Hooked) -> None:
    trainee, live, _ = drifted(ema=True)
    hook, _ = hooked(trainee, 2)

    def given_up() -> EvalResult:
        raise GivenUp

    hook.measure = given_up
    hook.on_step_end(step(2))
    hook.on_stop(2, finished=True)
    assert torch.equal(toy.flat(trainee.transformer), live) and trainee.transformer.training
    assert not hook.metrics.read("eval") and not hook.metrics.read("eval_live")


def test_each_figure_tells_whether_the_alarm_is_in_force_also_after_a_resume(tmp_path: Path) -> None:
    metrics, said = MetricsFile(tmp_path / "metrics.jsonl"), StringIO()
    # By step: a rise of three, one dip that is no new low, and a new low.
    losses = {0: 1.0, 1: 0.6, 2: 0.7, 3: 0.8, 4: 0.9, 5: 0.7, 6: 0.5}

    def train(start: int, until: int) -> None:
        figures = iter([losses[n] for n in range(start + bool(start), until + 1)])
        reporter = Reporter(Console(file=said))
        hook = HeldOutLoss(
            Interval(1), lambda: EvalResult(next(figures), (1.0,), 2.0, 1), toy.trainee(), tmp_path, metrics, reporter
        )
        hook.on_start(start)
        for number in range(start + 1, until + 1):
            result = StepResult(number, 1.0 / number, 1.0, 1e-3, 0.1, 2)
            metrics.write("step", {"step": number, "loss": result.loss})
            hook.on_step_end(result)

    train(0, 4)
    train(4, 6)
    told = [line["overfitting"] and line["overfitting"]["low"] for line in metrics.read("eval")]
    assert told == [None, None, None, None, 1, 1, None]
    assert said.getvalue().count("WARNING") == 1
