"""Small readers for option values that are richer than a number or a word."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

_SIZE = re.compile(r"(\d+)\s*[xX×]\s*(\d+)$")
# Numbers this small mean megapixels in files written for the original program (1 → 1024x1024).
_MEGAPIXELS_BELOW = 64


def parse_resolutions(value: Any) -> Any:
    """``1024x1024,1280x768``, ``1024`` or a list of either → ((width, height), …).

    Raises:
        ValueError: Neither a number nor WxH.
    """
    items = value if isinstance(value, list | tuple) else str(value).split(",")
    sizes = []
    for item in items:
        text = "x".join(map(str, item)) if isinstance(item, list | tuple) else str(item).strip()
        if match := _SIZE.fullmatch(text):
            sizes.append((int(match[1]), int(match[2])))
            continue
        try:
            edge = float(text)
        except ValueError as error:
            raise ValueError(f"{text!r} is not WIDTHxHEIGHT") from error
        if not 0 < edge < float("inf"):
            raise ValueError(f"{text!r} is not a size")
        if edge < _MEGAPIXELS_BELOW:
            edge = round((edge * 1024 * 1024) ** 0.5)
        sizes.append((int(edge), int(edge)))
    if any(min(size) < 1 for size in sizes):
        raise ValueError("sides must be positive")
    return tuple(sizes)


def parse_instruction(value: Any) -> Any:
    """Instruction text, JSON list or file → lines; "None" → no lines; unset stays None.

    Raises:
        ValueError: A file that cannot be read.
    """
    if value is None or isinstance(value, tuple):
        return value
    if isinstance(value, list):
        return _lines(value)
    text = str(value)
    if text.strip().lower() in ("none", "false"):
        return ()
    if text.lstrip().startswith("["):
        return _lines(json.loads(text))
    if len(text) < 300 and "\n" not in text and text.endswith((".txt", ".json")):
        try:
            content = Path(text).expanduser().read_text(encoding="utf-8")
        except OSError as error:  # pydantic turns only ValueError into a problem of this key
            raise ValueError(f"the file cannot be read: {error.strerror}") from error
        return _lines(json.loads(content)) if text.endswith(".json") else tuple(content.splitlines())
    return tuple(text.split("\n"))


def _lines(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(line, str) for line in value):
        raise ValueError("the JSON must be one list of texts")
    return tuple(value)


def to_bool(value: Any) -> Any:
    """Words such as "true", "no" or "off" become booleans; anything else stays unchanged."""
    if isinstance(value, str):
        return {
            "true": True,
            "yes": True,
            "on": True,
            "1": True,
            "false": False,
            "no": False,
            "off": False,
            "0": False,
        }.get(value.strip().lower(), value)
    return value
