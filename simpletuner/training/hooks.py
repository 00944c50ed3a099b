"""Hooks: what acts between steps, in the order run.py lists them. An exception in one stops the run."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path

from simpletuner.evaluation.eval_loss import EvalResult
from simpletuner.reporting.events import CheckpointSaved
from simpletuner.reporting.metrics import MetricsFile
from simpletuner.reporting.progress import Bar, Reporter
from simpletuner.reporting.stages import Stages
from simpletuner.training.loop import StepResult
from simpletuner.training.optimizers import evaluation_weights
from simpletuner.training.step import Trainee
from simpletuner.wording import counted

SMOOTHING = 0.9


def due(interval: int | None, step: int) -> bool:
    """Whether something is to be done after this step (from 1); None is never."""
    return interval is not None and interval > 0 and step % interval == 0


class Progress:
    """The training bar and the metrics file. Acts on nothing."""

    def __init__(self, bar: Bar, metrics: MetricsFile, reporter: Reporter) -> None:
        """Show on ``bar``; skipped steps are said aloud."""
        self._bar, self._metrics, self._reporter = bar, metrics, reporter
        self._smooth: float | None = None

    def on_start(self, step: int) -> None:
        """Go on with the smoothed loss of the steps that were done before."""
        done = {line["step"]: line for line in self._metrics.read("step") if line["step"] <= step} if step else {}
        for _, line in sorted(done.items()):  # of a step that was trained twice the later line counts
            if not line["skipped"]:
                self._note(line["loss"])

    def acts_at(self, step: int) -> bool:
        """Never: it only tells."""
        return False

    def on_step_end(self, result: StepResult) -> None:
        """One line in the file, one move of the bar."""
        self._metrics.write("step", asdict(result))
        if result.skipped:
            self._reporter.say(result.skipped)
        else:
            self._note(result.loss)
        loss = "-" if self._smooth is None else f"{self._smooth:.3f}"
        speed = result.samples / result.seconds
        self._bar.advance(1, f"smoothed loss {loss}  lr {result.learning_rate:.2e}  {speed:.1f} pictures/s")

    def _note(self, loss: float | None) -> None:
        """One more loss in the smoothed one; None where a step had only regularisation data."""
        if loss is not None:
            before = loss if self._smooth is None else self._smooth
            self._smooth = SMOOTHING * before + (1 - SMOOTHING) * loss

    def on_stop(self, step: int, finished: bool) -> None:
        """Nothing to do."""


@dataclass(slots=True)
class Checkpointing:
    """Saves every ``interval`` steps and at the end.

    Attributes:
        interval: Optimizer steps, or None for the end only.
        save: Writes a checkpoint for the given step and returns its folder.
        saved_at: The last step saved.
    """

    interval: int | None
    save: Callable[[int], Path]
    reporter: Reporter
    stages: Stages = field(default_factory=Stages)
    saved_at: int = -1

    def on_start(self, step: int) -> None:
        """What was resumed from is on disk already."""
        self.saved_at = step if step else -1

    def acts_at(self, step: int) -> bool:
        """On the interval."""
        return due(self.interval, step)

    def on_step_end(self, result: StepResult) -> None:
        """Save on the interval."""
        if self.acts_at(result.step):
            self._save(result.step)

    def on_stop(self, step: int, finished: bool) -> None:
        """Save the end, wherever it is."""
        if step != self.saved_at:
            self._save(step, finished)

    def now(self, step: int) -> None:
        """Save, unless this step is saved."""
        if step != self.saved_at:
            self._save(step)

    def _save(self, step: int, is_final: bool = False) -> None:
        with self.stages.stage("checkpoint_save", f"Saving a checkpoint at step {step}"):
            folder = self.save(step)
        self.saved_at = step
        self.reporter.say(f"step {step}: saved {folder.name}")
        message = f"Checkpoint of step {step}"
        self.stages.emit(CheckpointSaved(message=message, path=folder, step=step, is_final=is_final))


@dataclass(slots=True)
class HeldOutLoss:
    """Held-out loss before, every ``interval`` steps and after; of the EMA weights where there are any.

    In the metrics file ``eval`` is the figure of the weights that are exported, and ``eval_live`` that of the live ones
    beside an EMA.

    Attributes:
        interval: Optimizer steps, or None for before and after only.
        measure: Gives the figure for the weights now in the model.
        live_beside_ema: Whether live weights are measured as well where there is an EMA.
        trainee: For its EMA, optimizer and training mode.
        metrics: Where figures are kept, also those of the run's first half when it was resumed.
        continued: Whether the adapter goes on from a file, and so acts from the start.
    """

    interval: int | None
    measure: Callable[[], EvalResult]
    trainee: Trainee
    metrics: MetricsFile
    reporter: Reporter
    live_beside_ema: bool = True
    measured_at: int = -1
    continued: bool = False

    def on_start(self, step: int) -> None:
        """The figure of what training starts from, once."""
        if step == 0:
            self._measure(0)

    def acts_at(self, step: int) -> bool:
        """On the interval."""
        return due(self.interval, step)

    def on_step_end(self, result: StepResult) -> None:
        """Measure on the interval."""
        if self.acts_at(result.step):
            self._measure(result.step)

    def on_stop(self, step: int, finished: bool) -> None:
        """Measure the end; not when stopped on the way."""
        if finished and step != self.measured_at and step:
            self._measure(step)

    def figures(self) -> dict[int, float]:
        """Held-out loss by step, over all parts of the run."""
        return {line["step"]: line["loss"] for line in self.metrics.read("eval")}

    def _measure(self, step: int) -> None:
        transformer = self.trainee.transformer
        was_training = transformer.training
        transformer.eval()
        ema = self.trainee.ema if step else None
        adapter = self.trainee.adapter
        off = adapter.disabled() if adapter and not step and not self.continued else nullcontext()
        beside = ""
        if ema:
            with ema.applied():
                result = self.measure()
            if self.live_beside_ema:
                live = self.measure()
                self.metrics.write("eval_live", {"step": step, **asdict(live), "weights": "live weights"})
                beside = f", live {live.loss:.4f}"
        else:
            with evaluation_weights(self.trainee.optimizer), off:
                result = self.measure()
        transformer.train(was_training)
        self.measured_at = step
        kind = "EMA weights" if ema else "weights"
        self.metrics.write("eval", {"step": step, **asdict(result), "weights": kind})
        self.reporter.say(
            f"step {step}: held-out loss {result.loss:.4f} ({kind}{beside}, {counted(result.samples, 'picture')}; "
            f"a model that has learned nothing scores {result.zero_predictor:.2f})"
        )
