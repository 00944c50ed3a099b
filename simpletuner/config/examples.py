"""Packaged examples: ordinary configuration files that can be run as they are or copied."""

from __future__ import annotations

from pathlib import Path

from simpletuner.errors import ConfigError, Problem

_PACKAGE = Path(__file__).resolve().parent.parent
# name → (folder, files to copy as target name → source name)
EXAMPLES: dict[str, tuple[Path, dict[str, str], str]] = {
    "pocket": (
        _PACKAGE / "pocket",
        {name: name for name in ("config.json", "multidatabackend.json", "user_prompt_library.json")},
        "the embedded pocket Sana learns a drawing style in minutes, on a CPU",
    ),
    "sana": (
        _PACKAGE / "config" / "examples",
        {name: f"{name}.example" for name in ("config.json", "multidatabackend.json", "user_prompt_library.json")},
        "full-rank training of Sana 1.6B at 1024 px",
    ),
}


def example_folder(name: str, asked_by: str = "--example") -> Path:
    """The folder of a packaged example.

    Raises:
        ConfigError: There is none of that name.
    """
    if name not in EXAMPLES:
        remedy = f"packaged examples: {', '.join(EXAMPLES)}"
        raise ConfigError([Problem("command line", asked_by, name, "there is no such example", remedy)])
    return EXAMPLES[name][0]


def copy(name: str, destination: Path, force: bool = False) -> list[Path]:
    """Copy an example's configuration files.

    Args:
        name: Of the example.
        destination: Folder, made if missing.
        force: Overwrite files that are there already.

    Raises:
        ConfigError: No such example, or a file is there already.
    """
    folder = example_folder(name, "examples copy")
    files = EXAMPLES[name][1]
    targets = [destination / target for target in files]
    taken = [str(t) for t in targets if t.exists()]
    if taken and not force:
        remedy = "choose another folder, or add --force to overwrite"
        raise ConfigError([Problem("command line", "examples copy", t, "it exists already", remedy) for t in taken])
    destination.mkdir(parents=True, exist_ok=True)
    for target, source in zip(targets, files.values(), strict=True):
        text = (folder / source).read_text(encoding="utf-8")
        for copied, packaged in files.items():  # the copy reads the copies beside it, so that editing them acts
            text = text.replace(f"{{example:{name}}}/{packaged}", (destination / copied).as_posix())
        target.write_text(text, encoding="utf-8")
    return targets
