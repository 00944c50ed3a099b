"""Room 1, Find: a folder becomes samples.

In: a folder, caption and placement rules. Out: a Discovery in which every picture file is either used or skipped with
its reason. Reads headers only; decodes nothing and writes nothing.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from simpletuner.data.captions import CaptionRules, captions_for
from simpletuner.data.images import read_size
from simpletuner.data.placement import PlacementRules, reject_reason
from simpletuner.data.types import Sample, Skipped
from simpletuner.errors import DataError
from simpletuner.wording import counted

_PICTURE_ENDINGS = "png jpg jpeg webp bmp tif tiff gif avif jfif jpe apng avifs dib jp2 j2k ppm pgm tga ico"
_SIDECAR_ENDINGS = "txt json jsonl csv parquet md npz safetensors caption yaml yml xml db ini"
PICTURES = tuple(f".{ending}" for ending in _PICTURE_ENDINGS.split())
_HEIC = (".heic", ".heif", ".hif")
# Files that belong beside pictures and need no remark where one has their name.
SIDECARS = tuple(f".{ending}" for ending in _SIDECAR_ENDINGS.split())
ALONE = "no picture beside it has its name"


@dataclass(frozen=True, slots=True)
class Discovery:
    """What was found; ``len(samples) + len(skipped)`` is the number of files looked at."""

    samples: tuple[Sample, ...]
    skipped: tuple[Skipped, ...]


def beside(name: str, stems: Collection[str]) -> bool:
    """Whether a file belongs to a picture: ``a.txt`` and ``a.mask.json`` to one with the stem ``a``."""
    return any(name[:at] in stems for at, letter in enumerate(name) if letter == ".")


def find_pictures(folder: Path, known: Collection[Path] = ()) -> tuple[list[Path], list[Skipped]]:
    """All picture files below ``folder`` in an order that is the same on every system.

    Hidden files and folders are left alone. Links to folders are followed, each folder once, so loops end.

    Args:
        folder: Searched with all its subfolders.
        known: Files that are no pictures and have their use, such as a table of captions.

    Returns:
        Pictures, and what is left out: folders that cannot be read, and files that are neither pictures nor of the
        usual kinds beside one of the same name.
    """
    expected = {path.resolve() for path in known}
    pictures: list[Path] = []
    skipped: list[Skipped] = []
    seen: set[Path] = set()

    def unreadable(error: OSError) -> None:
        reason = f"the folder cannot be read ({error.strerror})"
        skipped.append(Skipped(Path(error.filename), reason, picture=False))

    for root, folders, files in os.walk(folder, followlinks=True, onerror=unreadable):
        real = Path(root).resolve()
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        # Sorted, so that the same one of two links to a folder is taken on every system.
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        stems = {Path(name).stem for name in files if Path(name).suffix.lower() in (*PICTURES, *_HEIC)}
        for name in files:
            path = Path(root) / name
            if name.startswith("."):
                continue
            if path.suffix.lower() in PICTURES:
                pictures.append(path)
            elif path.suffix.lower() not in SIDECARS:
                skipped.append(_no_picture(path))
            elif not beside(name, stems) and path.resolve() not in expected:
                skipped.append(Skipped(path, f"{ALONE}, so it is not used", picture=False))
    return sorted(pictures, key=lambda p: p.relative_to(folder).parts), sorted(skipped, key=lambda s: s.path.parts)


def _no_picture(path: Path) -> Skipped:
    if path.suffix.lower() in _HEIC:
        return Skipped(path, "HEIC cannot be read here: convert it to JPEG or PNG")
    reason = f"{path.suffix} is not a picture format that is read here"
    if path.suffix in ("", "."):
        reason = "its name has no ending: if it is a picture, add the right one (.jpg, .png …)"
    return Skipped(path, reason, picture=False)


def _look_at(path: Path, caption_rules: CaptionRules, placement_rules: PlacementRules) -> Sample | Skipped:
    """One picture file, from its header and its caption alone."""
    try:
        size = read_size(path)
        reason = reject_reason(size, placement_rules)
        return Skipped(path, reason) if reason else Sample(path, size, captions_for(path, caption_rules))
    except DataError as error:  # also ImageError
        return Skipped(path, str(error))


def discover(
    folder: Path,
    caption_rules: CaptionRules,
    placement_rules: PlacementRules,
    progress: Callable[[Sequence[Path]], Iterable[Path]] = iter,
    known: Collection[Path] = (),
) -> Discovery:
    """Find the usable pictures of one dataset.

    Args:
        folder: Searched with all its subfolders.
        caption_rules: How captions are found.
        placement_rules: For the size filter.
        progress: Wraps the list of picture files while they are looked at, for a progress bar.
        known: Files that are no pictures and have their use, such as a table of captions.

    Returns:
        Every file that was looked at, either used or skipped.

    Raises:
        DataError: The folder is missing, or holds no picture at all.
    """
    if not folder.is_dir():
        what = "it is a file" if folder.exists() else "it does not exist"
        raise DataError(f"{folder} (instance_data_dir) is no folder: {what}. Make it, or correct the path.")
    pictures, skipped = find_pictures(folder, known)
    if closed := [left.reason for left in skipped if left.path == folder]:
        raise DataError(
            f"{folder} (instance_data_dir): {closed[0]}. What to do: allow reading it, for instance with `chmod -R u+rX`, or "
            "correct the path."
        )
    if not pictures:
        raise DataError(
            f"no images detected in dataset: {folder} holds no picture files ({counted(len(skipped), 'other file')}). Put pictures "
            f"there ({', '.join(PICTURES[:6])} …), or correct instance_data_dir."
        )
    samples: list[Sample] = []
    for path in progress(pictures):
        found = _look_at(path, caption_rules, placement_rules)
        if isinstance(found, Sample):
            samples.append(found)
        else:
            skipped.append(found)
    return Discovery(tuple(samples), tuple(skipped))
