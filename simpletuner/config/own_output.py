"""An output folder of its own for a configuration that is copied: in another's, training would go on from its weights."""

from __future__ import annotations

from pathlib import Path


def holds_a_run(folder: Path) -> bool:
    """Whether anything was trained into a folder."""
    home = folder.expanduser()
    return (home / "run.json").is_file() or any(home.glob("checkpoint-*"))


def own_output(destination: Path, name: str) -> Path:
    """The ``output_dir`` of an example's copy: no other folder's copy has it, no other example's, and no packaged example.

    ``config/fox`` → ``output/config/fox-NAME``, relative as the example's own; with a number where a run is there already,
    of an earlier copy. A folder that is not below the working folder has it within.

    Args:
        destination: Folder of the copy.
        name: Of the example.
    """
    home, here = destination.expanduser().resolve(), Path.cwd().resolve()
    below = home != here and home.is_relative_to(here)
    usual = Path("output") / home.relative_to(here) if below else home / "output"
    usual = usual.with_name(f"{usual.name}-{name}")
    own, number = usual, 1
    while holds_a_run(own):
        number += 1
        own = usual.with_name(f"{usual.name}-{number}")
    return own
