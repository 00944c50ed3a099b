"""Contact grids: validation pictures side by side, with words. Reads PNG files, writes one PNG."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

CELL = 384  # largest side of a cell
REMEMBERED = 256  # a grid over time has cells of this side, and shows the same pictures again and again: 192 KiB each
_CELL_MIN, _PAD, _LABEL, _TITLE = 160, 8, 46, 24
_BACKGROUND, _INK = (250, 250, 250), (30, 30, 30)


def grid(
    rows: Sequence[tuple[str, Sequence[Path | None]]],
    captions: Sequence[str],
    out: Path,
    title: str = "",
    largest: int = CELL,
) -> Path:
    """Draw rows of pictures under a common line of captions.

    Args:
        rows: (row label, one picture file per column); a missing file leaves an empty cell.
        captions: One per column.
        out: PNG to write, atomically.
        title: A line above everything, cut at the sheet's width; none if empty.
        largest: Largest side of a cell in pixels.

    Returns:
        ``out``.
    """
    sides = [max(_size(path)) for _, paths in rows for path in paths]
    cell = min(max(max(sides, default=0), _CELL_MIN), largest)
    heights = [_height(paths, cell) for _, paths in rows]
    label_width, above = 110, _TITLE if title else 0
    width = label_width + len(captions) * (cell + _PAD) + _PAD
    sheet = Image.new("RGB", (width, above + _LABEL + sum(heights) + len(rows) * _PAD + _PAD), _BACKGROUND)
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(13)
    if title:
        draw.text((6, 4), textwrap.shorten(title, max(20, width // 7), placeholder=" …"), fill=_INK, font=font)
    for column, caption in enumerate(captions):
        lines = textwrap.wrap(caption, max(10, cell // 7))[:3]
        draw.multiline_text((label_width + column * (cell + _PAD), above + 4), "\n".join(lines), fill=_INK, font=font)
    for number, (label, paths) in enumerate(rows):
        top = above + _LABEL + sum(heights[:number]) + number * _PAD
        draw.multiline_text(
            (6, top + heights[number] // 2 - 16), "\n".join(textwrap.wrap(label, 14)), fill=_INK, font=font
        )
        for column, path in enumerate(paths):
            if path and any(_size(path)):
                small = (_remembered if cell <= REMEMBERED else _thumbnail)(path, path.stat().st_mtime_ns, cell)
                sheet.paste(small, (label_width + column * (cell + _PAD), top))
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = out.with_suffix(".tmp")
    sheet.save(temporary, format="PNG", compress_level=1)  # quicker, and hardly larger
    temporary.replace(out)
    return out


def _size(path: Path | None) -> tuple[int, int]:
    """Width and height by the header alone; nothing for a file that is missing or no picture."""
    if path is None or not path.is_file():
        return 0, 0
    try:
        with Image.open(path) as picture:
            return picture.size
    except OSError:
        return 0, 0


def _height(paths: Sequence[Path | None], cell: int) -> int:
    """Of a row: that of its tallest picture in a cell; of an empty row, half a cell."""
    shares = [height / max(width, height) for width, height in map(_size, paths) if height]
    return round(cell * max(shares, default=0.5))


def _thumbnail(path: Path, stamp: int, cell: int) -> Image.Image:
    """The picture in a cell. ``stamp`` tells a picture from one that was drawn anew under its name."""
    with Image.open(path) as picture:
        return _fit(picture.convert("RGB"), cell)


_remembered = lru_cache(maxsize=1024)(_thumbnail)


def _fit(picture: Image.Image, cell: int) -> Image.Image:
    # Small pictures are enlarged without smoothing, so that one sees the pixels the model made.
    scale = cell / max(picture.size)
    resample = Image.Resampling.NEAREST if scale > 1 else Image.Resampling.LANCZOS
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    return picture.resize(size, resample)
