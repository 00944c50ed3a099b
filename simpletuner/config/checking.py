"""Sort raw keys into supported, satisfied, refused and unknown; turn pydantic's errors into Problems."""

from __future__ import annotations

import contextlib
import difflib
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel, BeforeValidator, ValidationError

from simpletuner.config.catalogue import Known
from simpletuner.config.optimizer_names import nearest_optimizer
from simpletuner.config.values import to_bool
from simpletuner.errors import Problem


@dataclass(slots=True)
class Findings:
    """What checking gathers: problems to mend and notices to print."""

    problems: list[Problem] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)


def nearest(name: str, names: Collection[str]) -> str:
    """A remedy that names the nearest known key, or none."""
    close = difflib.get_close_matches(name.lower(), names, n=1, cutoff=0.6)  # a variable's name is in capitals
    return f"did you mean {close[0]!r}?" if close else "remove it"


def is_off(value: Any, known: Known) -> bool:
    """Whether the value asks for nothing (``0`` and ``False`` are told from ``1`` and ``True`` by type too)."""
    if isinstance(value, list | tuple):
        return all(is_off(item, known) for item in value)
    readings = [value, to_bool(value)]
    if isinstance(value, str):  # from the command line or the environment every value is text
        with contextlib.suppress(ValueError):
            readings.append(float(value))
    return any(v == off and isinstance(v, bool) == isinstance(off, bool) for v in readings for off in known.off)


def sort_keys(
    values: Mapping[str, Any],
    where: Mapping[str, str],
    supported: Collection[str],
    catalogue: Mapping[str, Known],
    findings: Findings,
    prefix: str = "",
) -> dict[str, Any]:
    """Keep the supported keys; the others become notices or problems.

    Args:
        values: Normalised keys.
        where: The file (or "command line") each key came from.
        supported: Names of supported keys.
        catalogue: Satisfied and refused keys.
        findings: Added to.
        prefix: Put before keys in messages, e.g. ``[dreambooth].``.
    """
    kept: dict[str, Any] = {}
    for key, value in values.items():
        known = catalogue.get(key)
        if key in supported:
            kept[key] = value
        elif known is None:
            names = [*supported, *catalogue]
            findings.problems.append(
                Problem(where[key], prefix + key, value, "there is no such option", nearest(key, names))
            )
        elif is_off(value, known):
            continue
        elif known.status == "satisfied":
            findings.notices.append(f"{prefix}{key}: {known.text}")
        else:
            findings.problems.append(Problem(where[key], prefix + key, value, f"refused, {known.text}"))
    return kept


def other_values(
    values: dict[str, Any],
    where: Mapping[str, str],
    table: Mapping[str, Mapping[str, str]],
    findings: Findings,
    prefix: str = "",
) -> None:
    """Refuse known but unsupported values by name; such keys are taken out of ``values``."""
    for key in [k for k in values if k in table and isinstance(values[k], str) and values[k] in table[k]]:
        value = values.pop(key)
        findings.problems.append(Problem(where[key], prefix + key, value, f"refused, {table[key][value]}"))


def build(
    model: type[BaseModel],
    values: Mapping[str, Any],
    where: Mapping[str, str],
    findings: Findings,
    prefix: str = "",
) -> BaseModel | None:
    """Make the pydantic model, or None with a Problem for each wrong field."""
    typed = {
        key: to_bool(value) if _is_bool(model, key) else _no_bool(model, key, value) for key, value in values.items()
    }
    try:
        return model(**typed)
    except ValidationError as error:
        told: set[str] = set()
        for item in error.errors():
            key = str(item["loc"][0]) if item["loc"] else ""
            if key in told:  # a union gives one error for each of its members
                continue
            told.add(key)
            field_info = model.model_fields.get(key)
            value = values.get(key)
            message, remedy = _in_words(item, key, value)
            if not remedy and item["type"] == "value_error" and field_info is not None and field_info.description:
                remedy = f"it takes: {field_info.description}"
            findings.problems.append(Problem(where.get(key, where.get("", "")), prefix + key, value, message, remedy))
        return None


def _in_words(item: Any, key: str, value: Any) -> tuple[str, str]:
    """Reason and remedy of one of pydantic's errors, in a person's words."""
    kind, context, inner = item["type"], item.get("ctx", {}), item["loc"][-1] if len(item["loc"]) > 1 else ""
    if isinstance(value, Mapping) and inner:  # of an object inside an entry: the key in it is meant
        if kind == "extra_forbidden":
            return f"it has no key {inner!r}", ""
        if kind == "missing":
            return f"its {inner} is missing", f"add {inner}"
        reason, remedy = _in_words({**item, "loc": (inner,)}, str(inner), value.get(inner))
        return f"{inner}: {reason}", remedy
    if kind == "missing":
        return "it is missing", f"add {key}"
    if kind in _WANTED:
        return _WANTED[kind], ""
    if kind in _BOUNDS:
        reason, remedy, bound = _BOUNDS[kind]
        return reason, remedy.format(context[bound])
    if kind == "literal_error":
        nearest_one = nearest_optimizer(str(value)) if key == "optimizer" else _nearest_of(value, context["expected"])
        return "there is no such value", nearest_one
    return item["msg"].removeprefix("Value error, "), ""


def _nearest_of(value: Any, expected: str) -> str:
    """A remedy for one of a few words: the nearest, and all of them where they are few enough to read."""
    words = [word.strip(" '") for word in expected.replace(" or ", ",").split(",")]
    close = difflib.get_close_matches(str(value), words, n=1, cutoff=0.6)
    if len(words) > _MOST_WORDS:
        return f"did you mean {close[0]!r}?" if close else "`simpletuner train --help` lists all of them"
    listed = " or ".join(filter(None, (", ".join(words[:-1]), words[-1])))
    return f"did you mean {close[0]!r}? It takes {listed}" if close else f"use {listed}"


_MOST_WORDS = 12
# pydantic's bounds → what is wrong, what to do, and the name of the bound
_BOUNDS = {
    "greater_than_equal": ("it is too small", "it must be {} or more", "ge"),
    "greater_than": ("it is too small", "it must be more than {}", "gt"),
    "less_than_equal": ("it is too large", "it must be {} or less", "le"),
    "less_than": ("it is too large", "it must be less than {}", "lt"),
}


# pydantic's words for programmers → a person's
_WANTED = {
    **dict.fromkeys(("bool_parsing", "bool_type"), "it must be true or false"),
    **dict.fromkeys(("int_parsing", "int_type", "int_from_float", "int_parsing_size"), "it must be a whole number"),
    **dict.fromkeys(("float_parsing", "float_type"), "it must be a number"),
    **dict.fromkeys(("string_type", "path_type"), "it must be text in quotes"),
    **dict.fromkeys(("list_type", "tuple_type"), "it must be a list"),
    **dict.fromkeys(("dict_type", "model_type"), "it must be an object: {…}"),
    "finite_number": "it must be a finite number",
    "string_too_short": "it must not be empty",
    "too_short": "it must not be empty",
}


def _no_bool(model: type[BaseModel], key: str, value: Any) -> Any:
    """True for a number would silently be 1: an object, which no field takes, stands in for it and is refused."""
    field_info = model.model_fields.get(key)
    reads_itself = field_info is not None and any(isinstance(m, BeforeValidator) for m in field_info.metadata)
    return {} if isinstance(value, bool) and not reads_itself else value


def _is_bool(model: type[BaseModel], key: str) -> bool:
    field_info = model.model_fields.get(key)
    # resume_from_checkpoint takes a name or false; a word such as "no" is never a name.
    return field_info is not None and field_info.annotation is bool
