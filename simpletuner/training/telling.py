"""What of a run is told to its listeners: its start and end, every step, and why it stopped. Acts on nothing."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from simpletuner.errors import TunerError
from simpletuner.reporting.events import Done, GpuFault, Notification, Severity, Status
from simpletuner.reporting.listeners import Listener
from simpletuner.reporting.masking import masked_text
from simpletuner.reporting.metrics import MetricsFile
from simpletuner.reporting.progress import Reporter
from simpletuner.reporting.stages import Stages
from simpletuner.training.control import StoppedOnRequest
from simpletuner.training.loop import StepResult

SMOOTHING = 0.9
TRACEBACK_CHARACTERS = 6000


class StepStatus:
    """A ``training.status`` event after each step."""

    def __init__(
        self, stages: Stages, metrics: MetricsFile, total: int, steps_per_epoch: float, batch: dict[str, int]
    ) -> None:
        """Tell ``stages``.

        Args:
            stages: Of the run.
            metrics: Knows how many samples the steps before had.
            total: Optimizer steps of the run.
            steps_per_epoch: Optimizer steps in one pass over the data.
            batch: Sizes that are told with each step, by name.
        """
        self._stages, self._total, self._steps_per_epoch, self._batch = stages, total, steps_per_epoch, batch
        self._metrics = metrics
        self._speed: float | None = None
        self._seen = 0

    def on_start(self, step: int) -> None:
        """Go on with the samples of the steps that were done before."""
        done = {line["step"]: line["samples"] for line in self._metrics.read("step") if line["step"] <= step}
        self._seen = sum(done.values()) if step else 0

    def acts_at(self, step: int) -> bool:
        """Never: it only tells."""
        return False

    def on_step_end(self, result: StepResult) -> None:
        """Where training is and how it goes."""
        self._seen += result.samples
        speed = 1 / result.seconds if result.seconds > 0 else 0.0
        self._speed = speed if self._speed is None else SMOOTHING * self._speed + (1 - SMOOTHING) * speed
        epoch = round(result.step / self._steps_per_epoch, 4)
        metrics = {
            "loss": result.loss,
            "learning_rate": result.learning_rate,
            "grad_norm": result.grad_norm,
            "epoch": epoch,
            "steps_per_second": round(self._speed, 4),
            **self._batch,
        }
        left = (self._total - result.step) / self._speed if self._speed else None
        state: dict[str, Any] = {"global_step": result.step, "epoch": epoch, "total_num_steps": self._total}
        state["samples_seen"] = self._seen
        if result.skipped:
            state["skipped"] = result.skipped
        progress = Done("Training", result.step, self._total, left, metrics)
        self._stages.emit(Status(status="running", state=state, progress=progress))

    def on_stop(self, step: int, finished: bool) -> None:
        """Nothing to tell: ``told`` does it."""


@contextmanager
def told(stages: Stages, reporter: Reporter, listeners: Callable[[], Sequence[Listener]], title: str) -> Iterator[None]:
    """A run from start to end: run.json and the listeners know how it ended, whatever happens.

    Args:
        stages: Of the run.
        reporter: Says what listeners lost.
        listeners: Makes them.
        title: A few words on what is trained.
    """
    stages.listeners.start(listeners(), reporter.say)
    reporter.tell(stages)
    stages.record(status="running")
    stages.emit(Status(status="starting", title=title, message=f"Starting: {title}"))
    try:
        yield
    except (KeyboardInterrupt, StoppedOnRequest):
        stages.record(status="interrupted")
        stages.mark("training_abort", "Training was stopped", "cancelled", ends_run=True)
        stages.emit(Status(status="interrupted", message="Training was stopped; it goes on from its last checkpoint."))
        raise
    except TunerError as error:
        _failed(stages, str(error), "Error", "error")
        raise
    except Exception as error:
        _gpu_fault(stages, error)
        lines = traceback.format_exc()[-TRACEBACK_CHARACTERS:]
        _failed(stages, f"{type(error).__name__}: {error}", "Fatal Error", "critical", {"traceback": lines})
        raise
    else:
        stages.record(status="finished")
        stages.mark("training_complete", "Training is complete", "completed", ends_run=True)
        stages.emit(Status(status="completed", message="Training is complete."))
    finally:
        reporter.tell(None)
        for sentence in stages.listeners.close():
            reporter.say(sentence)


def _gpu_fault(stages: Stages, error: Exception) -> None:
    """Tell of an error that comes from the card."""
    if not isinstance(error, (torch.OutOfMemoryError, torch.AcceleratorError)):
        return
    fault = "out_of_memory" if isinstance(error, torch.OutOfMemoryError) else "device_error"
    gpu: dict[str, Any] = {}
    if torch.cuda.is_available():
        gpu = {"index": torch.cuda.current_device(), "name": torch.cuda.get_device_name()}
    message, kind = str(error).strip().splitlines()[0], type(error).__name__
    stages.emit(GpuFault(message=message, severity="critical", fault=fault, gpu=gpu, exception_type=kind))


def _failed(stages: Stages, reason: str, title: str, severity: Severity, more: dict[str, str] | None = None) -> None:
    """Tell why the run ended, in run.json and to the listeners; an address in the words may hold a password."""
    reason, more = masked_text(reason), {key: masked_text(text) for key, text in (more or {}).items()}
    stages.record(status="failed", error=reason)
    stages.emit(Notification(title=title, message=reason, severity=severity))
    stages.mark("training_abort", "Training failed", "failed", ends_run=True)
    stages.emit(Status(status="failed", severity=severity, message=reason, state={"error": reason, **more}))
