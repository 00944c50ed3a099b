"""``events.jsonl``: what happened in the output folder, one line an event, for pages and for anyone who asks later.

A history of the folder: a later run goes on below an earlier one's lines, and begins with ``training.status``
``starting``. Steps are not in it (they are in metrics.jsonl), and no pictures, only their names.
"""

from __future__ import annotations

import json
import threading
from pathlib import Path

from simpletuner.reporting.events import Event, Figures, Status
from simpletuner.reporting.json_lines import append


class EventsFile:
    """Appends events to a file."""

    def __init__(self, path: Path) -> None:
        """Append to ``path``; names of files beside it are written relative to its folder."""
        self.name = path.name
        self._path = path

    def wants(self, event: Event) -> bool:
        """All but figures and single steps."""
        return not isinstance(event, Figures) and not (isinstance(event, Status) and event.status == "running")

    def handle(self, event: Event, ending: threading.Event) -> None:
        """One line, on disk at once. Raises OSError if the disk takes nothing more."""
        line = json.dumps(event.to_json(self._relative), ensure_ascii=False, default=str)
        append(self._path, line + "\n")

    def finish(self) -> None:
        """Nothing is left open."""

    def _relative(self, path: Path) -> str:
        folder = self._path.parent
        return path.relative_to(folder).as_posix() if path.is_relative_to(folder) else str(path)
