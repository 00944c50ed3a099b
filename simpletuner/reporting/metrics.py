"""A line of JSON for every step and evaluation, in the run's own folder: no account, no server."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from simpletuner.errors import TunerError
from simpletuner.reporting.events import Event, Figures, finite
from simpletuner.reporting.json_lines import append


class MetricsFile:
    """Appends to ``metrics.jsonl``; the training thread does so, and a listener's."""

    def __init__(
        self, path: Path, emit: Callable[[Event], None] | None = None, say: Callable[[str], None] | None = None
    ) -> None:
        """Append to ``path``, made if missing.

        Args:
            path: The file.
            emit: Told of every line as well, which is how trackers learn it.
            say: Told once where the disk takes no line.
        """
        self._emit, self._say = emit, say
        self._waiting: list[str] = []
        self._one_at_a_time = threading.Lock()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise TunerError(f"cannot make {path.parent} (output_dir): {error.strerror}. Choose another.") from error
        self._path = path

    def write(self, kind: str, values: dict[str, Any]) -> None:
        """Append one line; NaN and infinity become null, so that every JSON reader takes it.

        What a full disk does not take waits for the next line: no step is lost for want of its figures.
        """
        clean = finite(values)
        line = json.dumps({"kind": kind, "time": round(time.time(), 3), **clean}) + "\n"
        try:
            with self._one_at_a_time:
                self._waiting.append(line)
                append(self._path, "".join(self._waiting))
                self._waiting.clear()
        except OSError as error:
            if say := self._say:
                self._say = None
                say(f"{self._path}: {error.strerror} (said once; its lines wait for room, and training goes on)")
        if self._emit:
            self._emit(Figures(kind=kind, values=clean))

    def read(self, kind: str) -> list[dict[str, Any]]:
        """All lines of one kind, in order; a line cut off by a kill, or that names no step, is passed over."""
        with self._one_at_a_time:
            written = self._path.read_text(encoding="utf-8", errors="replace") if self._path.is_file() else ""
            waiting = list(self._waiting)
        lines = []
        for text in [*written.splitlines(), *waiting]:
            try:
                line = json.loads(text)
            except ValueError:
                continue
            if isinstance(line, dict) and line.get("kind") == kind and isinstance(line.get("step"), int):
                lines.append(line)
        return lines
