"""Room 1, Find: a folder becomes samples.

In: a folder, caption and placement rules. Out: a Discovery in which every picture file is either used or skipped with
its reason. Reads headers only; decodes nothing and writes nothing.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from simpletuner.data.captions import CaptionRules, captions_for
from simpletuner.data.images import read_size
from simpletuner.data.placement import PlacementRules, reject_reason
from simpletuner.data.types import Sample, Skipped
from simpletuner.errors import DataError, ImageError

PICTURES = frozenset(
    ".png .apng .jpg .jpeg .jpe .jfif .webp .bmp .dib .gif .tif .tiff .avif .avifs .jp2 .j2k .ppm .pgm .tga .ico".split()
)
# Files that belong beside pictures and need no remark.
SIDECARS = frozenset(".txt .json .jsonl .csv .parquet .md .npz .safetensors .caption .yaml .yml .xml .db .ini".split())


@dataclass(frozen=True, slots=True)
class Discovery:
    """What was found; ``len(samples) + len(skipped)`` is the number of files looked at."""

    samples: tuple[Sample, ...]
    skipped: tuple[Skipped, ...]


def find_pictures(folder: Path) -> tuple[list[Path], list[Skipped]]:
    """All picture files below ``folder`` in an order that is the same on every system.

    Hidden files and folders are left alone. Links to folders are followed once.

    Returns:
        Pictures, and files that are neither pictures nor the usual files beside them.
    """
    pictures: list[Path] = []
    skipped: list[Skipped] = []
    seen: set[Path] = set()
    for root, folders, files in os.walk(folder, followlinks=True):
        real = Path(root).resolve()
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in files:
            path = Path(root) / name
            if name.startswith("."):
                continue
            if path.suffix.lower() in PICTURES:
                pictures.append(path)
            elif path.suffix.lower() not in SIDECARS:
                skipped.append(Skipped(path, f"{path.suffix or 'a file without ending'} is not a picture format"))
    return sorted(pictures, key=lambda p: p.relative_to(folder).parts), sorted(skipped, key=lambda s: s.path.parts)


def discover(folder: Path, captions: CaptionRules, placement: PlacementRules) -> Discovery:
    """Find the usable pictures of one dataset.

    Args:
        folder: Searched with all its subfolders.
        captions: How captions are found.
        placement: For the size filter.

    Raises:
        DataError: The folder is missing, or holds no picture at all.
    """
    if not folder.is_dir():
        raise DataError(f"there is no folder {folder} (instance_data_dir). Make it, or correct the path.")
    pictures, skipped = find_pictures(folder)
    if not pictures:
        raise DataError(
            f"no images detected in dataset: {folder} holds no picture files. Put pictures there "
            f"({', '.join(sorted(PICTURES)[:6])} …), or correct instance_data_dir."
        )
    samples: list[Sample] = []
    for path in pictures:
        try:
            size = read_size(path)
            reason = reject_reason(size, placement)
            found = captions_for(path, captions) if reason is None else ()
        except (ImageError, DataError) as error:
            reason = str(error)
        if reason is None:
            samples.append(Sample(path, size, found))
        else:
            skipped.append(Skipped(path, reason))
    return Discovery(tuple(samples), tuple(skipped))
