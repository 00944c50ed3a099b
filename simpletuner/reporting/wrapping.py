"""Lines that break between words, where a terminal would break them inside. Pure.

In: a text and the width of a terminal. Out: the same words in lines of that width; what follows on is indented.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from rich.cells import cell_len

_COLUMN = re.compile(r" *\S+(?: \S+){0,2} {2,}")  # a name in front of what is said of it: "  resolution   128"
_STEP, _NARROWEST = 2, 30


def wrapped(text: str, width: int) -> str:
    """Break long lines between words.

    A word longer than a line, as a path may be, stays whole: so it can still be copied.

    Args:
        text: Any number of lines.
        width: Cells of a line: a Chinese letter takes two of them.
    """
    return "\n".join(part for line in text.split("\n") for part in _broken(line, width))


def _broken(line: str, width: int) -> list[str]:
    """One line as several; those after the first begin under what is said, or a little further in."""
    if cell_len(line) <= width or not line.strip():
        return [line]
    column = _COLUMN.match(line)
    start = len(column[0]) if column else 0
    indent = cell_len(line[:start]) if column else len(line) - len(line.lstrip(" ")) + _STEP
    if width - indent < _NARROWEST:
        return _filled(line.split(), width)
    lead = line[:start] or " " * (len(line) - len(line.lstrip(" ")))
    parts = _filled(line[start:].split(), width - indent)
    return [lead + parts[0], *(" " * indent + part for part in parts[1:])]


def _filled(words: Sequence[str], width: int) -> list[str]:
    """Words in lines as full as they can be. Rich's own wrapping folds or crops a word that is longer than a line."""
    lines: list[str] = []
    for word in words:
        if lines and cell_len(f"{lines[-1]} {word}") <= width:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return lines
