"""Numbers with their nouns, as a person says them."""

from __future__ import annotations

import errno
from pathlib import Path

_NO_LEAVE = (errno.EROFS, errno.EACCES, errno.EPERM)


def counted(number: float, one: str, many: str | None = None) -> str:
    """``1 picture is used``, ``2 pictures are used``.

    Args:
        number: How many, shown as it is.
        one: The words after 1.
        many: The words after any other number; ``one`` with an s by default.
    """
    return f"{number} {one if number == 1 else many or f'{one}s'}"


def lasting(seconds: float) -> str:
    """About how long, as a person says it: ``20 seconds``, ``3 minutes``, ``5 hours``."""
    if seconds < 90:
        return counted(max(1, round(seconds / 10) * 10 if seconds >= 10 else round(seconds)), "second")
    if seconds < 90 * 60:
        return counted(round(seconds / 60), "minute")
    return counted(round(seconds / 3600), "hour")


def where_to_write(error: Exception, place: str = "another folder") -> str:
    """What helps where a file cannot be written: space is of no use on what is read-only or another's."""
    if isinstance(error, OSError) and error.errno in _NO_LEAVE:
        return f"choose {place} that can be written to"
    return f"free some space or choose {place}"


_PROGRAM = Path(__file__).resolve().parent.parent


def install(extra: str) -> str:
    """The command that adds one of this program's extras, as it works from the current folder.

    A program that runs from its folder stays tied to it (-e): a copy in its place would not change with the folder.
    """
    if not (_PROGRAM / "pyproject.toml").is_file():  # installed without its folder
        return f"in the folder of this program: pip install './[{extra}]'"
    place = "./" if Path.cwd() == _PROGRAM else str(_PROGRAM)
    return f"pip install -e '{place}[{extra}]'"
