"""Room 4, Keep: what a picture file holds, as a digest of its bytes, remembered so that each file is read once.

In: paths. Out: sha256 digests. A remembered digest counts while size, times and inode of the file stay.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from simpletuner.data.cache import write_atomic
from simpletuner.errors import CacheError

THREADS = 4  # hashlib lets go of the interpreter lock
NAME = "digests.json"


def digest_of(path: Path) -> str:
    """Hex sha256 of the file's bytes. Raises OSError."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _signature(path: Path) -> list[int]:
    """What changes when a file is written or replaced, even by one of the same size and modification time."""
    stat = path.stat()
    return [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino]


def digests(
    paths: Sequence[Path], memory: Path, progress: Callable[[Sequence[Path]], Iterable[Path]] = iter
) -> dict[Path, str]:
    """Digest of each file that can be read; one that cannot is left out.

    Args:
        paths: Files.
        memory: Folder whose ``digests.json`` remembers earlier answers; it is only a shortcut and may be deleted.
        progress: Wraps the files that must be read, for a progress bar.
    """
    store = memory / NAME
    known: dict[str, list[object]] = {}
    with contextlib.suppress(OSError, ValueError):
        content = json.loads(store.read_text(encoding="utf-8"))
        known = content if isinstance(content, dict) else {}
    found: dict[Path, str] = {}
    unread: list[Path] = []
    signatures: dict[Path, list[int]] = {}
    for path in paths:
        with contextlib.suppress(OSError):
            signatures[path] = _signature(path)
            remembered = known.get(str(path.resolve()))
            if isinstance(remembered, list) and remembered[:-1] == signatures[path]:
                found[path] = str(remembered[-1])
            else:
                unread.append(path)
    if not unread:
        return found
    with ThreadPoolExecutor(THREADS) as pool:
        for path, digest in zip(progress(unread), pool.map(_digest_or_none, unread), strict=True):
            if digest:
                found[path] = digest
                known[str(path.resolve())] = [*signatures[path], digest]
    with contextlib.suppress(CacheError):  # without the shortcut the files are read again next time
        write_atomic(store, json.dumps(known).encode())
    return found


def _digest_or_none(path: Path) -> str | None:
    try:
        return digest_of(path)
    except OSError:
        return None
