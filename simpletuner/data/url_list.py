"""Room 1, Find (a CSV file of addresses): its pictures are fetched into a local folder once, with a table of captions.

In: the file and its columns. Out: a folder of picture files, bytes as they came, and ``captions.jsonl``. The folder is a
cache: derived, and safe to delete. A picture that cannot be fetched costs that picture, never the run.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.parse import unquote

from simpletuner.data.cache import content_key, write_atomic
from simpletuner.data.hub_dataset import TABLE, picture_ending
from simpletuner.data.mirror import THREADS, Mirrored
from simpletuner.data.network import attempts, check_length, is_web, plain, request
from simpletuner.data.tables import TableSource, texts_of
from simpletuner.data.types import Skipped
from simpletuner.errors import DataError

STATE = ".list.json"
# Columns that may hold the address, the likeliest first; upper and lower case are the same.
ADDRESS_COLUMNS = ("url", "image_url", "image", "image_path", "path", "file_name", "filename", "file")
LARGEST = 1 << 30  # bytes of one picture
LONGEST_STEM = 60  # characters of a file's name here that are taken from its address


@dataclass(frozen=True, slots=True)
class UrlList:
    """A CSV file with a header line.

    Attributes:
        file: UTF-8, commas, quotes where needed.
        caption_column: Column of captions, or None for none.
    """

    file: Path
    caption_column: str | None = "caption"

    def table(self, folder: Path) -> TableSource:
        """The table of captions that ``fetch`` writes into ``folder``."""
        missing = f"has no caption in {self.file.name}: its row ends before {self.caption_column!r}; write one there"
        return TableSource(
            folder / TABLE, "file", "captions", includes_extension=True, origin_column="from", missing=missing
        )


def fetch(source: UrlList, folder: Path, progress: Callable[[Sequence[str]], Iterable[str]] = iter) -> Mirrored:
    """Bring the listed pictures into ``folder``; those that are there already are not asked for again.

    Args:
        source: The list.
        folder: Where to; made if needed. Files of ours that are no longer listed are removed.
        progress: Wraps the addresses to fetch, for a bar.

    Raises:
        DataError: The file cannot be read, or lacks a column.
    """
    captions = _read(source)
    known = {url: name for url, name in _state(folder).items() if (folder / name).is_file()}
    kept = {url: name for url, name in known.items() if url in captions}
    for url in known.keys() - kept.keys():
        (folder / known[url]).unlink(missing_ok=True)
    missing = [url for url in captions if url not in kept]
    skipped: list[Skipped] = []
    names = dict(kept)
    with ThreadPoolExecutor(THREADS) as pool:
        jobs = pool.map(lambda url: _bring(url, source.file.parent, folder), missing)
        for url, (name, problem) in zip(progress(missing), jobs, strict=True):
            if problem:
                skipped.append(Skipped(Path(url.rstrip("/").rpartition("/")[2] or url), f"{url}: {problem}"))
            else:
                names[url] = name
    rows = [
        {"file": names[url], "captions": texts, "from": _shown(url)} for url, texts in captions.items() if url in names
    ]
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    write_atomic(folder / TABLE, lines.encode("utf-8", "surrogatepass"))
    write_atomic(folder / STATE, json.dumps(names).encode())
    return Mirrored(len(names) - len(kept), len(kept), len(known) - len(kept), tuple(skipped))


def _read(source: UrlList) -> dict[str, list[str]]:
    """Captions by address, in the order of the file; an address listed several times has several captions."""
    try:
        with open(source.file, encoding="utf-8-sig", newline="") as file:
            rows = list(csv.DictReader(file))
            columns = list(rows[0]) if rows else []
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise DataError(f"{source.file} (csv_file) cannot be read: {reason}.") from error
    by_name = {str(column).strip().lower(): column for column in columns}
    address = next((by_name[name] for name in ADDRESS_COLUMNS if name in by_name), None)
    have = f"it has {', '.join(map(str, columns))}" if columns else "it has no rows"
    if address is None:
        raise DataError(f"{source.file} (csv_file) has no column of addresses ({', '.join(ADDRESS_COLUMNS)}); {have}.")
    if source.caption_column and source.caption_column not in columns:
        raise DataError(f"{source.file} has no column {source.caption_column!r} (csv_caption_column); {have}.")
    found: dict[str, list[str]] = {}
    for row in rows:
        url = (row[address] or "").strip()
        if url:
            texts = [*found.get(url, ()), row.get(source.caption_column or "")]
            found[url] = list(dict.fromkeys(texts_of(texts)))
    return found


def _shown(url: str) -> str:
    """An address as it may be printed: a query may hold a secret."""
    return url.partition("?")[0] if "://" in url else url


def _name(url: str, ending: str) -> str:
    """A file name by which a person knows the address again, and that no other address has."""
    last = unquote(_shown(url)).replace("\\", "/").rstrip("/").rpartition("/")[2]
    stem = re.sub(r"[^\w.-]", "_", last.rpartition(".")[0] or last)[:LONGEST_STEM].strip(".")
    return f"{stem or 'picture'}~{content_key(url)[:16]}.{ending}"


def _bring(url: str, home: Path, folder: Path) -> tuple[str, str]:
    """(name, "") of one picture, brought here whole; or ("", why not) after some tries."""
    problem = ""
    for _ in attempts():
        try:
            data = _bytes(url, home)
            ending = picture_ending(data)
            if not ending:
                return "", "what is there is no picture that can be read"
            name = _name(url, ending)
            write_atomic(folder / name, data)
            return name, ""
        except Exception as error:  # noqa: BLE001 - every store has errors of its own
            problem = plain(error)
            if isinstance(error, FileNotFoundError | ImportError | ValueError):
                return "", problem
            if isinstance(error, HTTPError) and 400 <= error.code < 500 and error.code not in (408, 429):
                return "", problem
    return "", problem


def _bytes(url: str, home: Path) -> bytes:
    """The whole file. Raises whatever the store raises; a connection that breaks off is an error, not a short file."""
    if is_web(url):
        with request(url) as answer:
            data: bytes = answer.read(LARGEST + 1)
            if len(data) <= LARGEST:
                check_length(answer, len(data))
    elif "://" in url:
        import fsspec

        with fsspec.open(url, "rb") as file:
            data = file.read(LARGEST + 1)
    else:
        data = (home / Path(url).expanduser()).read_bytes()
    if len(data) > LARGEST:
        raise ValueError("it is larger than 1 GiB")
    return data


def _state(folder: Path) -> Mapping[str, str]:
    """Names of the files fetched earlier, by address."""
    try:
        content: Any = json.loads((folder / STATE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
