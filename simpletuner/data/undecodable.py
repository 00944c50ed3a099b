"""Room 4, Keep: which pictures could not be decoded, remembered by what is in them, so that none is tried in every run.

In: digests and reasons. Out: the same in a later run. A file that is mended has another digest and is tried again; so is
every file by another version of the decoder.
"""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Iterable
from pathlib import Path

import PIL

from simpletuner.data.cache import write_atomic
from simpletuner.data.digests import digest_of
from simpletuner.data.encode import DECODER
from simpletuner.errors import CacheError

NAME = "undecodable.json"
_VERSION = f"{DECODER}, Pillow {PIL.__version__}"
_lock = threading.Lock()


def known(memory: Path) -> dict[str, str]:
    """Reasons by digest.

    Args:
        memory: Folder whose ``undecodable.json`` remembers them; it is only a shortcut and may be deleted.
    """
    with contextlib.suppress(OSError, ValueError, AttributeError):
        content = json.loads((memory / NAME).read_text(encoding="utf-8"))
        if content.get("decoder") == _VERSION:
            return {str(digest): str(reason) for digest, reason in content["pictures"].items()}
    return {}


def remember(memory: Path, failures: Iterable[tuple[Path, str, str]]) -> None:
    """Add pictures; where this cannot be written they are tried again next time.

    Args:
        memory: As for ``known``.
        failures: Path, digest and reason of each. One whose bytes cannot be read now, or are others, is left out: then it
            may have been the disk or the network.
    """
    reasons = {digest: reason for path, digest, reason in failures if _holds(path, digest)}
    if not reasons:
        return
    with _lock, contextlib.suppress(CacheError):
        content = {"decoder": _VERSION, "pictures": known(memory) | reasons}
        write_atomic(memory / NAME, json.dumps(content, indent=1).encode("utf-8", "backslashreplace"))


def _holds(path: Path, digest: str) -> bool:
    try:
        return digest_of(path) == digest
    except OSError:
        return False
