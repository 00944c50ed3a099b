"""Room 1, Find (captions in a table): one Parquet, JSONL, JSON or CSV file with a row for each picture.

In: a table file and the names of its columns. Out: captions by picture. Reads the named columns alone.
"""

from __future__ import annotations

import csv
import json
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from simpletuner.errors import DataError
from simpletuner.wording import install

ENDINGS = (".parquet", ".jsonl", ".json", ".csv")


@dataclass(frozen=True, slots=True)
class TableSource:
    """A table of captions.

    Attributes:
        path: The file; its ending says what it is.
        filename_column: Path of the picture inside ``instance_data_dir``.
        caption_column: Its caption, or a list of alternatives.
        fallback_caption_column: Taken where the caption is empty, or None.
        includes_extension: Whether the file names have their ending.
        origin_column: Where the picture came from, where the table is not the user's own; "" for no such column.
        missing: What to say of a picture without a caption, after where it came from; "" for the usual.
    """

    path: Path
    filename_column: str
    caption_column: str
    fallback_caption_column: str | None = None
    includes_extension: bool = False
    origin_column: str = ""
    missing: str = ""


@dataclass(frozen=True, slots=True)
class CaptionTable:
    """Captions by picture name, and where the pictures came from."""

    source: TableSource
    folder: Path
    rows: Mapping[str, tuple[str, ...]]
    origins: Mapping[str, str]
    names: Mapping[str, str] = field(default_factory=dict)  # as the table writes them

    def without_picture(self, pictures: Iterable[Path]) -> list[str]:
        """Names that have a row and are none of these pictures below ``folder``: as they are written, in order of rows."""
        keep = self.source.includes_extension
        here = {_key(picture.relative_to(self.folder).as_posix(), keep_ending=keep) for picture in pictures}
        return [self.names.get(key, key) for key in self.rows if key not in here]

    def captions(self, picture: Path) -> tuple[str, ...]:
        """The captions of a picture below ``folder``.

        Raises:
            DataError: The table has no row for it, or one without a caption.
        """
        name = _key(picture.relative_to(self.folder).as_posix(), keep_ending=self.source.includes_extension)
        found = self.rows.get(name)
        table = self.source.path.name
        if found is None:
            reason = f"it has no row in {table} ({self.source.filename_column} = {name!r})"
            raise DataError(f"{reason}; add one, or correct filename_column")
        if not found and self.source.missing:
            raise DataError(" ".join(filter(None, (self.origins.get(name), self.source.missing))))
        if not found:
            raise DataError(
                f"it has no caption in {table} (no text in {self.source.caption_column}); write one there, or name a fallback_caption_column"
            )
        return found


def read_table(source: TableSource, folder: Path) -> CaptionTable:
    """Read a table.

    Args:
        source: Which, and how its columns are called.
        folder: The pictures its names are relative to.

    Raises:
        DataError: The file is missing, cannot be read, or lacks a column.
    """
    rows: dict[str, tuple[str, ...]] = {}
    origins: dict[str, str] = {}
    names: dict[str, str] = {}
    for row in _rows(source):
        name = row.get(source.filename_column)
        if not isinstance(name, str) or not name:
            continue
        found = texts_of(row.get(source.caption_column))
        if not any(found) and source.fallback_caption_column:
            found = texts_of([*found, *texts_of(row.get(source.fallback_caption_column))])
        key = _key(name.replace("\\", "/"), keep_ending=source.includes_extension)
        names.setdefault(key, name)
        rows[key] = texts_of(list(dict.fromkeys((*rows.get(key, ()), *found))))  # several rows: several captions
        if source.origin_column:
            origins[key] = str(row.get(source.origin_column, ""))
    return CaptionTable(source, folder, rows, origins, names)


def _key(name: str, keep_ending: bool) -> str:
    """One spelling of a name: macOS stores accents apart from their letters, tables mostly do not."""
    path = PurePosixPath(unicodedata.normalize("NFC", name))
    # Only a picture's ending is one: "v1.5 cat" keeps its dot.
    has_ending = path.suffix and len(path.suffix) <= 6 and " " not in path.suffix
    return str(path if keep_ending or not has_ending else path.with_suffix(""))


def texts_of(value: Any) -> tuple[str, ...]:
    """A text, or a list or mapping of texts, as alternatives.

    Returns:
        Those that say something; one empty text where there are only empty ones, as an empty file is an empty caption;
        () where there is no text at all.
    """
    if isinstance(value, Mapping):
        value = list(value.values())
    values = value if isinstance(value, list | tuple) else [value]
    texts = [text.strip() for text in values if isinstance(text, str)]
    return tuple(text for text in texts if text) or tuple(texts[:1])


def _rows(source: TableSource) -> Iterator[Mapping[str, Any]]:
    wanted = [source.filename_column, source.caption_column]
    wanted += filter(None, [source.fallback_caption_column, source.origin_column])
    kind = source.path.suffix.lower()
    if kind not in ENDINGS:
        raise DataError(f"{source.path} is no table that can be read: {', '.join(ENDINGS)} can.")
    if not source.path.is_file():  # before anything that reading it would need
        what = "it is no file" if source.path.exists() else "it does not exist"
        raise DataError(f"{source.path} is no table of captions: {what}. Make it, or correct its path.")
    try:
        rows = _parquet(source.path, wanted) if kind == ".parquet" else _plain(source.path, kind)
        columns: set[str] = set()
        for row in rows:
            columns |= row.keys()
            yield row
    except (OSError, UnicodeDecodeError, ValueError, csv.Error) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise DataError(f"the table {source.path} cannot be read: {reason}") from error
    lacking = [name for name in wanted if name not in columns]
    if lacking and columns:
        have = ", ".join(sorted(columns))
        raise DataError(f"the table {source.path} has no column {lacking[0]!r}; it has {have}.")


def _plain(path: Path, kind: str) -> Iterator[Mapping[str, Any]]:
    with open(path, encoding="utf-8-sig", newline="") as file:
        if kind == ".csv":
            yield from csv.DictReader(file)
        elif kind == ".jsonl":
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield _object(json.loads(line), f"line {number}")
        else:
            content = json.load(file)
            if not isinstance(content, list):
                raise ValueError("it must be one list of objects")
            for number, row in enumerate(content, 1):
                yield _object(row, f"entry {number}")


def _object(row: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(row, Mapping):
        raise ValueError(f"{where} is no object")
    return row


def _parquet(path: Path, wanted: list[str]) -> Iterator[Mapping[str, Any]]:
    try:
        import pyarrow.parquet as parquet
    except ImportError as error:
        raise DataError(f"reading {path} needs pyarrow: {install('parquet')}, or write the table as JSONL.") from error
    file = parquet.ParquetFile(path)
    have = [name for name in dict.fromkeys(wanted) if name in file.schema_arrow.names]
    if len(have) < len(set(wanted)):
        lacking = next(name for name in wanted if name not in have)
        raise DataError(f"the table {path} has no column {lacking!r}; it has {', '.join(file.schema_arrow.names)}.")
    for batch in file.iter_batches(columns=have):
        yield from batch.to_pylist()
