"""Held-out loss over datasets, sigmas and micro-batches; the best checkpoint; the alarm as it is told."""

import json
from collections.abc import Callable
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import toy
from rich.console import Console

from simpletuner.config.read import RunConfig, load
from simpletuner.data.cache import TensorStore, content_key
from simpletuner.data.encode import text_key
from simpletuner.data.loader import LatentRef
from simpletuner.errors import ConfigError
from simpletuner.evaluation import eval_loss
from simpletuner.evaluation.eval_loss import EvalResult
from simpletuner.reporting.events import Event, Notification
from simpletuner.reporting.metrics import MetricsFile
from simpletuner.reporting.progress import Reporter
from simpletuner.reporting.stages import Stages
from simpletuner.training import best, checkpoint, translate_validation
from simpletuner.training.held_out import HeldOutLoss
from simpletuner.training.interval import Interval
from simpletuner.training.loop import StepResult
from simpletuner.training.step import score

Load = Callable[..., RunConfig]


@pytest.fixture(scope="module")
def references(tmp_path_factory: pytest.TempPathFactory) -> tuple[TensorStore, list[LatentRef]]:
    store = TensorStore(tmp_path_factory.mktemp("held-out"))
    with store.writer() as writer:
        for number in range(10):
            writer.add(content_key(number), toy.latents_of(number), f"{number}")
            writer.add(text_key(f"caption {number}"), toy.text_of(number), f"{number}")
    return store, [LatentRef(f"{n}.png", store, content_key(n), (f"caption {n}",)) for n in range(10)]


def measured(
    references: tuple[TensorStore, list[LatentRef]], split: dict[str, slice], micro_batch: int = 8, **how: Any
) -> EvalResult:
    store, samples = references
    trainee, recipe = toy.trainee(), toy.recipe()
    stacked = [
        pair
        for name, part in split.items()
        for pair in eval_loss.batches(samples[part], store.get, dataset_id=name, micro_batch=micro_batch)
    ]
    return eval_loss.measure(stacked, lambda b, n: score(trainee, recipe, b, n), trainee.device, **how)


def test_each_dataset_has_its_figure_and_the_whole_is_over_all_pictures(references: Any) -> None:
    split = {"a": slice(0, 7), "b": slice(7, 10)}
    both = measured(references, split)
    alone = {name: measured(references, {name: part}).loss for name, part in split.items()}
    assert both.by_dataset == pytest.approx(alone) and both.samples == 10
    assert both.loss == pytest.approx(0.7 * alone["a"] + 0.3 * alone["b"])
    assert both.loss == pytest.approx(measured(references, {"one": slice(0, 10)}).loss)
    assert measured(references, split, pooled=True).by_dataset == {}
    assert measured(references, {"a": slice(0, 7)}).by_dataset == {}


@pytest.mark.parametrize("micro_batch", [1, 3, 10])
def test_the_micro_batch_changes_nothing_that_counts(references: Any, micro_batch: int) -> None:
    whole, other = (measured(references, {"a": slice(0, 10)}, size) for size in (8, micro_batch))
    assert other.loss == pytest.approx(whole.loss, rel=1e-5)
    assert other.by_sigma == pytest.approx(whole.by_sigma, rel=1e-5)


def test_sigmas_are_the_middles_of_equal_bands(references: Any) -> None:
    assert eval_loss.evenly(5) == eval_loss.SIGMAS == (0.1, 0.3, 0.5, 0.7, 0.9) and eval_loss.evenly(1) == (0.5,)
    fine = measured(references, {"a": slice(0, 10)}, sigmas=eval_loss.evenly(28))
    assert len(fine.by_sigma) == 28 == len(fine.sigmas) and fine.loss == pytest.approx(sum(fine.by_sigma) / 28)
    assert fine.loss != measured(references, {"a": slice(0, 10)}).loss


class Run:
    """A run whose held-out figures are given, and which saves a checkpoint every ``often`` steps."""

    def __init__(self, folder: Path, figures: dict[int, float], often: int, keep: int | None = 1) -> None:
        self.folder, self.figures, self.often, self.keep = folder, figures, often, keep
        self.said, self.events = StringIO(), list[Event]()
        self.step = 0
        stages = Stages()
        stages.emit = self.events.append  # type: ignore[method-assign]
        self.hook = HeldOutLoss(
            Interval(1),
            lambda: EvalResult(self.figures[self.step], (1.0,), 2.0, 1),
            toy.trainee(),
            folder,
            MetricsFile(folder / "metrics.jsonl"),
            Reporter(Console(file=self.said, width=400)),
            stages=stages,
        )

    def go(self, start: int, last: int, loss: Callable[[int], float] = lambda step: 1 / step) -> "Run":
        self.step = start
        self.hook.on_start(start)
        for self.step in range(start + 1, last + 1):
            if self.step % self.often == 0:
                state = checkpoint.TrainingState(self.step)
                checkpoint.save(self.folder, state, lambda folder: None, ({}, {}), self.keep)
            result = StepResult(self.step, loss(self.step), 1.0, 1e-3, 0.1, 2)
            self.hook.metrics.write("step", {"step": self.step, "loss": result.loss, "skipped": None})
            self.hook.on_step_end(result)
        return self

    @property
    def kept(self) -> list[str]:
        return [folder.name for folder in checkpoint.existing(self.folder)]


COURSE = {0: 1.0, 1: 0.8, 2: 0.5, 3: 0.4, 4: 0.6, 5: 0.7, 6: 0.8, 7: 0.9, 8: 0.45}


def test_the_best_checkpoint_is_named_and_outlives_the_others(tmp_path: Path) -> None:
    run = Run(tmp_path, COURSE, often=2).go(0, 6)
    assert best.read(tmp_path) == best.Best("checkpoint-2", 2, 0.5, "weights") and run.kept == [
        "checkpoint-2",
        "checkpoint-6",
    ]
    run = Run(tmp_path, COURSE, often=2).go(6, 8)  # resumed; step 8 is better, so that 2 may go at the next save
    assert best.read(tmp_path) == best.Best("checkpoint-8", 8, 0.45, "weights")
    assert run.kept == ["checkpoint-2", "checkpoint-8"]
    assert json.loads((tmp_path / "best.json").read_text())["checkpoint"] == "checkpoint-8"


def test_a_fresh_run_and_one_set_back_do_not_name_what_is_not_theirs(tmp_path: Path) -> None:
    Run(tmp_path, COURSE, often=2, keep=None).go(0, 8)
    assert best.read(tmp_path) == best.Best("checkpoint-8", 8, 0.45, "weights")
    checkpoint.set_aside(tmp_path, 4)
    assert best.read(tmp_path) is None, "its checkpoint is no longer there"
    Run(tmp_path, COURSE, often=2, keep=None).go(4, 4)
    assert best.read(tmp_path) == best.Best("checkpoint-2", 2, 0.5, "weights")
    checkpoint.set_aside(tmp_path, 0)
    Run(tmp_path, COURSE, often=5).go(0, 1)
    assert not (tmp_path / "best.json").exists()


def test_the_lowest_of_those_saved(tmp_path: Path) -> None:
    assert best.lowest({1: 0.5, 2: 0.4, 3: 0.4, 4: float("nan"), 5: None}, {1, 2, 3, 4, 5}) == 2
    assert best.lowest({1: 0.5, 2: 0.4}, {1}) == 1 and best.lowest({2: 0.4}, {1}) is None
    (tmp_path / "best.json").write_text("{cut off")
    assert best.read(tmp_path) is None


def test_before_the_first_step_it_is_the_base_model_that_is_measured(tmp_path: Path) -> None:
    run = Run(tmp_path, COURSE, often=2).go(0, 1)
    said = run.said.getvalue()
    assert "step 0: held-out loss 1.0000 (base model, " in said and "step 1: held-out loss 0.8000 (weights, " in said
    run.hook.continued = True  # an adapter that goes on from a file acts from the start
    run.hook.measured_at = -1
    run.go(0, 0)
    assert "step 0: held-out loss 1.0000 (weights, " in run.said.getvalue().removeprefix(said)


def test_overfitting_is_said_once_and_goes_on_over_a_resume(tmp_path: Path) -> None:
    run = Run(tmp_path, COURSE, often=2, keep=None).go(0, 5)
    assert "learn its pictures by heart" not in run.said.getvalue()
    run = Run(tmp_path, COURSE, often=2, keep=None).go(5, 7)
    assert (
        run.said.getvalue().count(
            "WARNING: step 6: held-out loss has risen over the last 3 evaluations, from 0.4000 at step 3"
        )
        == 1
    )
    assert (
        run.said.getvalue().count("by heart") == 1
        and "The best checkpoint so far is checkpoint-2." in run.said.getvalue()
    )
    assert [event.severity for event in run.events if isinstance(event, Notification)] == ["warning"]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Load:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pictures").mkdir()

    def make(*evals: str, **options: Any) -> RunConfig:
        entries: list[dict[str, Any]] = [{"id": "a", "instance_data_dir": "pictures"}]
        entries += [{"id": name, "dataset_type": "eval", "instance_data_dir": "pictures"} for name in evals]
        (tmp_path / "multidatabackend.json").write_text(
            json.dumps([*entries, {"id": "t", "dataset_type": "text_embeds"}])
        )
        (tmp_path / "config.json").write_text(json.dumps({"max_train_steps": 5, **options}))
        return load(environ={})

    return make


def test_datasets_are_chosen_by_id(write: Load) -> None:
    assert write("x", "y", eval_dataset_id="y").options.evaluation.eval_dataset_id == ("y",)
    chosen = write("x", "y", eval_dataset_id="y").options
    assert translate_validation.held_out_limits(chosen, {"x": 5, "y": 2}) == {"y": 2}
    with pytest.raises(ConfigError, match="no dataset of this id with dataset_type eval: x, y → did you mean 'x'"):
        write("x", "y", eval_dataset_id=["y", "xx"])
    with pytest.raises(ConfigError, match="there are none at all"):
        write(eval_dataset_id="a")


def test_what_measures_nothing_is_told(write: Load) -> None:
    told = "\n".join(write(eval_steps_interval=3, num_eval_images=2).notices)
    assert "eval_steps_interval, num_eval_images: nothing is measured without" in told
    assert "eval_dataset_pooling" in "\n".join(write("x", eval_dataset_pooling=True).notices)
    assert "eval_" not in "\n".join(write("x", "y", eval_dataset_pooling=True, eval_steps_interval=3).notices)
