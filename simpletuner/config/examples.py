"""Packaged examples: ordinary configuration files that can be run as they are or copied."""

from __future__ import annotations

import difflib
import json
import re
import shlex
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from simpletuner.config.own_output import own_output
from simpletuner.errors import TunerError

_PACKAGE = Path(__file__).resolve().parent.parent
_PRESETS = _PACKAGE / "config" / "examples"  # written by tools/write_presets.py
_FILES = ("config.json", "multidatabackend.json", "user_prompt_library.json")
_KINDS = {
    "subject": "one person, animal or thing, from 5 to 30 pictures",
    "style": "a way of drawing or photographing, from 20 to 300 captioned pictures",
    "domain": "a field of its own, from a thousand captioned pictures or more",
}
_METHODS = {"full": "full rank", "lora": "LoRA", "lokr": "LoKr"}


class Example(NamedTuple):
    """One packaged example.

    Attributes:
        folder: Where its files are.
        files: Target name → packaged name.
        text: One line for the list.
    """

    folder: Path
    files: dict[str, str]
    text: str


def _preset(name: str, text: str, lokr: bool) -> Example:
    files = [*_FILES, *(["lycoris_config.json"] if lokr else [])]
    return Example(_PRESETS / name, {file: file for file in files}, text)


EXAMPLES: dict[str, Example] = {
    "pocket": Example(
        _PACKAGE / "pocket",
        {name: name for name in _FILES},
        "the embedded pocket Sana learns a drawing style in minutes, on a CPU",
    ),
    **{
        f"pocket-{method}": _preset(f"pocket-{method}", f"the same with {_METHODS[method]}", method == "lokr")
        for method in ("lora", "lokr")
    },
    "sana": Example(
        _PRESETS,
        {name: f"{name}.example" for name in _FILES},
        "full-rank training of Sana 1.6B at 1024 px, to start from",
    ),
    **{
        f"sana-{kind}-{method}": _preset(f"sana-{kind}-{method}", f"{what}; {how}", method == "lokr")
        for kind, what in _KINDS.items()
        for method, how in _METHODS.items()
    },
}


def kinds() -> dict[str, str]:
    """What can be taught, and what each is."""
    return dict(_KINDS)


def example_folder(name: str, asked_by: str = "--example") -> Path:
    """The folder of a packaged example.

    Raises:
        TunerError: There is none of that name.
    """
    if name not in EXAMPLES:
        raise TunerError(f"there is no such example: {name!r} ({asked_by}). What to do: {instead_of(name)}.")
    return EXAMPLES[name].folder


def instead_of(name: str) -> str:
    """A remedy for the name of an example that there is not: the nearest, or all of them."""
    close = difflib.get_close_matches(name, EXAMPLES, n=1)
    if close:
        return f"did you mean {close[0]!r}? `simpletuner examples list` shows all of them"
    return f"take one of {', '.join(EXAMPLES)}"


def expand(text: str, asked_by: str) -> str:
    """``{example:NAME}`` in an argument of a command → that example's folder; the rest stays.

    Raises:
        TunerError: There is no such example.
    """
    return re.sub(r"\{example:([^{}]*)\}", lambda match: str(example_folder(match[1], asked_by)), text)


def copy(name: str, destination: Path, force: bool = False) -> list[Path]:
    """Copy an example's configuration files; the copy reads the copies beside it and trains into a folder of its own.

    Args:
        name: Of the example.
        destination: Folder, made if missing.
        force: Overwrite files that are there already.

    Raises:
        TunerError: No such example, or a file is there already.
    """
    folder = example_folder(name, "examples copy")
    files = EXAMPLES[name].files
    targets = [destination / target for target in files]
    taken = [t for t in targets if t.exists()]
    if taken and not force:
        raise TunerError(
            f"{', '.join(map(str, taken))} {'exist' if len(taken) > 1 else 'exists'} already. What to do: copy to another "
            f"folder, `simpletuner examples copy {name} {_free_beside(destination, files)}`, or add --force to overwrite."
        )
    destination.mkdir(parents=True, exist_ok=True)
    output_dir = own_output(destination, name)
    for target, source in zip(targets, files.values(), strict=True):
        text = (folder / source).read_text(encoding="utf-8")
        target.write_text(_at_home(text, name, destination, output_dir), encoding="utf-8")
    return targets


def _at_home(text: str, name: str, destination: Path, output_dir: Path) -> str:
    """A packaged file as its copy: it names the copies beside it, so that editing them acts, and its own output_dir."""
    for copied, packaged in EXAMPLES[name].files.items():
        beside = _quoted(destination / copied)
        for place in (f"{{example:{name}}}/{packaged}", f"config/{copied}"):
            text = text.replace(f'"{place}"', beside)
    return re.sub(r'("output_dir": )"[^"]*"', lambda match: match[1] + _quoted(output_dir), text)


def _quoted(path: Path) -> str:
    return json.dumps(path.as_posix(), ensure_ascii=False)


def _free_beside(destination: Path, files: Iterable[str]) -> str:
    """A folder in which none of the files is, as a shell reads it: ``config`` → ``config/other``."""
    number, free = 1, destination / "other"
    while any((free / file).exists() for file in files):
        number += 1
        free = destination / f"other-{number}"
    return shlex.quote(str(free))
