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


def verdict(found: Sequence[Line]) -> str:
    """The last line: what this machine can train, or what is to be mended first."""
    problems = sum(line.state == "problem" for line in found)
    if problems:
        return f"{problems} to mend: see the lines that begin with problem."
    notes = {line.what for line in found if line.state == "note"}
    if "GPU" in notes:
        return (
            "This machine can train the pocket model, which comes with the program: `simpletuner configure` makes it learn "
            "your pictures. Sana 1.6B wants an NVIDIA card."
        )
    if "Hub" in notes:
        return (
            "This machine can train models that are in a folder here; the others are on the hub, which does not answer."
        )
    return "This machine can train Sana 1.6B, and the pocket model that comes with the program."
