"""Small readers for option values that are richer than a number or a word."""

from __future__ import annotations

import contextlib
import json
import math
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


def parse_library(value: Any) -> Any:
    """``validation_prompt_library``: true, "default" and "image" name the one library there is.

    Raises:
        ValueError: The name of another.
    """
    if isinstance(value, bool):
        return value
    word = str(value).strip().lower()
    if word not in ("default", "image"):
        raise ValueError(f"there is no built-in library {word!r}: a library of your own is user_prompt_library")
    return True


def parse_numbers(value: Any) -> Any:
    """``0, 0.3, 0.7, 1`` or a list of numbers → a tuple; "none" and an off value stay unset.

    Raises:
        ValueError: Something that is not a number.
    """
    if isinstance(value, str):
        value = value.strip().strip("[]()")
        value = None if value.lower() in ("", "none", "false") else value.split(",")
    if value is None or value is False:
        return None
    if not isinstance(value, list | tuple):
        return (value,)
    try:
        return tuple(float(item) for item in value)
    except (TypeError, ValueError) as error:
        raise ValueError("it must be a list of numbers") from error


def parse_memory(value: Any) -> Any:
    """``as_set``, ``auto``, or GiB as a number, ``16`` or ``"16GiB"``.

    Raises:
        ValueError: None of these.
    """
    if isinstance(value, str):
        word = value.strip().lower().replace("-", "_")
        if word in ("as_set", "auto"):
            return word
        with contextlib.suppress(ValueError):
            value = float(re.sub(r"\s*gi?b?$", "", word))
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise ValueError("it must be as_set, auto or a number of GiB above 0")
    return float(value)


def parse_four(value: Any) -> Any:
    """As ``parse_numbers``, for exactly four of them.

    Raises:
        ValueError: Something that is not a number, or more or fewer than four.
    """
    numbers = parse_numbers(value)
    if numbers is not None and len(numbers) != 4:
        raise ValueError("it must be four numbers")
    return numbers


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


def parse_names(value: Any) -> Any:
    """Module names: a list, a JSON list, a .json or .txt file with one, or names with commas → texts.

    Raises:
        ValueError: No names, or a file that cannot be read.
    """
    if value is None or isinstance(value, tuple):
        return value
    if isinstance(value, str):
        text = value.strip()
        if text.startswith("["):
            value = json.loads(text)
        elif text.endswith((".json", ".txt")):
            value = parse_filter(text)
        else:
            value = [part.strip() for part in text.split(",") if part.strip()]
    names = _lines(list(value) if isinstance(value, tuple) else value)
    if not names:
        raise ValueError("it names no layer")
    return names


def parse_object(value: Any) -> Any:
    """A JSON object written inline → a dict; anything else is a file's name.

    Raises:
        ValueError: It looks like an object and is not valid JSON.
    """
    if isinstance(value, str) and value.lstrip().startswith("{"):
        return json.loads(value)
    return value


def parse_trackers(value: Any) -> Any:
    """``tensorboard,wandb`` or a list of names → a tuple; "none" and an off value → no tracker."""
    if isinstance(value, str):
        value = [part.strip() for part in value.split(",")]
    if value is None or value is False:
        return ()
    names = value if isinstance(value, list | tuple) else [value]
    return tuple(name for name in names if not isinstance(name, str) or name.lower() not in ("", "none", "false"))


def parse_json(value: Any) -> Any:
    """A JSON object or list written inline → that; an off value → unset; anything else is a file's name.

    Raises:
        ValueError: It looks like one and is not valid JSON.
    """
    if value is False or (isinstance(value, str) and value.lower() in ("none", "false")):
        return None
    if isinstance(value, str) and value.lstrip().startswith(("{", "[")):
        return json.loads(value)
    return value


def parse_aspects(value: Any) -> Any:
    """``[1.0, {"aspect": 0.75, "weight": 2}]`` → ((aspect, weight), …); a plain number has weight 1.

    Raises:
        ValueError: Not a list of positive numbers or such objects.
    """
    if not isinstance(value, list | tuple) or not value:
        raise ValueError("it must be a list such as [1.0, 0.75], not empty")
    pairs = []
    for item in value:
        aspect, weight = item, 1.0
        if isinstance(item, dict):
            unknown = set(item) - {"aspect", "aspect_ratio", "weight"}
            if unknown:
                raise ValueError(f"{sorted(unknown)[0]!r} is neither aspect nor weight")
            aspect, weight = item.get("aspect", item.get("aspect_ratio")), item.get("weight", 1.0)
        elif isinstance(item, tuple) and len(item) == 2:
            aspect, weight = item
        try:
            pair = (float(aspect), float(weight))
        except (TypeError, ValueError) as error:
            raise ValueError(f"{item!r} is no width/height ratio") from error
        if not (0 < pair[0] < float("inf") and 0 < pair[1] < float("inf")):
            raise ValueError(f"{item!r} must be above 0")
        pairs.append(pair)
    return tuple(pairs)


def parse_filter(value: Any) -> Any:
    """A list of texts, or a .json or .txt file that holds one (a text file: one entry a line) → texts.

    Raises:
        ValueError: The file cannot be read, or does not hold a list of texts.
    """
    if isinstance(value, list | tuple):
        return _lines(list(value))
    path = Path(str(value)).expanduser()
    try:
        content = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"the file cannot be read: {getattr(error, 'strerror', None) or error}") from error
    if path.suffix == ".json":
        return _lines(json.loads(content))
    return tuple(line for line in content.splitlines() if line)


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
