"""Python and its packages against what this program declares. Nothing is imported to be looked at.

In: what ``pyproject.toml``, or the installed package's own record, asks for. Out: lines.
"""

from __future__ import annotations

import platform
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.version import Version

from simpletuner.training.doctor.line import Line
from simpletuner.wording import counted, install

NAME = "simpletuner"
_PROJECT = Path(__file__).resolve().parents[3] / "pyproject.toml"
_DEVELOPMENT = ("dev",)  # for work on the program, not with it
_FOR_CARDS = ("cuda",)
# What each extra is for: a test compares the names with pyproject.toml.
PURPOSES: Mapping[str, str] = {
    "cuda": "hand-written kernels, figures of the GPU",
    "bnb": "nf4 base, and with a card bnb-* optimizers",
    "torchao": "int8 and fp8 bases, ao-* optimizers",
    "parquet": "captions in parquet tables",
    "s3": "pictures and caches in buckets",
    "docs": "this program's own pages as a site",
    "hf": "datasets of the hub",
    "optimizers": "soap, came",
    "wandb": "report_to wandb",
    "trackio": "report_to trackio",
    "comet": "report_to comet_ml",
    "swanlab": "report_to swanlab",
}


@dataclass(frozen=True, slots=True)
class Declared:
    """What the program asks for.

    Attributes:
        python: Versions of Python.
        needed: Requirements without which it does not run.
        extras: Name → requirements.
    """

    python: str
    needed: tuple[Requirement, ...]
    extras: Mapping[str, tuple[Requirement, ...]] = field(default_factory=dict)


def declared(project: Path = _PROJECT) -> Declared:
    """From ``pyproject.toml`` beside the program, else from what was recorded when it was installed."""
    if project.is_file():
        found = tomllib.loads(project.read_text(encoding="utf-8"))["project"]
        extras = found["optional-dependencies"]
        return Declared(
            found["requires-python"],
            tuple(map(Requirement, found["dependencies"])),
            {name: tuple(map(Requirement, listed)) for name, listed in extras.items()},
        )
    record = metadata.metadata(NAME)
    every = [Requirement(line) for line in metadata.requires(NAME) or []]
    names = record.get_all("Provides-Extra") or []
    return Declared(
        record["Requires-Python"] or "",
        tuple(r for r in every if _wanted(r, "")),
        {name: tuple(r for r in every if _wanted(r, name) and not _wanted(r, "")) for name in names},
    )


def lines(asked: Declared, card: bool = True) -> Iterator[Line]:
    """Python, needed packages, then every extra that is there or damaged, and in one line those that are not.

    Args:
        asked: What the program asks for.
        card: Whether there is an NVIDIA card; without one extras that only it can use are left out.
    """
    version = platform.python_version()
    fits = SpecifierSet(asked.python).contains(version, prereleases=True)
    remedy = "" if fits else f"make the environment with a Python {asked.python}, for example 3.12"
    yield Line("OK" if fits else "problem", "Python", version if fits else f"{version}, needs {asked.python}", remedy)
    needed = [r for r in asked.needed if _wanted(r, "")]
    faults = [fault for r in needed if (fault := _fault(r))]
    for fault in faults:
        yield Line("problem", "Package", fault, again())
    if not faults:
        yield Line("OK", "Packages", f"{counted(len(needed), 'is', 'are')} needed and there")
    absent = []
    for name, requirements in asked.extras.items():
        wanted = [r for r in requirements if _wanted(r, name)]
        if name in _DEVELOPMENT or (name in _FOR_CARDS and not card):
            continue
        if wanted and all(_absent(r) for r in wanted):
            absent.append(name)
        else:
            yield _extra(name, wanted)
    if absent:
        named = "; ".join(f"{name}: {PURPOSES.get(name, 'optional')}" for name in absent)
        remedy = f"only what you want, for example {install(absent[0])}"
        yield Line("note", "Extras that are not installed", named, remedy)


def again() -> str:
    """The command that installs what is needed."""
    return install("").replace("[]", "")


def _extra(name: str, requirements: Sequence[Requirement]) -> Line:
    what = f"Extra {name} ({PURPOSES.get(name, 'optional')})"
    if not requirements:
        return Line("OK", what, "nothing to add on this system")
    faults = [fault for r in requirements if (fault := _fault(r))]
    if faults:
        return Line("note", what, ", ".join(faults), install(name))
    return Line("OK", what, ", ".join(f"{r.name} {metadata.version(r.name)}" for r in requirements))


def _wanted(requirement: Requirement, extra: str) -> bool:
    """Whether it is asked for on this system, with this extra."""
    return requirement.marker is None or requirement.marker.evaluate({"extra": extra})


def _absent(requirement: Requirement) -> bool:
    try:
        metadata.version(requirement.name)
    except metadata.PackageNotFoundError:
        return True
    return False


def _fault(requirement: Requirement) -> str:
    """Why a requirement is not met, or ""."""
    try:
        found = metadata.version(requirement.name)
    except metadata.PackageNotFoundError:
        return f"{requirement.name} is not installed"
    # A local part (2.13.0+cpu) says how it was built, and counts for no range.
    if not requirement.specifier.contains(Version(found).public, prereleases=True):
        return f"{requirement.name} {found} is outside of {requirement.specifier}"
    return ""
