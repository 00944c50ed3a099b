"""Folders, room on disks, main memory, and the hub: what a run writes to and asks of others.

A folder is tried with a nameless temporary file, which is gone at once; nothing else is written.
"""

from __future__ import annotations

import os
import tempfile
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path

from simpletuner.models import load
from simpletuner.training.disk import free_bytes, nearest_there
from simpletuner.training.doctor.line import Line

GIB = 2**30
LITTLE, USUAL = 1 * GIB, 40 * GIB  # a run of 1.6B: the model 10 GiB, a checkpoint up to 16, the export 10
SHARES = 4  # the same in sizes of the model: itself, checkpoints, export
SMALL = ("Compiled kernels", "Temporary files")  # what these hold is soon gone, or never large
MEMORY = 16 * GIB  # the text encoder alone is loaded as 5 GiB
HUB_SECONDS = 2.0


def lines(folders: Mapping[str, Path], model: Path | None = None) -> Iterator[Line]:
    """Every folder by what it is for, main memory, the hub.

    Args:
        folders: What for → a folder that a run writes into.
        model: Folder of the model that is trained, whose size tells how much room a run takes; None for Sana 1.6B.
    """
    usual = USUAL if model is None else SHARES * _size(model)
    for what, folder in folders.items():
        yield place(what, folder, 0 if what in SMALL else usual, "Sana 1.6B" if model is None else "this model")
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 0
    if memory:
        enough = memory >= MEMORY
        told = f"{memory / GIB:.0f} GiB{'' if enough else ': enough for the pocket model; Sana 1.6B wants 16 or more'}"
        yield Line("OK" if enough else "note", "Main memory", told)
    yield hub()
    yield login()


def _size(folder: Path) -> int:
    """Bytes of all files in a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def place(what: str, folder: Path, usual: int = USUAL, model: str = "Sana 1.6B") -> Line:
    """Whether a folder can be made or written into, and whether there is the room, in bytes, that is usual."""
    home = nearest_there(folder)
    if not home.is_dir():
        return Line("problem", what, f"{folder} cannot be made: {home} is a file", "choose another folder")
    try:
        with tempfile.TemporaryFile(dir=home):
            pass
    except OSError as error:
        reason = f"{home} cannot be written to ({error.strerror})"
        return Line("problem", what, reason, "give yourself the right to write there, or choose another folder")
    free = free_bytes(home)
    told = f"{folder}, {free / GIB:.1f} GiB free"
    if free < LITTLE:
        return Line("problem", what, told, "free some space, or choose a folder on another disk")
    if free < usual:
        return Line("note", what, f"{told}; a run of {model} takes about {max(1, usual // GIB)} GiB")
    return Line("OK", what, told)


def hub(seconds: float = HUB_SECONDS) -> Line:
    """Whether the hub, or the mirror that HF_ENDPOINT names, answers."""
    from huggingface_hub import constants

    found: list[str] = []
    # Looking a name up cannot be given a time limit, so a thread does it that nobody waits for for long.
    asking = threading.Thread(target=lambda: found.append(load.without_a_hub(seconds)), daemon=True)
    asking.start()
    asking.join(seconds + 0.5)
    obstacle = found[0] if found else f"{constants.ENDPOINT} does not answer within {seconds:g} s"
    if obstacle:
        remedy = "local model folders work without it; HF_ENDPOINT names a mirror"
        return Line("note", "Hub", obstacle, remedy)
    return Line("OK", "Hub", f"{constants.ENDPOINT} answers")


def login() -> Line:
    """Whether there is a token; the hub is not asked, and the token is not shown."""
    from huggingface_hub import get_token

    if get_token():
        kind = "HF_TOKEN" if os.environ.get("HF_TOKEN") else "`hf auth login`"
        return Line("OK", "Hub login", f"a token is there (from {kind}); it is not shown")
    why = "only gated models and uploads need a token"
    return Line("note", "Hub login", f"no token: {why}", "`hf auth login`, if you want either")
