"""`simpletuner doctor`: can this machine train? Each module looks at one side of it; nothing is loaded, or kept."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from simpletuner.training.doctor import packages
from simpletuner.training.doctor.line import Line


def examine(folders: Mapping[str, Path], model: Path | None = None) -> Iterator[Line]:
    """Everything, line by line.

    Args:
        folders: What for → a folder that a run writes into.
        model: Folder of the model that is trained; None where it is not known, or on the hub.
    """
    try:
        from simpletuner.training.doctor import cards, places
    except (ImportError, OSError) as error:  # torch itself, or a library that it is linked with
        yield from packages.lines(packages.declared())
        yield Line("problem", "torch", f"it cannot be imported ({error})", packages.again())
        return
    yield from packages.lines(packages.declared(), cards.card_is_there())
    yield from cards.lines()
    yield from places.lines(folders, model)


def verdict(found: Sequence[Line], large: str = "Sana 1.6B") -> str:
    """The last line: what this machine can train, or what is to be mended first.

    Args:
        found: All other lines.
        large: What its card has memory for, in words; "" if the large model fits in no way.
    """
    problems = sum(line.state == "problem" for line in found)
    if problems:
        return f"{problems} to mend: see the lines that begin with problem."
    notes = {line.what: line.found for line in found if line.state == "note"}
    if "GPU" in notes:
        return (
            "This machine can train the pocket model, which comes with the program: `simpletuner configure` makes it learn "
            "your pictures. Sana 1.6B wants an NVIDIA card."
        )
    able = f"This machine can train {f'{large}, and ' if large else ''}the pocket model that comes with the program"
    if not large:
        able += "; its card has too little free memory for Sana 1.6B (docs/memory.md says what takes how much)"
    if "Hub" in notes:
        return f"{able}. Only models in a folder here or in the hub's cache are at hand: {notes['Hub'].rstrip('.')}."
    return f"{able}."
