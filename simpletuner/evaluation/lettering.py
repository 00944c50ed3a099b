"""Words on pictures: one font that has everybody's accents, lines that fit, and nothing that is cut through.

In: text and a width in pixels. Out: lines to draw. The font lies in ``font/``: Latin, Greek and Cyrillic. What it lacks is
spelt out, so that a sheet has no empty boxes.
"""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache
from pathlib import Path

from PIL import ImageFont

SIZE = 13  # px
LINE = 16  # px from one line to the next
ELLIPSIS = "…"
_FILE = Path(__file__).parent / "font" / "DejaVuSans-subset.ttf"
_NOWHERE = "\U0010ffff"  # no font has it: it is drawn as the box of a missing letter
_IDEOGRAPHS = re.compile(r"[\u2e80-\u2fdf\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]+")


@lru_cache(maxsize=8)
def font(size: int = SIZE) -> ImageFont.FreeTypeFont:
    """The font, in pixels. The plain layout engine draws the same on every system."""
    return ImageFont.truetype(_FILE, size, layout_engine=ImageFont.Layout.BASIC)


@lru_cache(maxsize=4096)
def has(letter: str) -> bool:
    """Whether the font has this letter."""
    face = font()
    return bytes(face.getmask(letter)) != bytes(face.getmask(_NOWHERE))


def drawable(text: str) -> str:
    """The text in letters that the font has.

    Accents that stand alone (as in file names of a Mac) are joined to their letter. Others are said in words: an emoji
    by its name, a syllable or a letter of another script by its sound as Unicode names it, ideographs by their number.
    Marks and controls that show nothing are left out.
    """
    whole = unicodedata.normalize("NFC", text)
    counted = _IDEOGRAPHS.sub(lambda found: f"({len(found[0])} CJK)", whole)
    return "".join(letter if letter.isspace() or has(letter) else _spelt(letter) for letter in counted)


def _spelt(letter: str) -> str:
    if unicodedata.category(letter) in ("Mn", "Me", "Cf", "Cc"):
        return ""
    plain = unicodedata.normalize("NFKD", letter)
    if plain != letter and all(map(has, plain)):
        return plain
    name = unicodedata.name(letter, "").lower()
    if not name:
        return "?"
    sound = re.search(r"\b(?:letter|syllable)\b.* (\S+)$", name)
    return sound[1] if sound else f"({name})"


def lines(text: str, width: int, most: int, size: int = SIZE) -> list[str]:
    """The text in lines no wider than ``width``, broken between words where that is possible.

    Args:
        text: Anything; line ends in it are spaces.
        width: In pixels, at least of one letter.
        most: Lines, at least 1; where more are needed, the last ends in an ellipsis.
        size: Of the font in pixels.
    """
    whole = " ".join(drawable(text).split())
    enough = (most + 1) * width  # letters: none is narrower than a pixel
    found = _broken(whole[:enough], width, size)
    if len(found) <= most and len(whole) <= enough:
        return found
    kept = found[:most]
    end = f"{kept[-1]} {ELLIPSIS}"
    while len(end) > 1 and font(size).getlength(end) > width:
        end = end[:-2].rstrip() + ELLIPSIS
    return [*kept[:-1], end]


def _broken(text: str, width: int, size: int) -> list[str]:
    """All lines."""
    found, line = [], ""
    for word in text.split():
        longer = f"{line} {word}" if line else word
        if font(size).getlength(longer) <= width:
            line = longer
            continue
        if line:
            found.append(line)
        while len(word) > 1 and font(size).getlength(word) > width:  # a word too long for any line
            longest = min(len(word) - 1, width)
            fits = next(n for n in range(longest, 0, -1) if n == 1 or font(size).getlength(word[:n]) <= width)
            found.append(word[:fits])
            word = word[fits:]
        line = word
    return [*found, line] if line else found
