"""Room 1, Find (a Hugging Face dataset): its pictures are written into a local folder once, with a table of captions.

In: a dataset's name and columns. Out: a folder of picture files, bytes as they are in the dataset, and ``captions.jsonl``.
The folder is a cache: derived, and safe to delete.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image, UnidentifiedImageError

from simpletuner.data.cache import content_key, write_atomic
from simpletuner.data.mirror import Mirrored
from simpletuner.data.tables import TableSource, texts_of
from simpletuner.data.types import Skipped
from simpletuner.errors import DataError
from simpletuner.wording import install

TABLE = "captions.jsonl"
STATE = ".dataset.json"
FORMAT = 2  # raise it when other rows are taken or files are named otherwise


@dataclass(frozen=True, slots=True)
class HubDataset:
    """A dataset of the hub, or a local folder in one of its layouts.

    Attributes:
        name: Hub id or folder.
        config: Its configuration, or None.
        split: Its split.
        revision: Hub revision, or None.
        image_column: Column of pictures.
        caption_column: Column of captions: a text, or a list or mapping of texts as alternatives; None for no captions.
        fallback_caption_column: Taken where that is empty, or None.
    """

    name: str
    config: str | None = None
    split: str = "train"
    revision: str | None = None
    image_column: str = "image"
    caption_column: str | None = "caption"
    fallback_caption_column: str | None = None

    def table(self, folder: Path) -> TableSource:
        """The table of captions that ``bring`` writes into ``folder``."""
        columns = " and no ".join(filter(None, (self.caption_column, self.fallback_caption_column)))
        missing = f"has no {columns}; write one there, an empty text if there is nothing to say"
        return TableSource(
            folder / TABLE, "file", "captions", includes_extension=True, origin_column="from", missing=missing
        )


def bring(source: HubDataset, folder: Path, progress: Callable[[Sequence[int]], Iterable[int]] = iter) -> Mirrored:
    """Write the dataset's pictures and captions into ``folder``, unless this very version is there already.

    Args:
        source: Which.
        folder: Where to; made if needed. Nothing else may be kept in it.
        progress: Wraps the row numbers, for a bar.

    Raises:
        DataError: The dataset cannot be loaded, lacks a column, or a package is missing.
    """
    rows = _load(source)
    wanted = content_key(FORMAT, source, getattr(rows, "_fingerprint", ""), len(rows))
    state = _state(folder)
    if state.get("version") == wanted:
        return Mirrored(kept=len(rows), skipped=tuple(Skipped(Path(n), why) for n, why in state["skipped"]))
    for old in state.get("files", []):
        (folder / old).unlink(missing_ok=True)
    lines: list[str] = []
    skipped: list[Skipped] = []
    files: list[str] = []
    for number in progress(range(len(rows))):
        row = rows[number]
        data = (row[source.image_column] or {}).get("bytes")
        ending = picture_ending(data)
        if not data or not ending:
            skipped.append(
                Skipped(Path(f"row {number}"), f"its {source.image_column} holds no picture that can be read")
            )
            continue
        name = f"row-{number:08}.{ending}"
        write_atomic(folder / name, data)
        files.append(name)
        told_as = {"file": name, "captions": _captions(source, row), "from": f"row {number} of {source.name}"}
        lines.append(json.dumps(told_as, ensure_ascii=False))
    write_atomic(folder / TABLE, ("\n".join(lines) + "\n").encode("utf-8", "surrogatepass"))
    told = [(str(s.path), s.reason) for s in skipped]
    write_atomic(folder / STATE, json.dumps({"version": wanted, "files": files, "skipped": told}).encode())
    return Mirrored(fetched=len(files), removed=len(state.get("files", [])), skipped=tuple(skipped))


def _load(source: HubDataset) -> Any:
    """The rows, pictures still as bytes."""
    try:
        import datasets
    except ImportError as error:
        raise DataError(f"a dataset of type huggingface needs one more package: {install('hf')}.") from error
    try:
        rows = datasets.load_dataset(source.name, source.config, split=source.split, revision=source.revision)
    except Exception as error:  # the library has errors of many kinds
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise DataError(
            f"the dataset {source.name!r} (split {source.split}) cannot be loaded: {first[:300]}. "
            "Check its name, your network (HF_ENDPOINT for a mirror), and `hf auth login` for gated ones."
        ) from error
    columns = [source.image_column, source.caption_column, source.fallback_caption_column]
    for column in filter(None, columns):
        if column not in rows.column_names:
            have = ", ".join(rows.column_names)
            raise DataError(f"the dataset {source.name!r} has no column {column!r}; it has {have}.")
    kept = [column for column in dict.fromkeys(filter(None, columns))]
    try:
        return rows.select_columns(kept).cast_column(source.image_column, datasets.Image(decode=False))
    except (TypeError, ValueError, NotImplementedError) as error:  # what Arrow raises for a cast that it has not
        column = f"the column {source.image_column!r} of {source.name!r}"
        raise DataError(f"{column} holds no pictures ({str(error).strip() or type(error).__name__}).") from error


def picture_ending(data: bytes | None) -> str:
    """The file ending that fits these bytes, "" if they are no picture."""
    if not data:
        return ""
    try:
        with Image.open(io.BytesIO(data)) as picture:
            name = (picture.format or "").lower()
    except (UnidentifiedImageError, OSError, ValueError, Image.DecompressionBombError):
        return ""
    return {"jpeg": "jpg", "mpo": "jpg", "tiff": "tif"}.get(name, name)


def _captions(source: HubDataset, row: Mapping[str, Any]) -> list[str]:
    """Alternatives of one row: an empty one where its texts are empty, none where it has no text."""
    found: list[str] = []
    for column in filter(None, (source.caption_column, source.fallback_caption_column)):
        if not any(found):
            found = list(texts_of([*found, *texts_of(row[column])]))
    return found


def _state(folder: Path) -> dict[str, Any]:
    try:
        content = json.loads((folder / STATE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) and "files" in content else {}
