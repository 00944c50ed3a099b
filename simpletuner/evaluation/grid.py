"""Contact grids: validation pictures side by side, with words. Reads PNG files, writes one PNG."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

_CELL_MIN, _CELL_MAX, _PAD, _LABEL = 160, 384, 8, 46
_BACKGROUND, _INK = (250, 250, 250), (30, 30, 30)


def grid(rows: Sequence[tuple[str, Sequence[Path]]], captions: Sequence[str], out: Path) -> Path:
    """Draw rows of pictures under a common line of captions.

    Args:
        rows: (row label, one picture file per column); a missing file leaves an empty cell.
        captions: One per column.
        out: PNG to write, atomically.

    Returns:
        ``out``.
    """
    pictures = [[_open(path) for path in paths] for _, paths in rows]
    largest = max((max(p.size) for row in pictures for p in row if p), default=_CELL_MIN)
    cell = min(max(largest, _CELL_MIN), _CELL_MAX)
    label_width = 110
    width = label_width + len(captions) * (cell + _PAD) + _PAD
    height = _LABEL + len(rows) * (cell + _PAD) + _PAD
    sheet = Image.new("RGB", (width, height), _BACKGROUND)
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(13)
    for column, caption in enumerate(captions):
        lines = textwrap.wrap(caption, max(10, cell // 7))[:3]
        draw.multiline_text((label_width + column * (cell + _PAD), 4), "\n".join(lines), fill=_INK, font=font)
    for number, (label, _) in enumerate(rows):
        top = _LABEL + number * (cell + _PAD)
        draw.multiline_text((6, top + cell // 2 - 10), "\n".join(textwrap.wrap(label, 14)), fill=_INK, font=font)
        for column, picture in enumerate(pictures[number]):
            if picture:
                sheet.paste(_fit(picture, cell), (label_width + column * (cell + _PAD), top))
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = out.with_suffix(".tmp")
    sheet.save(temporary, format="PNG")
    temporary.replace(out)
    return out


def _open(path: Path) -> Image.Image | None:
    if not path.is_file():
        return None
    with Image.open(path) as picture:
        return picture.convert("RGB")


def _fit(picture: Image.Image, cell: int) -> Image.Image:
    # Small pictures are enlarged without smoothing, so that one sees the pixels the model made.
    scale = cell / max(picture.size)
    resample = Image.Resampling.NEAREST if scale > 1 else Image.Resampling.LANCZOS
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    return picture.resize(size, resample)
