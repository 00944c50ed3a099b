"""Writes the files all together or not at all, and shows beforehand what would change.

Each is written whole beside its place first; then all are renamed, and an interruption waits until that is done.
"""

from __future__ import annotations

import contextlib
import difflib
import json
import os
import signal
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from simpletuner.cli.configuring.content import CONFIG
from simpletuner.errors import TunerError
from simpletuner.signals import handled


def texts(files: Mapping[str, Any], config: Path) -> dict[Path, str]:
    """Path → text of every file; ``config`` is where config.json goes, and the others lie beside it."""
    places = {name: config if name == CONFIG else config.with_name(name) for name in files}
    return {places[name]: json.dumps(value, indent=2, ensure_ascii=False) + "\n" for name, value in files.items()}


def difference(wanted: Mapping[Path, str]) -> list[str]:
    """A unified diff of what is there already and would change; nothing where no file is lost."""
    lines: list[str] = []
    for path, text in wanted.items():
        if not path.is_file():
            continue
        before = path.read_text(encoding="utf-8", errors="replace")
        lines += difflib.unified_diff(
            before.splitlines(), text.splitlines(), f"{path} (now)", f"{path} (proposed)", lineterm=""
        )
    return lines


def write(wanted: Mapping[Path, str]) -> None:
    """Write all files.

    Raises:
        TunerError: One cannot be written; then none is changed.
    """
    staged: dict[Path, Path] = {}
    try:
        for path, text in wanted.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
            staged[path] = beside
            with open(beside, "w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
        with uninterrupted():
            _put_in_place(staged)
    except OSError as error:
        remedy = "give yourself the right to write there, free some space, or name another file"
        raise TunerError(f"cannot write {error.filename}: {error.strerror}. What to do: {remedy}.") from error
    finally:
        for beside in staged.values():
            beside.unlink(missing_ok=True)


def _put_in_place(staged: Mapping[Path, Path]) -> None:
    """Rename all; where one cannot be, those before it become what they were. Raises OSError."""
    before = {path: path.read_bytes() if path.is_file() else None for path in staged}
    renamed: list[Path] = []
    try:
        for path, beside in staged.items():
            os.replace(beside, path)
            renamed.append(path)
    except OSError:
        for path in renamed:
            content = before[path]
            if content is None:
                path.unlink()
            else:
                path.write_bytes(content)
        raise


@contextlib.contextmanager
def uninterrupted() -> Iterator[None]:
    """Inside, Ctrl-C waits; it acts at the end."""
    came: list[int] = []
    with handled(lambda number, frame: came.append(number), signal.SIGINT):
        yield
    if came:
        raise KeyboardInterrupt
