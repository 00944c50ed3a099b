"""What a run learned from, at a glance: thumbnails and captions of some of its pictures, kept beside its figures.

In: surveys of the training datasets. Out: ``dataset_sheet.json``, from which the dashboard and the report show them also
when the pictures are gone. Reads pictures and never writes to their folders.
"""

from __future__ import annotations

import io
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from simpletuner.data.cache import write_atomic
from simpletuner.data.images import open_rgb
from simpletuner.data.survey import Picture, Survey, data_url
from simpletuner.data.types import Size
from simpletuner.errors import CacheError, ImageError

NAME = "dataset_sheet.json"
MOST = 60  # pictures in all
EDGE = 176  # px of a thumbnail
LONGEST = 600  # characters of a caption
SECONDS = 5.0  # after which no further picture is decoded


def write(folder: Path, surveys: Sequence[Survey]) -> None:
    """Write the sheet; it is an extra, so a full disk is left to the caches to tell."""
    deadline = time.monotonic() + SECONDS
    seen: dict[Path, str] = {}
    share = max(1, MOST // max(1, len(surveys)))
    sheets = [_sheet(survey, share, seen, deadline) for survey in surveys]
    text = json.dumps({"version": 1, "datasets": sheets}, ensure_ascii=True)
    try:
        write_atomic(folder / NAME, text.encode())
    except CacheError:
        return


def _sheet(survey: Survey, share: int, seen: dict[Path, str], deadline: float) -> dict[str, Any]:
    chosen = spread(survey.pictures, share)
    pictures = []
    for picture in chosen:
        if picture.path not in seen:
            seen[picture.path] = _thumbnail(picture.path) if time.monotonic() < deadline else ""
        if seen[picture.path]:
            pictures.append(
                {
                    "name": picture.path.name.encode("utf-8", "backslashreplace").decode(),
                    "captions": [caption[:LONGEST] for caption in picture.captions[:4]],
                    "size": str(picture.size),
                    "bucket": str(picture.bucket),
                    "thumbnail": seen[picture.path],
                }
            )
    return {
        "id": survey.id,
        "role": survey.role,
        "found": survey.found,
        "used": len(survey.pictures),
        "buckets": [[str(line.size), line.count] for line in survey.buckets],
        "pictures": pictures,
    }


def spread(pictures: Sequence[Picture], most: int) -> list[Picture]:
    """At most so many, evenly from front to end."""
    if len(pictures) <= most:
        return list(pictures)
    return [pictures[i * len(pictures) // most] for i in range(most)]


def _thumbnail(path: Path) -> str:
    """A JPEG as a data address; "" for a picture that cannot be decoded, which caching tells."""
    try:
        picture = open_rgb(path, at_least=Size(EDGE, EDGE), exact_colours=False)
    except ImageError:
        return ""
    picture.thumbnail((EDGE, EDGE), Image.Resampling.LANCZOS, reducing_gap=2.0)
    memory = io.BytesIO()
    picture.save(memory, format="JPEG", quality=78)
    return data_url(memory.getvalue())
