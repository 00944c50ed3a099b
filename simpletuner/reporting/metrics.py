"""A line of JSON for every step and evaluation, in the run's own folder: no account, no server."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from simpletuner.errors import TunerError
from simpletuner.reporting.events import Event, Figures, finite


class MetricsFile:
    """Appends to ``metrics.jsonl``."""

    def __init__(self, path: Path, emit: Callable[[Event], None] | None = None) -> None:
        """Append to ``path``, made if missing; ``emit`` is told of every line as well, which is how trackers learn it."""
        self._emit = emit
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise TunerError(f"cannot make {path.parent} (output_dir): {error.strerror}. Choose another.") from error
        self._path = path

    def write(self, kind: str, values: dict[str, Any]) -> None:
        """Append one line; NaN and infinity become null, so that every JSON reader takes it."""
        clean = finite(values)
        with open(self._path, "a", encoding="utf-8") as file:
            file.write(json.dumps({"kind": kind, "time": round(time.time(), 3), **clean}) + "\n")
        if self._emit:
            self._emit(Figures(kind=kind, values=clean))

    def read(self, kind: str) -> list[dict[str, Any]]:
        """All lines of one kind, in order; a line cut off by a kill is passed over."""
        if not self._path.is_file():
            return []
        lines = []
        for text in self._path.read_text(encoding="utf-8").splitlines():
            try:
                line = json.loads(text)
            except ValueError:
                continue
            if line.get("kind") == kind:
                lines.append(line)
        return lines
