"""The hook that measures held-out loss: when, of which weights, which checkpoint is best, and when it tells of overfitting."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path

from simpletuner.evaluation.eval_loss import EvalResult
from simpletuner.evaluation.overfitting import Alarm, alarm, standing
from simpletuner.reporting.events import Notification
from simpletuner.reporting.metrics import MetricsFile
from simpletuner.reporting.progress import Reporter
from simpletuner.reporting.stages import Stages
from simpletuner.training import best, checkpoint
from simpletuner.training.interrupt import GivenUp
from simpletuner.training.interval import Interval
from simpletuner.training.loop import StepResult
from simpletuner.training.optimizers import evaluation_weights
from simpletuner.training.trainee import Trainee
from simpletuner.wording import counted


@dataclass(slots=True)
class HeldOutLoss:
    """Held-out loss before, on the interval and after; of the EMA weights where there are any.

    In the metrics file ``eval`` is the figure of the weights that are exported, and ``eval_live`` that of the live ones
    beside an EMA. Each ``eval`` also holds the overfit alarm in force, so that whoever reads the file needs no rule of his own.

    Attributes:
        interval: When, besides before and after.
        measure: Gives the figure for the weights now in the model; raises GivenUp once the run is to stop.
        trainee: For its EMA, optimizer and training mode.
        output_dir: Where checkpoints are.
        metrics: Where figures are kept, also those of the run's first half when it was resumed.
        live_beside_ema: Whether live weights are measured as well where there is an EMA.
        continued: Whether the adapter goes on from a file, and so acts from the start.
        stages: Told of overfitting.
    """

    interval: Interval
    measure: Callable[[], EvalResult]
    trainee: Trainee
    output_dir: Path
    metrics: MetricsFile
    reporter: Reporter
    live_beside_ema: bool = True
    continued: bool = False
    stages: Stages = field(default_factory=Stages)
    measured_at: int = -1
    _figures: dict[int, float] = field(default_factory=dict)
    _losses: dict[int, float] = field(default_factory=dict)
    _alarm: Alarm | None = None

    def on_start(self, step: int) -> None:
        """The figure of what training starts from, once; a resumed run knows the figures of its first half."""
        for kind, known in (("eval", self._figures), ("step", self._losses)) if step else ():
            for line in self.metrics.read(kind):
                if line["step"] <= step and line["loss"] is not None and not line.get("skipped"):
                    known[line["step"]] = line["loss"]
        if step:
            self._recall(step)
            self._choose()
        else:
            best.write(self.output_dir, None)
            self._measure(0)

    def _recall(self, step: int) -> None:
        """The alarm that was in force at the last evaluation before a resumed run goes on."""
        lines = [line for line in self.metrics.read("eval") if line["step"] <= step]
        found = lines[-1].get("overfitting") if lines else None
        if found:
            held_out, training = tuple(found["held_out"]), tuple(found["training"])
            self._alarm = Alarm(found["low"], held_out, training, found["evaluations"])

    def acts_at(self, step: int) -> bool:
        """On the interval."""
        return self.interval.due(step)

    def on_step_end(self, result: StepResult) -> None:
        """Measure on the interval."""
        if result.loss is not None and not result.skipped:
            self._losses[result.step] = result.loss
        if self.acts_at(result.step):
            self._measure(result.step)

    def on_stop(self, step: int, finished: bool) -> None:
        """Measure the end; not when stopped on the way."""
        if finished and step != self.measured_at and step:
            self._measure(step)

    def figures(self) -> dict[int, float]:
        """Held-out loss by step, over all parts of the run; without those that were no number."""
        return {line["step"]: line["loss"] for line in self.metrics.read("eval") if line["loss"] is not None}

    def _measure(self, step: int) -> None:
        self.measured_at = step
        try:
            result, live = self._figures_of(step)
        except GivenUp:
            self.reporter.say(f"step {step}: held-out loss is not measured, as the run is to stop")
            return
        beside = ""
        if live:
            self.metrics.write("eval_live", {"step": step, **asdict(live), "weights": "live weights"})
            beside = f", live {live.loss:.4f}"
        raised = None
        if math.isfinite(result.loss):
            self._figures[step] = result.loss
            raised = alarm(sorted(self._figures.items()), sorted(self._losses.items()))
        self._alarm = standing(self._alarm, raised, result.loss)
        kind, told = self._kind(step), asdict(self._alarm) if self._alarm else None
        self.metrics.write("eval", {"step": step, **asdict(result), "weights": kind, "overfitting": told})
        several = "".join(f", {name} {loss:.4f}" for name, loss in result.by_dataset.items())
        self.reporter.say(
            f"step {step}: held-out loss {result.loss:.4f} ({kind}{beside}{several}, {counted(result.samples, 'picture')}; "
            f"a model that has learned nothing scores {result.zero_predictor:.2f})"
        )
        self._choose()
        if raised:
            self._warn(step, raised)

    def _figures_of(self, step: int) -> tuple[EvalResult, EvalResult | None]:
        """Of the weights that are exported; and of the live ones beside an EMA, where they are wanted."""
        transformer, adapter = self.trainee.transformer, self.trainee.adapter
        was_training = transformer.training
        transformer.eval()
        ema = self.trainee.ema if step else None
        off = adapter.disabled() if adapter and not step and not self.continued else nullcontext()
        try:
            if ema:
                with ema.applied():
                    averaged = self.measure()
                return averaged, self.measure() if self.live_beside_ema else None
            with evaluation_weights(self.trainee.optimizer), off:
                return self.measure(), None
        finally:
            transformer.train(was_training)

    def _kind(self, step: int) -> str:
        """What is measured."""
        if not step and not self.continued:
            return "base model"
        return "EMA weights" if self.trainee.ema and step else "weights"

    def _choose(self) -> None:
        """Name the best of the checkpoints that have a figure."""
        saved = {int(folder.name.rpartition("-")[2]) for folder in checkpoint.existing(self.output_dir)}
        step, before = best.lowest(self._figures, saved), best.read(self.output_dir)
        found = None
        if step is not None:
            found = best.Best(f"checkpoint-{step}", step, self._figures[step], self._kind(step))
        if found != before:
            best.write(self.output_dir, found)

    def _warn(self, step: int, raised: Alarm) -> None:
        """Say that held-out loss rises while training loss falls."""
        named = best.read(self.output_dir)
        where = f" The best checkpoint so far is {named.checkpoint}." if named else ""
        sentence = (
            f"step {step}: held-out loss has risen over the last {raised.evaluations} evaluations, from "
            f"{raised.held_out[0]:.4f} at step {raised.low} to {raised.held_out[1]:.4f}, while training loss fell from "
            f"{raised.training[0]:.4f} to {raised.training[1]:.4f}: the model begins to learn its pictures by heart.{where} "
            "What to do: stop here, or train with a lower learning_rate, more pictures or a smaller adapter."
        )
        self.reporter.say(f"WARNING: {sentence}")
        self.stages.emit(Notification(title="Overfitting", message=sentence, severity="warning"))
