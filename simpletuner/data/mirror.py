"""Room 1, Find (elsewhere): files behind a URL are brought into a local folder once; from there on all is as usual.

In: a URL that fsspec understands (s3://, gs://, https://, …). Out: a folder with its pictures and caption files, and
the files that were left where they are. Only what is new or changed is fetched; a file is whole or absent. The folder
is a cache: derived, and safe to delete.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from simpletuner.data.cache import write_atomic
from simpletuner.data.discover import ALONE, PICTURES, SIDECARS, beside
from simpletuner.data.network import attempts, plain
from simpletuner.data.types import Skipped
from simpletuner.errors import DataError
from simpletuner.wording import install

STATE = ".mirror.json"
CAPTIONS = (".txt",)
THREADS = 8


@dataclass(frozen=True, slots=True)
class RemoteSource:
    """Where the files are.

    Attributes:
        url: For fsspec; a folder.
        options: For fsspec's file system: credentials, endpoint. Never printed.
    """

    url: str
    options: Mapping[str, Any] = field(default_factory=dict, repr=False)


@dataclass(frozen=True, slots=True)
class Mirrored:
    """What was done.

    Attributes:
        fetched: Files brought here now.
        kept: Files that were here already.
        removed: Files that are gone at the source, and now here too.
        skipped: Files that were not brought here, with reasons.
        note: A sentence if the source could not be reached and what was fetched earlier is used; else "".
    """

    fetched: int = 0
    kept: int = 0
    removed: int = 0
    skipped: tuple[Skipped, ...] = ()
    note: str = ""


def mirror(source: RemoteSource, folder: Path, progress: Callable[[Sequence[str]], Iterable[str]] = iter) -> Mirrored:
    """Bring the pictures and caption files of a URL into ``folder``.

    Args:
        source: Where they are.
        folder: Where to; made if needed. Nothing else may be kept in it.
        progress: Wraps the names to fetch, for a bar.

    Raises:
        DataError: The source cannot be reached and nothing was fetched earlier, or a package is missing.
    """
    known = _state(folder)
    try:
        system, root = open_url(source)
        listed = _listing(system, root)
    except DataError:
        raise
    except Exception as error:  # every store has errors of its own
        if not known:
            raise DataError(
                f"{source.url} cannot be read: {plain(error)}. Check address, access and network."
            ) from error
        return Mirrored(kept=len(known), note=f"{source.url} cannot be reached ({plain(error)}): using what is here")
    wanted, skipped = _choose(listed, root)
    stale = [name for name in known if name not in wanted]
    for name in stale:
        with contextlib.suppress(OSError):
            (folder / name).unlink()
    fresh = {n: tag for n, (_, tag) in wanted.items() if known.get(n) == tag and (folder / n).is_file()}
    missing = [name for name in wanted if name not in fresh]
    state = dict(fresh)
    with ThreadPoolExecutor(THREADS) as pool:
        jobs = pool.map(lambda name: _fetch(system, wanted[name][0], folder / name), missing)
        for name, problem in zip(progress(missing), jobs, strict=True):
            if problem:
                skipped.append(Skipped(folder / name, f"it could not be fetched: {problem}"))
            else:
                state[name] = wanted[name][1]
    write_atomic(folder / STATE, json.dumps(state).encode())
    return Mirrored(len(state) - len(fresh), len(fresh), len(stale), tuple(skipped))


def open_url(source: RemoteSource) -> tuple[Any, str]:
    """The file system of a URL, and the path in it. Raises DataError if a package is missing."""
    import fsspec

    try:
        system, root = fsspec.core.url_to_fs(source.url, **source.options)
    except ImportError as error:
        extra = "s3" if source.url.startswith("s3://") else ""
        what = install(extra) if extra else str(error)
        raise DataError(f"{source.url} needs one more package: {what}.") from error
    return system, root.rstrip("/")


def _listing(system: Any, root: str) -> dict[str, dict[str, Any]]:
    """Path → facts of every file below ``root``, fresh from the source."""
    system.invalidate_cache()
    found = system.find(root, detail=True)
    return {str(path): facts for path, facts in found.items() if facts.get("type") != "directory"}


def _choose(listed: Mapping[str, dict[str, Any]], root: str) -> tuple[dict[str, tuple[str, str]], list[Skipped]]:
    """(remote path, tag) by local name of what is worth fetching, and what is left."""
    wanted: dict[str, tuple[str, str]] = {}
    skipped: list[Skipped] = []
    stems = {
        str(PurePosixPath(path).with_suffix("")) for path in listed if PurePosixPath(path).suffix.lower() in PICTURES
    }
    for path, facts in sorted(listed.items()):
        name = path.removeprefix(root).lstrip("/")
        parts = PurePosixPath(name).parts
        ending = PurePosixPath(name).suffix.lower()
        if any(part.startswith(".") for part in parts):
            continue  # hidden, as in a local folder; also whatever would lead out of the folder
        if ending in (*PICTURES, *CAPTIONS):
            wanted[name] = (path, tag_of(facts))
        elif ending not in SIDECARS:
            reason = f"{ending or 'a file without ending'} is not a picture format"
            skipped.append(Skipped(Path(name), reason, picture=False))
        elif not beside(path, stems):
            skipped.append(Skipped(Path(name), f"{ALONE}, so it is not fetched", picture=False))
    return wanted, skipped


def tag_of(facts: Mapping[str, Any]) -> str:
    """What changes when the remote file does: size and content tag, or its time."""
    changing = next(
        (facts[k] for k in ("ETag", "etag", "md5Hash", "LastModified", "mtime", "created") if facts.get(k)), ""
    )
    return f"{facts.get('size')}/{changing}"


def _fetch(system: Any, remote: str, local: Path) -> str:
    """Bring one file here whole; "" or, after some tries, why not."""
    temporary = local.with_name(f".{local.name[:100]}.{os.getpid()}.part")
    problem = ""
    for _ in attempts():
        try:
            local.parent.mkdir(parents=True, exist_ok=True)
            system.get_file(remote, str(temporary))
            os.replace(temporary, local)
            return ""
        except Exception as error:  # noqa: BLE001 - every store has errors of its own
            with contextlib.suppress(OSError):
                temporary.unlink()
            problem = plain(error)
            if isinstance(error, FileNotFoundError) or (isinstance(error, OSError) and error.errno in _HOPELESS):
                return problem
    return problem


_HOPELESS = (28, 30, 36)  # no space, read-only, name too long: another try changes nothing


def _state(folder: Path) -> dict[str, str]:
    """Tags of the files fetched earlier, by name."""
    try:
        content = json.loads((folder / STATE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return {str(k): str(v) for k, v in content.items()} if isinstance(content, dict) else {}
