"""`simpletuner doctor`: can this machine train? Each module looks at one side of it; nothing is loaded, or kept."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from simpletuner.training.doctor import packages
from simpletuner.training.doctor.line import Line


def examine(folders: Mapping[str, Path]) -> Iterator[Line]:
    """Everything, line by line.

    Args:
        folders: What for → a folder that a run writes into.
    """
    yield from packages.lines(packages.declared())
    try:
        from simpletuner.training.doctor import cards, places
    except (ImportError, OSError) as error:  # torch itself, or a library that it is linked with
        yield Line("problem", "torch", f"it cannot be imported ({error})", packages.again())
        return
    yield from cards.lines()
    yield from places.lines(folders)
