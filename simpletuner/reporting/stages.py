"""The phases of a run: told to the listeners, and written to run.json, where a page finds them without asking the run.

In: what begins and ends. Out: ``lifecycle.stage`` events and ``run.json``. It decides nothing.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from simpletuner.reporting.events import Done, Event, Notification, Stage, StageStatus
from simpletuner.reporting.listeners import Listeners
from simpletuner.reporting.masking import masked_text

PROGRESS_S = 1.0  # between two events of one phase's progress


class RunFile:
    """``run.json``: what state a run is in. A run that was killed stays ``running`` there, and its pid is gone."""

    def __init__(self, path: Path, job_id: str | None = None) -> None:
        """Begin; the file is written at the first ``update``."""
        self._path = path
        started = datetime.now(UTC).isoformat(timespec="seconds")
        self._values: dict[str, Any] = {
            "version": 1,
            "status": "running",
            "phase": "",
            "started": started,
            "ended": None,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "job_id": job_id,
            "start_step": None,
            "total_steps": None,
            "error": None,
        }

    def update(self, **values: Any) -> None:
        """Write the state, whole; a disk that takes nothing more is the checkpoints' to tell."""
        self._values |= values
        if self._values["status"] != "running" and self._values["ended"] is None:
            self._values["ended"] = datetime.now(UTC).isoformat(timespec="seconds")
        temporary = self._path.with_name(f".{self._path.name}.{os.getpid()}.tmp")
        with contextlib.suppress(OSError):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            temporary.write_text(json.dumps(self._values, indent=2) + "\n", encoding="utf-8")
            os.replace(temporary, self._path)


class _Progress:
    """Mirrors a bar as events of the phase it belongs to, at most one a second and the last one."""

    def __init__(self, stages: Stages, key: str, stage_label: str, label: str, total: int, done: int) -> None:
        self._stages, self._key, self._stage_label, self._label = stages, key, stage_label, label
        self._total, self._first, self._done = total, done, done
        self._began = time.monotonic()
        self._told = self._began - PROGRESS_S

    def advance(self, count: int) -> None:
        self._done += count
        now = time.monotonic()
        if now - self._told < PROGRESS_S and self._done < self._total:
            return
        self._told = now
        made = self._done - self._first
        eta = (now - self._began) / made * (self._total - self._done) if made > 0 else None
        progress = Done(self._label, self._done, self._total, eta)
        self._stages.emit(Stage(key=self._key, label=self._stage_label, status="running", progress=progress))


class Stages:
    """What phase a run is in."""

    def __init__(self, listeners: Listeners | None = None, run_file: RunFile | None = None) -> None:
        """Tell ``listeners``, and keep ``run_file`` true; by default nobody is told."""
        self.listeners = listeners or Listeners()
        self._file = run_file
        self._open: list[tuple[str, str]] = []
        self.phase = ""  # outside all of them

    def emit(self, event: Event) -> None:
        """Tell the listeners; never waits and never raises."""
        self.listeners.emit(event)

    def record(self, **values: Any) -> None:
        """Put values into run.json."""
        if self._file:
            self._file.update(**values)

    def line(self, text: str) -> None:
        """What was said on the screen, as an event for logs: files and receivers must not hold the page's token."""
        if text.strip():
            self.emit(Notification(message=masked_text(text), severity="debug"))

    def progress(self, label: str, total: int, done: int) -> _Progress | None:
        """Mirror a bar; None where no phase is open, as in the steps of training, which have events of their own."""
        return _Progress(self, *self._open[-1], label, total, done) if self._open else None

    def mark(self, key: str, label: str, status: StageStatus, ends_run: bool = False) -> None:
        """A phase that has no length."""
        self.emit(Stage(key=key, label=label, status=status, ends_run=ends_run))

    @contextmanager
    def stage(self, key: str, label: str) -> Iterator[None]:
        """A phase: running, then completed, cancelled by an interrupt, or failed."""
        self._open.append((key, label))
        self.record(phase=key)
        self.mark(key, label, "running")
        status: StageStatus = "failed"
        try:
            yield
            status = "completed"
        except KeyboardInterrupt:
            status = "cancelled"
            raise
        finally:
            self._open.pop()
            self.mark(key, label, status)
            self.record(phase=self._open[-1][0] if self._open else self.phase)
