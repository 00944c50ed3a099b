"""Options for reading: by section, with what differs from the default told apart.

In: the record of a run, and the options' sections as plain values. Out: rows of text.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from simpletuner.shared_keys import FILLED_FROM_OPTIONS


@dataclass(frozen=True, slots=True)
class Group:
    """Options of one section.

    Attributes:
        title: The section.
        rows: (key, value, whether it differs from the default) of each; before they are joined with a run's record the
            value is the default.
    """

    title: str
    rows: tuple[tuple[str, str, bool], ...]


def text_of(value: Any) -> str:
    """A value as a person writes it in config.json; a string without its quotes, a whole number without its .0."""
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e15:
        value = int(value)
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def with_defaults(sections: Sequence[tuple[str, Mapping[str, Any]]]) -> list[Group]:
    """Groups before they are joined with a run's record, from titles and defaults by key."""
    return [
        Group(title, tuple((key, text_of(value), False) for key, value in rows.items())) for title, rows in sections
    ]


def acted(raw: Mapping[str, Any], datasets: Sequence[Any]) -> dict[str, Any]:
    """A run's options, each with the value that acted where the datasets have their own.

    Args:
        raw: config.resolved.json.
        datasets: datasets.resolved.json: every dataset with all it is set to; what is no object is passed over.
    """
    entries = [entry for entry in datasets if isinstance(entry, dict)]
    shown = dict(raw)
    for key in (key for key in FILLED_FROM_OPTIONS if key in raw):
        values = {str(entry.get("id", "")): text_of(entry[key]) for entry in entries if key in entry}
        different = set(values.values())
        if len(different) == 1:
            shown[key] = different.pop()
        elif different:
            shown[key] = ", ".join(f"{value} ({name})" for name, value in values.items() if value != text_of(None))
    return shown


def changed_settings(raw: Mapping[str, Any], groups: Sequence[Group]) -> list[Group]:
    """The record's values by section; keys of no section come last.

    Args:
        raw: config.resolved.json, without secrets.
        groups: Sections with defaults; without any, nothing can be told to differ.
    """
    joined, known = [], set()
    for group in groups:
        known |= {key for key, _, _ in group.rows}
        rows = [(key, text_of(raw[key]), text_of(raw[key]) != default) for key, default, _ in group.rows if key in raw]
        if rows:
            joined.append(Group(group.title, tuple(rows)))
    rest = tuple((key, text_of(value), False) for key, value in raw.items() if key not in known)
    return [*joined, Group("Other", rest)] if rest else joined
