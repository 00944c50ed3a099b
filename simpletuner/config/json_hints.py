"""What is probably wrong where a JSON file stops making sense, said for people who write it by hand."""

from __future__ import annotations

import json
import re

_GENERAL = "check for a comma too many or too few, and that the whole file is one {...} or [...]"
_PYTHON = {"True": "true", "False": "false", "None": "null"}


def hint(text: str, error: json.JSONDecodeError) -> str:
    """What to do about a JSON error.

    Args:
        text: The whole file.
        error: From ``json.loads`` of it.
    """
    rest = text[error.pos :]
    before = text[: error.pos].rstrip()
    line = before.count("\n") + 1  # of the last thing that was right
    if not text.strip():
        return "the file is empty: write {} or copy an example"
    if rest.lstrip().startswith(("//", "/*", "#")):
        return "JSON has no comments: remove it"
    if rest.startswith("'") or (rest[:1].isalpha() and "property name" in error.msg and not _word(rest)):
        return 'names and texts stand in double quotes: "name"'
    word = _word(rest)
    if word in _PYTHON:
        return f"write {_PYTHON[word]} instead of {word}"
    if before.endswith(",") and rest[:1] in "}]":
        return f"remove the comma at the end of line {line}: nothing follows it"
    if "Expecting ',' delimiter" in error.msg:
        return f"a comma is missing at the end of line {line}"
    if "Invalid \\escape" in error.msg:
        return r"a backslash in a text is written \\ (or use / in paths)"
    if "Invalid control character" in error.msg or "Unterminated string" in error.msg:
        return "a text must end with a double quote on the line it begins on"
    if "Extra data" in error.msg:
        return "something follows after the end: the whole file must be one {...} or [...]"
    return _GENERAL


def _word(rest: str) -> str:
    found = re.match(r"[A-Za-z]+", rest)
    return found[0] if found and found[0] in _PYTHON else ""
