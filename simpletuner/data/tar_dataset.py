"""Room 1, Find (pictures in tar files): each tar is unpacked into a local folder once, with one table of captions.

In: where the tars are: a file, a folder, a glob, a brace pattern, or a URL of one of these. Out: a folder of picture
files, bytes as they came, and ``captions.jsonl``. The folder is a cache: derived, and safe to delete. A tar that has not
changed is not read again; one that cannot be read costs its own pictures, never the run. One that is named and does not
exist ends the run: nobody names a tar to go without it.
"""

from __future__ import annotations

import glob
import json
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.error import HTTPError

from simpletuner.data.cache import content_key, write_atomic
from simpletuner.data.discover import PICTURES
from simpletuner.data.hub_dataset import TABLE
from simpletuner.data.mirror import Mirrored, RemoteSource, open_url, tag_of
from simpletuner.data.network import attempts, check_length, is_web, plain, request
from simpletuner.data.tables import TableSource
from simpletuner.data.tar_reader import unpack
from simpletuner.data.types import Skipped
from simpletuner.errors import CacheError, DataError

ENDINGS = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
STATE = ".tar.json"
FORMAT = 3  # raise it when tar_reader takes other members or names files otherwise
THREADS = 4
LISTED = 5  # names in a message
MOST = 100_000  # tars of one brace pattern
_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")


@dataclass(frozen=True, slots=True)
class TarSource:
    """Where the tars are.

    Attributes:
        place: File, folder, glob, brace pattern, or a URL of one of these; over http(s) files and brace patterns only.
        captions: ``members``: from the tar; ``names``: from the names; None: they come from elsewhere.
        caption_column: Key of the caption in ``.json`` members, preferred to ``.txt`` and ``.caption``; None for
            ``caption``, after those.
        options: For fsspec's file system: credentials, endpoint. Never printed.
    """

    place: str
    captions: str | None = "members"
    caption_column: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict, repr=False)

    def table(self, folder: Path) -> TableSource | None:
        """The table of captions that ``unpack_all`` writes into ``folder``."""
        if self.captions is None:
            return None
        column = self.caption_column or "caption"
        missing = f"its tar has no .txt, .caption, or .json with {column!r} beside it; add one, and pack it again"
        if self.captions == "names":
            missing = "its name is not UTF-8 and cannot be a caption: rename it"
        return TableSource(folder / TABLE, "file", "captions", includes_extension=True, missing=missing)


@dataclass(frozen=True, slots=True)
class _Tar:
    """One tar: its address and what changes when it does; or why it is not to be had, and whether it is gone for good."""

    address: str
    tag: str = ""
    problem: str = ""
    gone: bool = False

    @property
    def name(self) -> str:
        return self.address.partition("?")[0].rstrip("/").rpartition("/")[2]  # a query may hold a secret

    @property
    def home(self) -> str:
        """Folder for its pictures."""
        stem = re.sub(r"[^\w.-]", "_", self.name.partition(".")[0])[:60]
        return f"{stem or 'tar'}-{content_key(self.address)[:12]}"


def unpack_all(source: TarSource, folder: Path, progress: Callable[[Sequence[Any]], Iterable[Any]] = iter) -> Mirrored:
    """Bring the pictures of all tars into ``folder``; tars that were unpacked and did not change are left alone.

    Args:
        source: Which.
        folder: Where to; made if needed. Nothing else may be kept in it.
        progress: Wraps the tars to unpack, for a bar.

    Raises:
        DataError: There is no tar at all, one that is named does not exist, or a package is missing.
        CacheError: The folder cannot be written.
    """
    tars = list(_find(source))
    if not tars:
        raise DataError(f"{_shown(source.place)} (instance_data_dir) has no tar files ({', '.join(ENDINGS)}).")
    _refuse_gone(source, [tar for tar in tars if tar.gone])
    here = {path.parent.name: _state(path.parent) for path in folder.glob(f"*/{STATE}")}
    known = {tar.home: tar for tar in tars if not tar.problem}
    away = [tar for tar in tars if tar.problem]
    records = {
        home: state
        for home, state in here.items()
        if state and (state["tag"] == _version(known[home], source) if home in known else away)
    }
    stale = [home for home in here if home not in records and home not in known]
    fresh = [tar for home, tar in known.items() if home not in records]
    old = any(home not in known for home in records)
    note = "; ".join(f"{tar.name} cannot be reached ({tar.problem}): using what is here" for tar in away if old)
    skipped = [Skipped(Path(tar.name), tar.problem, picture=False) for tar in away if not old]
    if not fresh and not records:
        raise DataError(f"{_shown(source.place)} (instance_data_dir) cannot be read: {skipped[0].reason}.")
    kept = sum(len(state["samples"]) for state in records.values())
    for home in stale:
        shutil.rmtree(folder / home, ignore_errors=True)
    with ThreadPoolExecutor(THREADS) as pool:
        jobs = pool.map(lambda tar: _bring(tar, source, folder), fresh)
        for tar, (state, problem) in zip(progress(fresh), jobs, strict=True):
            if problem:
                skipped.append(Skipped(Path(tar.name), problem, picture=False))
            else:
                records[tar.home] = state
    _write_table(source, folder, records)
    for home, state in sorted(records.items()):
        skipped += [
            Skipped(folder / home / name, reason, Path(name).suffix.lower() in PICTURES)
            for name, reason in state["skipped"]
        ]
    fetched = sum(len(state["samples"]) for state in records.values()) - kept
    removed = sum(len(here[home].get("samples", ())) for home in stale)
    return Mirrored(fetched, kept, removed, tuple(skipped), note)


def _refuse_gone(source: TarSource, gone: Sequence[_Tar]) -> None:
    """Raises DataError if a tar that is named, by itself or by a brace pattern, does not exist."""
    if not gone:
        return
    names = ", ".join(_shown(tar.address) for tar in gone[:LISTED]) + (" …" if len(gone) > LISTED else "")
    raise DataError(
        f"{_shown(source.place)} (instance_data_dir) names {len(gone)} tar file{'s' if len(gone) > 1 else ''} that cannot be "
        f"had ({gone[0].problem}): {names}. What to do: bring what is missing, or name only what is there; a folder or a "
        "pattern with * takes whatever it finds."
    )


def _version(tar: _Tar, source: TarSource) -> str:
    return f"{FORMAT}/{tar.tag}/{source.caption_column or 'caption'}"


def _write_table(source: TarSource, folder: Path, records: Mapping[str, Mapping[str, Any]]) -> None:
    """One row a picture, in ASCII: a name in a tar may be no text at all."""
    rows = [
        {"file": f"{home}/{sample['file']}", "captions": _captions(sample, source)}
        for home, state in sorted(records.items())
        for sample in state["samples"]
    ]
    write_atomic(folder / TABLE, "".join(json.dumps(row) + "\n" for row in rows).encode())


def _captions(sample: Mapping[str, Any], source: TarSource) -> list[str]:
    if source.captions == "names":
        name = str(sample["key"]).rpartition("/")[2].replace("_", " ")
        return [name] if name.isascii() or not re.search("[\ud800-\udfff]", name) else []
    order = ("json", "txt", "caption") if source.caption_column else ("txt", "caption", "json")
    found = [list(sample["texts"][kind]) for kind in order if kind in sample["texts"]]
    return next((texts for texts in found if any(texts)), found[0] if found else [])


def _state(home: Path) -> dict[str, Any]:
    """What was unpacked into a folder, if all of it is still there; else nothing."""
    try:
        content = json.loads((home / STATE).read_text(encoding="utf-8"))
        whole = all((home / s["file"]).stat().st_size == s["size"] for s in content["samples"])
        return content if whole and {"tag", "skipped"} <= content.keys() else {}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _bring(tar: _Tar, source: TarSource, folder: Path) -> tuple[dict[str, Any], str]:
    """(state, "") of one tar, unpacked whole; or ({}, why not) after some tries.

    Raises:
        CacheError: The folder cannot be written.
    """
    home, part = folder / tar.home, folder / f".{tar.home}.part"
    shutil.rmtree(home, ignore_errors=True)  # what a killed run left
    folder.mkdir(parents=True, exist_ok=True)
    problem = ""
    for _ in attempts():
        try:
            if "://" in tar.address:
                _download(tar, source, part)
            record = unpack(
                part if "://" in tar.address else Path(tar.address), home, source.caption_column or "caption"
            )
            state = {"tag": _version(tar, source), "samples": record.samples, "skipped": record.skipped}
            write_atomic(home / STATE, json.dumps(state).encode())
            return state, ""
        except CacheError:
            raise
        except Exception as error:  # noqa: BLE001 - every store has errors of its own
            problem = f"it could not be read: {plain(error)}"
            if isinstance(error, FileNotFoundError | PermissionError):
                break
        finally:
            part.unlink(missing_ok=True)
    return {}, problem


def _download(tar: _Tar, source: TarSource, target: Path) -> None:
    """The whole tar into a file. Raises whatever the store raises; a connection that breaks off is an error."""
    if is_web(tar.address):
        with request(tar.address) as answer, open(target, "wb") as file:
            shutil.copyfileobj(answer, file, 1 << 20)
            check_length(answer, file.tell())
        return
    system, path = open_url(RemoteSource(tar.address, source.options))
    system.get_file(path, str(target))


def _find(source: TarSource) -> Iterator[_Tar]:
    """All tars of a place in a stable order, each once."""
    seen: set[str] = set()
    for place in expand(source.place):
        finder = _find_local
        if is_web(place):
            finder = _find_on_the_web
        elif "://" in place:
            finder = _find_by_fsspec
        for tar in finder(place, source):
            if tar.address not in seen:
                seen.add(tar.address)
                yield tar


def _find_local(place: str, source: TarSource) -> Iterator[_Tar]:
    path = Path(place).expanduser()
    if path.is_dir():
        found = sorted(p for p in path.rglob("*") if _is_tar(p.name) and p.is_file())
    elif path.is_file():
        found = [path]
    elif glob.has_magic(place):
        found = sorted(Path(p) for p in glob.glob(str(path), recursive=True) if Path(p).is_file())
    else:
        yield _Tar(str(path.absolute()), problem="there is no such file", gone=True)
        return
    for file in found:
        status = file.stat()
        yield _Tar(str(file.absolute()), f"{status.st_size}/{status.st_mtime_ns}")


def _find_on_the_web(place: str, source: TarSource) -> Iterator[_Tar]:
    try:
        with request(place, "HEAD") as answer:
            told = [answer.headers.get(name, "") for name in ("Content-Length", "ETag", "Last-Modified")]
        yield _Tar(place, "/".join(told))
    except HTTPError as error:
        if error.code in (405, 501):  # knows no HEAD: fetched once, and not looked at again
            yield _Tar(place, "unknown")
        else:
            gone = error.code in (404, 410)
            yield _Tar(place, problem=f"the server answers {error.code} {error.reason}", gone=gone)
    except OSError as error:
        yield _Tar(place, problem=plain(error))


def _find_by_fsspec(place: str, source: TarSource) -> Iterator[_Tar]:
    system, path = open_url(RemoteSource(place, source.options))
    try:
        system.invalidate_cache()
        if glob.has_magic(place):
            found = system.glob(path, detail=True)
        elif _is_tar(path):
            found = {path: system.info(path)}
        else:
            found = {p: facts for p, facts in system.find(path, detail=True).items() if _is_tar(p)}
        for name, facts in sorted(found.items()):
            if facts.get("type") != "directory":
                yield _Tar(system.unstrip_protocol(name), tag_of(facts))
    except FileNotFoundError:
        yield _Tar(place, problem="there is no such file", gone=True)
    except Exception as error:  # noqa: BLE001 - every store has errors of its own
        yield _Tar(place, problem=plain(error))


def _is_tar(name: str) -> bool:
    return name.lower().endswith(ENDINGS)


def _shown(place: str) -> str:
    return place.partition("?")[0] if "://" in place else place


def expand(pattern: str) -> list[str]:
    """Every address that a brace pattern names: ``a-{00..03}.tar``, ``{train,more}.tar``; a plain one is itself.

    Raises:
        DataError: It names more than ``MOST``.
    """
    match = _BRACES.search(pattern)
    if not match:
        return [pattern]
    inner = match.group(1)
    if span := _RANGE.fullmatch(inner):
        first, last = span.groups()
        low, high = int(first), int(last)
        if abs(high - low) >= MOST:
            raise DataError(f"{_shown(pattern)} names more than {MOST} files.")
        steps = range(low, high + 1) if low <= high else range(low, high - 1, -1)
        choices = [str(number).zfill(len(first)) for number in steps]
    elif "," in inner:
        choices = inner.split(",")
    else:  # no pattern, only braces: left as they are
        head, tail = pattern[: match.end()], pattern[match.end() :]
        return [head + rest for rest in expand(tail)]
    found = [pattern[: match.start()] + c + rest for c in choices for rest in expand(pattern[match.end() :])]
    if len(found) > MOST:
        raise DataError(f"{_shown(pattern)} names more than {MOST} files.")
    return found
