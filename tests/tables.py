"""For tables of (what is given, where it is found, what is expected) in tests of options."""

from __future__ import annotations

from operator import attrgetter


def row_name(part: object) -> str | None:
    """The keys that a row gives, as the test's name."""
    return ",".join(part) if isinstance(part, dict) else None


def value_at(values: object, path: str) -> object:
    """The value at a dotted path; None where a part of the path is None."""
    try:
        return attrgetter(path)(values)
    except AttributeError as error:
        assert "NoneType" in str(error)
        return None
