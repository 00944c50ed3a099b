"""Files of JSON lines: adding whole lines, and following a file that another process writes.

In: the file. Out: its new lines at each look. Takes a last line that is half written, a file that is not there yet, and
one that is cut or written anew.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from simpletuner.reporting.appending import add_whole

_HEAD = 256  # bytes at the front by which a file written anew is known
_MOST = 64 * 2**20  # bytes read at one look; the rest comes at the next


def append(path: Path, text: str) -> None:
    """Add whole lines to a file, made if missing: all of them or none.

    A half line at its end, which a killed run has left, is ended first, or it would spoil the first of these.

    Args:
        path: The file.
        text: Lines with their ends.

    Raises:
        OSError: The disk takes nothing more; the file is as it was.
    """
    with open(path, "ab+", buffering=0) as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - 1))
        ends = file.read(1) in (b"", b"\n")
        add_whole(file, (b"" if ends else b"\n") + text.encode("utf-8", "backslashreplace"))


class JsonLines:
    """One file and how far it has been read."""

    def __init__(self, path: Path) -> None:
        """Begin at the front of ``path``."""
        self.path = path
        self._offset = 0
        self._head = b""

    def poll(self) -> tuple[bool, list[dict[str, Any]]]:
        """What is new.

        Returns:
            Whether the file was written anew, so that all that was read before is void; and the new objects. Lines that
            are no JSON objects are passed over.
        """
        try:
            with open(self.path, "rb") as file:
                anew = not file.read(_HEAD).startswith(self._head)
                size = file.seek(0, 2)
                anew = anew or size < self._offset
                if anew:
                    self._offset = 0
                file.seek(self._offset)
                text = file.read(_MOST)
                end = text.rfind(b"\n") + 1
                self._offset += end
                file.seek(0)
                self._head = file.read(min(_HEAD, self._offset))
        except OSError:
            gone = self._offset > 0
            self._offset, self._head = 0, b""
            return gone, []
        return anew, [line for part in text[:end].splitlines() if (line := _object(part)) is not None]


def _object(line: bytes) -> dict[str, Any] | None:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None
