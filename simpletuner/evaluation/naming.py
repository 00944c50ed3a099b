"""Names of files after nicknames, so that every file system takes them. Pure functions."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

NAME_BYTES = 100  # of the 255 that file systems give a name; step, size and label come beside it
_RESERVED = {"con", "prn", "aux", "nul", *(f"{d}{i}" for d in ("com", "lpt") for i in range(1, 10))}


def file_names(nicknames: Sequence[str]) -> dict[str, str]:
    """A file-system-safe, distinct name for each nickname (``anime_<token>`` → ``anime_token``)."""
    names: dict[str, str] = {}
    taken: set[str] = set()
    for nickname in nicknames:
        composed = unicodedata.normalize("NFC", nickname)  # macOS takes both spellings of a letter for one name
        base = re.sub(r"[^\w.-]+", "_", composed).strip("._-").encode()[:NAME_BYTES].decode(errors="ignore") or "prompt"
        base = re.sub(r"_{2,}", "_", base)
        if base.split(".")[0].lower() in _RESERVED:
            base = f"prompt_{base}"
        name, number = base, 2
        while name.lower() in taken:  # Windows and macOS do not tell Cat from cat
            name, number = f"{base}_{number}", number + 1
        taken.add(name.lower())
        names[nickname] = name
    return names
