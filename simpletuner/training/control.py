"""Between steps: what a person asks of a run while it goes, by files in ``output_dir/control``.

In: files named ``save``, ``validate`` and ``stop``, made by the dashboard or by hand (``touch``). Out: a checkpoint now,
pictures now, or a clean stop after a checkpoint. The files are gone once they are seen.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from pathlib import Path

from simpletuner.reporting.events import Notification
from simpletuner.reporting.progress import Reporter
from simpletuner.reporting.stages import Stages
from simpletuner.training.loop import StepResult

FOLDER = "control"
REQUESTS = ("save", "validate", "stop")
LOOK_S = 0.2  # between two looks at the folder: a step may take a few milliseconds


class StoppedOnRequest(Exception):
    """Training was stopped by a request; the checkpoint is on disk, and nothing went wrong."""


class Control:
    """Does what is asked for, at the end of a step."""

    def __init__(
        self,
        folder: Path,
        save: Callable[[int], None],
        validate: Callable[[int], None] | None,
        reporter: Reporter,
        stages: Stages,
    ) -> None:
        """Look into ``folder``.

        Args:
            folder: Where requests are made; it need not exist.
            save: Saves a checkpoint of a step, unless it has been saved.
            validate: Draws the pictures of a step, unless they have been drawn; None where there is nothing to draw.
            reporter: Says what is done.
            stages: Told as well.
        """
        self._folder, self._save, self._validate = folder, save, validate
        self._reporter, self._stages = reporter, stages
        self._looked = float("-inf")
        self._asked: tuple[int, list[str]] = (0, [])
        self.stopping = False

    def on_start(self, step: int) -> None:
        """Nothing: what was asked for while caching is done after the first step."""

    def acts_at(self, step: int) -> bool:
        """Look for requests, a few times a second at most; what is found is done after this very step."""
        now = time.monotonic()
        if now - self._looked >= LOOK_S:
            self._looked = now
            if requests := self._take():
                self._asked = (step, requests)
        return self._asked[0] == step and bool(self._asked[1])

    def on_step_end(self, result: StepResult) -> None:
        """Save, draw, stop: in this order; a stop ends in a checkpoint anyway."""
        step, requests = self._asked
        if result.step != step or not requests:
            return
        self._asked = (0, [])
        if "save" in requests:
            self._tell("Saving a checkpoint, as asked")
            self._save(step)
        if "validate" in requests and self._validate is None:
            self._tell("Nothing is drawn, although it was asked for: the run has no validation pictures")
        elif "validate" in requests and self._validate:
            self._tell("Drawing validation pictures, as asked")
            self._validate(step)
        if "stop" in requests:
            self._tell("Stopping, as asked")
            self.stopping = True

    def on_stop(self, step: int, finished: bool) -> None:
        """Nothing to do."""

    def _take(self) -> list[str]:
        """Requests that lie there, which are gone then; one that cannot be removed would be done again and again."""
        taken = []
        for name in REQUESTS:
            with contextlib.suppress(OSError):
                (self._folder / name).unlink()
                taken.append(name)
        return taken

    def _tell(self, message: str) -> None:
        self._reporter.say(message)
        self._stages.emit(Notification(title="Control", message=message))


def waits(folder: Path, request: str) -> bool:
    """Whether a request lies there that no step has taken yet."""
    return (folder / request).is_file()


def forget(folder: Path) -> None:
    """Remove what was asked of an earlier run."""
    for name in REQUESTS:
        with contextlib.suppress(OSError):
            (folder / name).unlink()
