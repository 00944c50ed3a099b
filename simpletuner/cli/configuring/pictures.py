"""Looks at a folder of pictures with the program's own discovery: headers and caption files alone; nothing is written."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from simpletuner.cli.configuring.answers import Captions
from simpletuner.data.captions import CaptionRules, captions_for
from simpletuner.data.discover import PICTURES, discover, find_pictures
from simpletuner.data.images import open_rgb
from simpletuner.data.placement import PlacementRules, place
from simpletuner.data.types import Sample, Size, Skipped
from simpletuner.errors import DataError, ImageError
from simpletuner.wording import counted

DECODED = 100  # so many pictures are decoded at once; of more, check tells which are broken
_WORDS = 3  # a file's name of so many words says something


@dataclass(frozen=True, slots=True)
class Seen:
    """One usable picture.

    Attributes:
        path: Its file.
        size: Upright.
        caption: The first in its caption file; "" where there is none.
    """

    path: Path
    size: Size
    caption: str = ""

    @property
    def telling(self) -> bool:
        """Whether its name says something."""
        return len(re.findall(r"[^\W\d_]{2,}", self.path.stem)) >= _WORDS


@dataclass(frozen=True, slots=True)
class Pictures:
    """What a folder holds.

    Attributes:
        folder: As it was named.
        usable: Its usable pictures.
        skipped: What cannot be used, and why.
    """

    folder: Path
    usable: tuple[Seen, ...]
    skipped: tuple[Skipped, ...] = ()

    @property
    def sizes(self) -> list[Size]:
        """Upright sizes of the usable pictures."""
        return [one.size for one in self.usable]

    @property
    def captions(self) -> list[str]:
        """Of those with a caption file, the first of each."""
        return [one.caption for one in self.usable if one.caption]

    @property
    def count(self) -> int:
        """Usable pictures."""
        return len(self.usable)

    @property
    def edge(self) -> int:
        """The square root of the middle picture's area, in pixels."""
        areas = sorted(size.width * size.height for size in self.sizes)
        return round(math.sqrt(areas[len(areas) // 2]))

    def buckets(self, resolution: int, alignment: int) -> Counter[Size]:
        """How many pictures go into each bucket, uncropped."""
        rules = PlacementRules(resolution, alignment=alignment)
        return Counter(place(size, rules, 0).bucket for size in self.sizes)

    def only_captioned(self) -> Pictures:
        """Those with a caption file: what training uses where captions are text files."""
        return replace(self, usable=tuple(one for one in self.usable if one.caption))

    def strategy(self, subject: bool) -> Captions:
        """How captions are best found: caption files if most have one, names that say something, or one for all."""
        if 2 * len(self.captions) >= self.count:
            return "textfile"
        telling = sum(one.telling for one in self.usable)
        return "filename" if not subject and 2 * telling >= self.count else "instanceprompt"


def only_folder(above: Path) -> str:
    """The one folder just below ``above``, or itself, that has pictures in it; "" where there is none, or several."""
    try:
        inside = sorted(path for path in above.iterdir() if path.is_dir())
        found = [folder for folder in (above, *inside) if _has_pictures(folder)]
    except OSError:
        return ""
    return str(found[0]) if len(found) == 1 else ""


def _has_pictures(folder: Path) -> bool:
    return any(path.suffix.lower() in PICTURES and path.is_file() for path in folder.iterdir())


def look(folder: Path) -> Pictures:
    """Look at a folder and all its subfolders.

    Raises:
        DataError: It is missing, or no picture in it can be used.
    """
    place_ = folder.expanduser()
    if not place_.is_dir():
        raise DataError(f"{folder} is no folder: {'it is a file' if place_.exists() else 'it does not exist'}")
    if not find_pictures(place_)[0]:
        raise DataError(f"{folder} holds no pictures ({', '.join(PICTURES[:6])} …)")
    found = discover(place_, CaptionRules("null"), PlacementRules(1024))
    samples, broken = _decodable(found.samples)
    skipped = (*broken, *found.skipped)
    if not samples:
        raise DataError(f"no picture in {folder} can be used: {_reasons(skipped)}")
    usable = tuple(Seen(sample.path, sample.size, _caption(sample.path)) for sample in samples)
    return Pictures(folder, usable, skipped)


def _caption(path: Path) -> str:
    """The first caption in the text file beside a picture; "" where there is none."""
    try:
        return captions_for(path, CaptionRules("textfile"))[0]
    except DataError:  # check and training say so of each where caption files are what is used
        return ""


def _decodable(samples: Sequence[Sample]) -> tuple[list[Sample], list[Skipped]]:
    """Pictures that can be decoded, and the others; of very many none is tried."""
    if len(samples) > DECODED:
        return list(samples), []
    good, broken = [], []
    for sample in samples:
        try:
            open_rgb(sample.path, at_least=Size(64, 64), exact_colours=False)
            good.append(sample)
        except ImageError as error:
            broken.append(Skipped(sample.path, str(error)))
    return good, broken


def saw(found: Pictures) -> list[str]:
    """What was seen, in sentences."""
    ordered = sorted(found.sizes, key=lambda size: size.width * size.height)
    wide = sum(size.width > size.height for size in found.sizes)
    tall = sum(size.width < size.height for size in found.sizes)
    lines = [
        f"{counted(found.count, 'picture')} in {found.folder}: {wide} wide, {tall} tall, {found.count - wide - tall} square; "
        f"smallest by area {ordered[0]}, largest {ordered[-1]}",
        _captioned(found),
    ]
    left = [item for item in found.skipped if item.picture]
    if left:
        lines.append(f"{counted(len(left), 'picture')} cannot be used: {_reasons(left)}")
    return lines


def _captioned(found: Pictures) -> str:
    """How many have a caption file, and what is in one."""
    captions = found.captions
    if not captions:
        return "None has a caption file beside it"
    has = counted(len(captions), "has a caption file beside it", "have a caption file beside them")
    return f"{has}, such as {captions[0][:80]!r}"


def _reasons(skipped: Sequence[Skipped]) -> str:
    named = "; ".join(f"{item.path.name}: {item.reason}" for item in skipped[:3])
    return f"{named}{' …' if len(skipped) > 3 else ''}"
