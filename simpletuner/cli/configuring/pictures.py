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
class Pictures:
    """What a folder holds.

    Attributes:
        folder: As it was named.
        paths: Usable pictures.
        sizes: Their upright sizes, in the same order.
        skipped: What cannot be used, and why.
        captions: Of those with a caption file, the first of each.
        telling_names: How many have a name that says something.
        captioned: Which have a caption file, by their places in ``paths``.
    """

    folder: Path
    paths: tuple[Path, ...]
    sizes: tuple[Size, ...]
    skipped: tuple[Skipped, ...]
    captions: tuple[str, ...]
    telling_names: int
    captioned: tuple[int, ...] = ()

    @property
    def count(self) -> int:
        """Usable pictures."""
        return len(self.sizes)

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
        paths = tuple(self.paths[at] for at in self.captioned)
        return replace(self, paths=paths, sizes=tuple(self.sizes[at] for at in self.captioned))

    def strategy(self, subject: bool) -> Captions:
        """How captions are best found: caption files if most have one, names that say something, or one for all."""
        if 2 * len(self.captions) >= self.count:
            return "textfile"
        return "filename" if not subject and 2 * self.telling_names >= self.count else "instanceprompt"


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
    captions = [_caption(sample.path) for sample in samples]
    telling = sum(len(re.findall(r"[^\W\d_]{2,}", sample.path.stem)) >= _WORDS for sample in samples)
    return Pictures(
        folder,
        tuple(sample.path for sample in samples),
        tuple(sample.size for sample in samples),
        skipped,
        tuple(caption for caption in captions if caption),
        telling,
        tuple(at for at, caption in enumerate(captions) if caption),
    )


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
        f"smallest {ordered[0]}, largest {ordered[-1]}",
        f"{counted(len(found.captions), 'has', 'have')} a caption file beside it"
        + (f", such as {found.captions[0][:80]!r}" if found.captions else ""),
    ]
    left = [item for item in found.skipped if item.picture]
    if left:
        lines.append(f"{counted(len(left), 'picture')} cannot be used: {_reasons(left)}")
    return lines


def _reasons(skipped: Sequence[Skipped]) -> str:
    named = "; ".join(f"{item.path.name}: {item.reason}" for item in skipped[:3])
    return f"{named}{' …' if len(skipped) > 3 else ''}"
