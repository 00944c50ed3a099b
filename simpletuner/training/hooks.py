"""Hooks: what acts between steps, in the order run.py lists them. An exception in one stops the run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

from simpletuner.reporting.events import CheckpointSaved
from simpletuner.reporting.metrics import MetricsFile
from simpletuner.reporting.progress import Bar, Reporter
from simpletuner.reporting.stages import Stages
from simpletuner.training.loop import StepResult

SMOOTHING = 0.9


def due(interval: int | None, step: int) -> bool:
    """Whether something is to be done after this step (from 1); None is never."""
    return interval is not None and interval > 0 and step % interval == 0


class Progress:
    """The training bar and the metrics file. Acts on nothing."""

    def __init__(self, bar: Bar, metrics: MetricsFile, reporter: Reporter) -> None:
        """Show on ``bar``; skipped steps are said aloud."""
        self._bar, self._metrics, self._reporter = bar, metrics, reporter
        self._sum, self._weight = 0.0, 0.0

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
        if result.skipped:
            self._reporter.say(result.skipped)
        else:
            self._note(result.loss)
        smooth = self._sum / self._weight if self._weight else None
        self._metrics.write("step", asdict(result) | {"smoothed_loss": smooth})
        loss = "-" if smooth is None else f"{smooth:.3f}"
        speed = result.samples / result.seconds
        self._bar.advance(1, f"smoothed loss {loss}  lr {result.learning_rate:.2e}  {speed:.1f} pictures/s")

    def _note(self, loss: float | None) -> None:
        """One more loss in the smoothed one; None where a step had only regularisation data. As ``series.smoothed``."""
        if loss is not None:
            self._sum = SMOOTHING * self._sum + (1 - SMOOTHING) * loss
            self._weight = SMOOTHING * self._weight + (1 - SMOOTHING)

    def on_stop(self, step: int, finished: bool) -> None:
        """Nothing to do."""


@dataclass(slots=True)
class Checkpointing:
    """Saves every ``interval`` steps and at the end.

    Attributes:
        interval: Optimizer steps, or None for the end only.
        last: The last step of the run: its checkpoint is told as the final one, whatever it was saved for.
        save: Writes a checkpoint for the given step and returns its folder.
        saved_at: The last step saved.
    """

    interval: int | None
    last: int
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
        """Save the end, wherever it is; a last step that could not be taken leaves a checkpoint that is not the final one."""
        if step != self.saved_at:
            self._save(step, finished)

    def now(self, step: int) -> None:
        """Save, unless this step is saved."""
        if step != self.saved_at:
            self._save(step)

    def _save(self, step: int, finished: bool = True) -> None:
        with self.stages.stage("checkpoint_save", f"Saving a checkpoint at step {step}"):
            folder = self.save(step)
        self.saved_at = step
        self.reporter.say(f"step {step}: saved {folder.name}")
        message = f"Checkpoint of step {step}"
        is_final = finished and step >= self.last
        self.stages.emit(CheckpointSaved(message=message, path=folder, step=step, is_final=is_final))
