"""Sort raw keys into supported, satisfied, refused and unknown; turn pydantic's errors into Problems."""

from __future__ import annotations

import contextlib
import difflib
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel, BeforeValidator, ValidationError

from simpletuner.config.catalogue import Known
from simpletuner.config.values import to_bool
from simpletuner.errors import Problem


@dataclass(slots=True)
class Findings:
    """What checking gathers: problems to mend and notices to print."""

    problems: list[Problem] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)


def nearest(name: str, names: Collection[str]) -> str:
    """A remedy that names the nearest known key, or none."""
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
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
            message = item["msg"].removeprefix("Value error, ")
            value = values.get(key)
            remedy = ""
            if item["type"] == "missing":
                message, remedy = "it is missing", f"add {key}"
            elif item["type"] in _WANTED:
                message = _WANTED[item["type"]]
            elif item["type"] == "literal_error" and isinstance(value, str):
                expected = str(item.get("ctx", {}).get("expected", ""))
                remedy = nearest(value, [word.strip(" '") for word in expected.replace(" or ", ",").split(",")])
                remedy = "" if remedy == "remove it" else remedy
            elif field_info is not None and field_info.description:
                remedy = field_info.description
            findings.problems.append(Problem(where.get(key, where.get("", "")), prefix + key, value, message, remedy))
        return None


# pydantic's words for programmers → a person's
_WANTED = {
    **dict.fromkeys(("bool_parsing", "bool_type"), "it must be true or false"),
    **dict.fromkeys(("int_parsing", "int_type", "int_from_float", "int_parsing_size"), "it must be a whole number"),
    **dict.fromkeys(("float_parsing", "float_type"), "it must be a number"),
    **dict.fromkeys(("string_type", "path_type"), "it must be text in quotes"),
    **dict.fromkeys(("list_type", "tuple_type"), "it must be a list"),
    **dict.fromkeys(("dict_type", "model_type"), "it must be an object: {…}"),
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
