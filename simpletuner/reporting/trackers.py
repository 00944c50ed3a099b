"""Trackers of others, through accelerate: Weights & Biases, trackio, Comet and SwanLab, each in a listener's thread.

Importing them, logging in, and whatever they wait for happens in that thread. A tracker that cannot start says so once.
"""

from __future__ import annotations

import io
import os
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from PIL import Image

from simpletuner.errors import TunerError
from simpletuner.reporting.curves import Curves
from simpletuner.reporting.events import Event, Figures, PromptValidated
from simpletuner.reporting.webhook import pictures_of


@dataclass(frozen=True, slots=True)
class Tracking:
    """What a tracker is told at its start.

    Attributes:
        kind: accelerate's name of the tracker.
        project: Where the run belongs.
        run: The run's name.
        folder: For trackers that keep files.
        config: The options, flat; no secrets.
        layout: ``gallery`` for a series per picture, ``table`` for a table row per picture, where a tracker has tables.
    """

    kind: str
    project: str
    run: str
    folder: Path
    config: Mapping[str, Any] = field(default_factory=dict, repr=False)
    layout: Literal["gallery", "table"] = "gallery"


class AccelerateTracker:
    """Hands curves and pictures to one tracker."""

    def __init__(self, tracking: Tracking, say: Callable[[str], None]) -> None:
        """Nothing is imported or started yet; ``say`` is told where a run is kept if that is not where one expects."""
        self.name = tracking.kind
        self._tracking, self._say = tracking, say
        self._tracker: Any = None
        self._dead = ""
        self._curves = Curves()
        self._step = 0

    def wants(self, event: Event) -> bool:
        """Figures and finished pictures."""
        return isinstance(event, Figures | PromptValidated)

    def handle(self, event: Event, ending: threading.Event) -> None:
        """Start the tracker with the first event, and log.

        Raises:
            TunerError: It could not be started.
        """
        self._start()
        if isinstance(event, Figures):
            points = self._curves.points(event.kind, event.values)
            self._step = max(self._step, int(event.values.get("step") or 0))  # they take no step twice
            if points:
                self._tracker.log(points, step=self._step)
        elif isinstance(event, PromptValidated):
            self._step = max(self._step, event.step)
            self._log_pictures(event)

    def finish(self) -> None:
        """The run is over."""
        if self._tracker is not None:
            self._tracker.finish()

    def _start(self) -> None:
        if self._dead:
            raise TunerError(self._dead)
        if self._tracker is not None:
            return
        from accelerate import PartialState
        from accelerate.tracking import LOGGER_TYPE_TO_CLASS

        try:
            PartialState()  # which process is the main one: accelerate's trackers ask
            cls = LOGGER_TYPE_TO_CLASS[self._tracking.kind]
            places = [str(self._tracking.folder)] if cls.requires_logging_directory else []
            tracker: Any = cls(self._tracking.project, *places, **self._arguments())
            tracker.start()
            tracker.store_init_configuration(plain(self._tracking.config))
        except BaseException as error:
            self._dead = f"it could not be started ({type(error).__name__}: {str(error).strip()[:200]})"
            raise
        self._tracker = tracker

    def _arguments(self) -> dict[str, Any]:
        """What each library calls the run's name and folder."""
        run, folder = self._tracking.run, self._tracking.folder
        if self._tracking.kind == "wandb":
            folder.mkdir(parents=True, exist_ok=True)
            return {"name": run, "dir": str(folder)} | ({} if logged_in() else self._offline(folder))
        if self._tracking.kind == "trackio":
            return {"name": run, "embed": False}
        if self._tracking.kind == "swanlab":
            return {"name": run, "log_dir": str(folder)}
        return {}

    def _offline(self, folder: Path) -> dict[str, Any]:
        self._say(f"wandb: nobody is logged in, so the run is kept in {folder / 'wandb'}; `wandb sync` sends it later")
        return {"mode": "offline"}

    def _log_pictures(self, event: PromptValidated) -> None:
        images = [Image.open(io.BytesIO(data)).convert("RGB") for _, data in pictures_of(event)]
        label = f" {event.label}" if event.label else ""
        if self._tracking.layout == "table" and self._tracking.kind == "wandb":
            import wandb

            rows = [[event.step, event.prompt, event.label, wandb.Image(image)] for image in images]
            columns = ["step", "prompt", "weights", "picture"]
            self._tracker.log_table(f"validation/{event.nickname}", columns, rows, step=self._step)
        elif hasattr(self._tracker, "log_images"):
            for index, image in enumerate(images):
                key = f"validation/{event.nickname}{label}/{index} - {image.width}x{image.height}"
                self._tracker.log_images({key: [image]}, step=self._step)


def logged_in() -> bool:
    """Whether wandb can be asked to go online, or was told what to do by its own variable."""
    if os.environ.get("WANDB_MODE") or os.environ.get("WANDB_API_KEY"):
        return True
    import wandb

    return bool(wandb.login(prompt=False, verify=False))


def plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """Numbers, words and truths; everything else as text, which is all that trackers take."""
    return {
        key: value if isinstance(value, bool | int | float | str) else str(value)
        for key, value in values.items()
        if value is not None
    }
