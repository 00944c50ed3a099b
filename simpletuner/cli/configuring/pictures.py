"""Looks at a folder of pictures with the program's own discovery: headers and caption files alone; nothing is written."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from simpletuner.data.captions import CaptionRules, captions_for
from simpletuner.data.discover import discover
from simpletuner.data.placement import PlacementRules, place
from simpletuner.data.types import Size, Skipped
from simpletuner.errors import DataError
from simpletuner.wording import counted

Strategy = Literal["textfile", "filename", "instanceprompt"]
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
    """

    folder: Path
    paths: tuple[Path, ...]
    sizes: tuple[Size, ...]
    skipped: tuple[Skipped, ...]
    captions: tuple[str, ...]
    telling_names: int

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

    def strategy(self, subject: bool) -> Strategy:
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
    found = discover(place_, CaptionRules("null"), PlacementRules(1024))
    if not found.samples:
        raise DataError(f"no picture in {folder} can be used: {_reasons(found.skipped)}")
    rules = CaptionRules("textfile")
    captions = []
    for sample in found.samples:
        try:
            captions.append(captions_for(sample.path, rules)[0])
        except DataError:  # it has none; check and training say so of each where caption files are what is used
            continue
    telling = sum(len(re.findall(r"[^\W\d_]{2,}", sample.path.stem)) >= _WORDS for sample in found.samples)
    return Pictures(
        folder,
        tuple(sample.path for sample in found.samples),
        tuple(sample.size for sample in found.samples),
        found.skipped,
        tuple(caption for caption in captions if caption),
        telling,
    )


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
