"""Contact grids: validation pictures side by side, with words. Reads PNG files, writes one PNG."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

from PIL import Image, ImageDraw

from simpletuner.evaluation.lettering import LINE, font, lines

CELL = 384  # largest side of a cell
REMEMBERED = 256  # a grid over time has cells of this side, and shows the same pictures again and again: 192 KiB each
MOST_LINES = 4  # of a caption
_CELL_MIN, _PAD, _LABEL, _TITLE = 160, 8, 110, 24  # px: of a cell, between cells, of a row's label, of the title
_BACKGROUND, _INK = (250, 250, 250), (30, 30, 30)


def grid(
    rows: Sequence[tuple[str, Sequence[Path | None]]],
    captions: Sequence[str],
    out: Path,
    title: str = "",
    largest: int = CELL,
    notes: Sequence[str] = (),
    title_lines: int = 1,
) -> Path:
    """Draw rows of pictures under a common line of captions.

    Args:
        rows: (row label, one picture file per column); a missing file leaves an empty cell.
        captions: One per column, in at most ``MOST_LINES``.
        out: PNG to write, atomically.
        title: Above everything, in lines of the sheet's width; none if empty.
        largest: Largest side of a cell in pixels.
        notes: A line below each caption, where there are any.
        title_lines: The most of the title; what is longer is cut.

    Returns:
        ``out``.
    """
    sides = [max(_size(path)) for _, paths in rows for path in paths]
    cell = min(max(max(sides, default=0), _CELL_MIN), largest)
    heights = [_height(paths, cell) for _, paths in rows]
    width = _LABEL + len(captions) * (cell + _PAD) + _PAD
    titled = lines(title, width - 12, title_lines)
    above = _TITLE + (len(titled) - 1) * LINE if titled else 0
    heads = [lines(caption, cell, MOST_LINES) for caption in captions]
    for head, note in zip(heads, notes, strict=False):
        head += lines(note, cell, 1)
    top = above + max(map(len, heads), default=0) * LINE + _PAD
    sheet = Image.new("RGB", (width, top + sum(heights) + len(rows) * _PAD), _BACKGROUND)
    draw = ImageDraw.Draw(sheet)
    _write(draw, (6, 4), titled)
    for column, head in enumerate(heads):
        _write(draw, (_LABEL + column * (cell + _PAD), above + 3), head)
    for number, (label, paths) in enumerate(rows):
        words = lines(label, _LABEL - 12, max(1, heights[number] // LINE))
        _write(draw, (6, top + (heights[number] - len(words) * LINE) // 2), words)
        for column, path in enumerate(paths):
            if path and any(_size(path)):
                small = (_remembered if cell <= REMEMBERED else _thumbnail)(path, path.stat().st_mtime_ns, cell)
                sheet.paste(small, (_LABEL + column * (cell + _PAD), top))
        top += heights[number] + _PAD
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = out.with_suffix(".tmp")
    try:
        sheet.save(temporary, format="PNG", compress_level=1)  # quicker, and hardly larger
        temporary.replace(out)
    finally:
        temporary.unlink(missing_ok=True)
    return out


def _write(draw: ImageDraw.ImageDraw, place: tuple[int, int], words: list[str]) -> None:
    for number, line in enumerate(words):
        draw.text((place[0], place[1] + number * LINE), line, fill=_INK, font=font())


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
