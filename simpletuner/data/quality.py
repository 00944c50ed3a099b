"""What the pixels of one picture say of its worth for training: blur, JPEG blocks, borders, emptiness, fingerprints.

In: one decoded picture, upright RGB at full resolution. Out: a Quality, and plain sentences for what is doubtful.
Opens no file, compares no pictures (``duplicates`` does) and rejects none: doubtful is not wrong.

Full resolution and no ``Image.draft``: the 8 px grid and exact copies are lost in a draft, and a JPEG's bit stream,
half of the time, is read for a draft too (12 megapixels: 62 ms in full, 28 ms at an eighth, two CPU cores, Pillow 13).
Whatever can be measured small is measured on one reduced copy.

The thresholds come from 25 photographs and drawings of scikit-image and scikit-learn, made worse step by step;
``python bench/quality.py --thresholds FOLDER`` repeats it with any pictures, without FOLDER with synthetic ones.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from simpletuner.data.types import Size

WORKING = 1024  # px, longer side of the reduced copy; smaller pictures stay as they are
WINDOW = 1024  # px, sides of the central window in which blocks are looked for
GRID = 8  # px, a JPEG's blocks
FEWEST_BLOCKS = 24  # fewer in a row or column are too few for a mean: 128 px drawings reached 1.23 without any blocks
HIGHEST_STEP = 32  # levels; a higher step between neighbours is an edge of the subject, not of a block
FAINT_STEP = 1.0  # levels; a grid fainter than this cannot be seen, though a ratio of two faint steps may be large
TILES = 8  # sharpness is that of the sharpest tenth of 8 x 8 tiles: a blurred background is no blurred picture
SHARPEST = 90.0  # percentile
HASH_SIDE = 32  # px
COLOUR_CELLS = 8  # a side: a small thing in the middle fills some of them, and a crop of 1 % moves little

# 21 sharp ones: 0.15 (a chessboard), 0.22, 0.25 and more; one blurred by motion 0.066; three smooth by nature (retina,
# microscopy, colour chart) under 0.006. After Gaussian blur of sigma 2 px all 25 are under 0.040; enlarged four times 22
# are under 0.05, three times 19, twice 6. Sigma 1 px on the reduced copy, hardly seen, is called so for 14.
BLURRED = 0.05
# Never compressed: at most 1.11. Saved once as JPEG, quality 95: 1.12; 85: 1.32; 75: 1.27 for nine of ten (1.49 the
# worst); 30: half above 1.35; 10: half above 1.78. Called blocky: 0 of 25 up to 85, 1 at 75, 5 at 50, 13 at 30, 21 at 10.
BLOCKY = 1.35
# A photograph of the moon, the least of all, has 13; at a fifth of its contrast 2.6. Noise alone is 2 to 3.
ONE_COLOUR = 4.0
# JPEG rings around a bar: 24 levels find bars as often at quality 30 as at 95, 10 levels less than half as often.
BORDER_LEVELS = 24
# Share of a line behind the border that differs from it. A bar ends in a straight edge, an empty background does not.
# At 0.75, 35 of 46 letterboxed photographs (black or white bars) are found to within 9 px, 0 of 46 without bars are
# called so, and 6 of 48 drawings on a plain ground; at 0.5 it is 42, 0 and 20.
BORDER_ENDS = 0.75
BORDER_NOISE = 0.01  # share of a line that may differ and yet be border
BORDER_SHARE = 0.02  # of the side; less is cut away by most crops
# A plain ground that ends in a straight edge is on one side, as with a house on a line; bars and frames are on two sides
# that face each other, unless they are broad.
BORDER_ALONE = 0.1
BORDER_LEAVES = 0.125  # of the side; bars that leave less are a plain ground with something on it

Luma = NDArray[np.float32]
Colours = NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Quality:
    """Statistics of one picture.

    Attributes:
        size: Of the picture that was measured, in px.
        sharpness: Variance of the Laplacian over the variance of the luma; 0 is blurred, sharp ones have 0.1 to 10.
        blockiness: How much higher steps are at the strongest line of an 8 px grid; 1 without a grid.
        borders: (left, top, right, bottom), px of one colour with a straight edge.
        mean: Mean luma, 0 to 255.
        contrast: Largest standard deviation of a colour channel, 0 to 127.5.
        perceptual_hash: 64 bits; similar pictures differ in few of them.
        content: Digest of the pixels; equal for exact copies, whatever their file format and metadata.
        colours: Cb and Cr of 8 x 8 cells, 0 to 255: the perceptual hash knows no colours.
    """

    size: Size
    sharpness: float
    blockiness: float
    borders: tuple[int, int, int, int]
    mean: float
    contrast: float
    perceptual_hash: int
    content: str
    colours: bytes = b""

    @property
    def one_colour(self) -> bool:
        """Nearly one colour: neither its sharpness nor its perceptual hash says anything."""
        return self.contrast < ONE_COLOUR


def reduced(picture: Image.Image) -> Image.Image:
    """A copy of a whole part of its size, its longer side from ``WORKING`` to twice that where there is enough."""
    return picture.reduce(max(1, max(picture.size) // WORKING))


def measure(picture: Image.Image, small: Image.Image | None = None) -> Quality:
    """All statistics of one picture.

    Args:
        picture: RGB, upright, 8 bits, at full resolution. Its profile need not be applied (at 12 megapixels that
            would take longer than all the rest), but of exact copies all or none should have it applied.
        small: Its ``reduced`` copy, if that is at hand.
    """
    if picture.mode != "RGB":
        raise ValueError(f"an RGB picture is measured, not {picture.mode}")
    grey = picture.convert("L")
    small = reduced(picture) if small is None else small
    content = _content(grey, small)
    if max(small.size) > WORKING:
        scale = WORKING / max(small.size)
        wanted = (max(1, round(small.width * scale)), max(1, round(small.height * scale)))
        small = small.resize(wanted, Image.Resampling.BOX)
    small_grey = small.convert("L")
    luma, colours = np.asarray(small_grey, dtype=np.float32), np.asarray(small)
    return Quality(
        size=Size(*picture.size),
        sharpness=sharpness(luma),
        blockiness=blockiness(_window(grey)),
        borders=borders(colours, Size(*picture.size)),
        mean=float(luma.mean()),
        contrast=_contrast(colours),
        perceptual_hash=perceptual_hash(small_grey),
        content=content,
        colours=coarse_colours(small),
    )


def warnings(quality: Quality) -> tuple[str, ...]:
    """What is doubtful, in plain sentences; nothing where all is well."""
    found: list[str] = []
    if quality.one_colour:
        found.append(f"It is nearly of one colour (contrast {quality.contrast:.1f} of 127.5).")
    elif quality.sharpness < BLURRED:
        found.append(
            f"It looks blurred or enlarged (sharpness {quality.sharpness:.3f}; sharp pictures have 0.1 or more)."
        )
    if quality.blockiness > BLOCKY:
        found.append(
            f"It shows the blocks of strong JPEG compression (steps are {quality.blockiness:.2f} times as high at "
            f"block edges); training learns them."
        )
    left, top, right, bottom = quality.borders
    width, height = quality.size
    sides = (
        *((left, right, width, "left"), (top, bottom, height, "top")),
        *((right, left, width, "right"), (bottom, top, height, "bottom")),
    )
    named = [
        f"{pixels} px {side}"
        for pixels, facing, length, side in sides
        if pixels >= (alone := BORDER_ALONE * length)
        or min(pixels, facing) >= min(alone, max(2, BORDER_SHARE * length))
    ]
    if named:
        found.append(f"It has a border of one colour: {', '.join(named)}; training learns it unless it is cut off.")
    return tuple(found)


def _content(grey: Image.Image, small: Image.Image) -> str:
    """Digest of the full luma and of the reduced colours.

    Hashing all colours would cost as much as decoding. Up to 2 megapixels or so nothing is reduced and it is exact;
    above, pictures would have to agree in every luma byte and in the mean colour of every few pixels.
    """
    digest = hashlib.sha256(f"{grey.size}".encode())
    digest.update(grey.tobytes())
    digest.update(small.tobytes())
    return digest.hexdigest()


def _contrast(colours: Colours) -> float:
    """Largest standard deviation of a channel. [H, W, 3] → levels, 0 to 127.5; from histograms, which is exact."""
    levels = np.arange(256.0)
    spreads = []
    for channel in range(3):
        share = np.bincount(colours[..., channel].reshape(-1), minlength=256) / (colours.shape[0] * colours.shape[1])
        mean = share @ levels
        spreads.append(math.sqrt(share @ (levels - mean) ** 2))
    return max(spreads)


def sharpness(luma: Luma) -> float:
    """Variance of the Laplacian in the sharpest tiles, over the variance of the whole.

    The division makes it the same for a dim and a bright copy. Source: Pech-Pacheco et al., "Diatom autofocusing in
    brightfield microscopy: a comparative study", ICPR 2000 (variance of the Laplacian; 4-neighbour kernel).

    Args:
        luma: [H, W], 0 to 255.

    Returns:
        0 or more; 0 for pictures under 3 px and of one level.
    """
    if min(luma.shape) < 3:
        return 0.0
    variance = float(luma.var())
    if variance == 0:
        return 0.0
    around = luma[:-2, 1:-1] + luma[2:, 1:-1] + luma[1:-1, :-2] + luma[1:-1, 2:]
    laplacian = around - 4 * luma[1:-1, 1:-1]
    rows = np.array_split(laplacian, min(TILES, laplacian.shape[0]))
    tiles = [tile for row in rows for tile in np.array_split(row, min(TILES, row.shape[1]), axis=1)]
    return float(np.percentile([tile.var() for tile in tiles], SHARPEST)) / variance


def _window(grey: Image.Image) -> NDArray[np.int16]:
    """[h, w] of the middle at full resolution, at most ``WINDOW`` a side."""
    width, height = min(WINDOW, grey.width), min(WINDOW, grey.height)
    left, top = (grey.width - width) // 2, (grey.height - height) // 2
    return np.asarray(grey.crop((left, top, left + width, top + height)), dtype=np.int16)


def blockiness(window: NDArray[np.int16]) -> float:
    """Strength of an 8 px grid, wherever it begins.

    Steps at block edges over steps elsewhere. Source of the idea: Wang, Sheikh and Bovik, "No-reference perceptual
    quality assessment of JPEG compressed images", ICIP 2002. Changed in three ways: all eight offsets are tried (a
    crop moves the grid); the strongest is compared with the second strongest, not with the mean (pixel art of 2 and
    4 px has many strong ones); the lesser of both directions counts (blinds and fences have one). A picture that was
    resized after its compression has no such grid any more. Pixel art with cells of just 8 px is taken for blocks.

    Args:
        window: [h, w] luma at full resolution, 0 to 255.

    Returns:
        1 or more; 1 below 24 blocks (192 px) in either direction.
    """
    return min(_grid(window), _grid(window.T))


def _grid(window: NDArray[np.int16]) -> float:
    """Strongest of eight offsets over the second strongest, along the second axis."""
    blocks = (window.shape[1] - 1) // GRID
    if blocks < FEWEST_BLOCKS:
        return 1.0
    steps = np.minimum(np.abs(np.diff(window, axis=1)), HIGHEST_STEP).mean(axis=0, dtype=np.float64)
    *_, second, first = np.sort(steps[: blocks * GRID].reshape(blocks, GRID).mean(axis=0))
    return float((first + FAINT_STEP) / (second + FAINT_STEP))


def borders(colours: Colours, size: Size) -> tuple[int, int, int, int]:
    """Bars of one colour: letterbox, pillarbox, frames.

    Args:
        colours: [H, W, 3] of the picture, or of a smaller copy.
        size: The picture's own; the result is in its px, as exact as the copy allows.

    Returns:
        (left, top, right, bottom), each 0 or more; all 0 where next to nothing else is in the picture.
    """
    top, bottom = _bar(colours), _bar(colours[::-1])
    if top + bottom > (1 - BORDER_LEAVES) * len(colours):
        return (0, 0, 0, 0)
    columns = colours[top : len(colours) - bottom].transpose(1, 0, 2)
    left, right = _bar(columns), _bar(columns[::-1])
    if left + right > (1 - BORDER_LEAVES) * len(columns):
        return (0, 0, 0, 0)
    wide, high = size.width / colours.shape[1], size.height / colours.shape[0]
    return (round(left * wide), round(top * high), round(right * wide), round(bottom * high))


def _bar(lines: NDArray[Any]) -> int:
    """How many of the first lines [n, m, 3] are a bar: of the first line's colour, and ending all at once."""
    step = 32  # lines; few pictures have any bar, so the first lines are mostly all that is looked at
    colour = np.median(lines[0], axis=0).astype(np.int16)
    for start in range(0, len(lines), step):
        # Two lines more: behind a bar, ringing and reduction make a line or two of neither.
        some = lines[start : start + step + 2].astype(np.int16)
        differs = (np.abs(some - colour) > BORDER_LEVELS).any(axis=2).mean(axis=1)
        ends = np.flatnonzero(differs[:step] > BORDER_NOISE)
        if len(ends):
            first = int(ends[0])
            return start + first if differs[first : first + 3].max() >= BORDER_ENDS else 0
    return len(lines)


def coarse_colours(picture: Image.Image) -> bytes:
    """Cb and Cr of the means of 8 x 8 cells: 64 bytes of Cb, then 64 of Cr. Source: ITU-R BT.601, as in JPEG (JFIF).

    Args:
        picture: RGB, any size.
    """
    cells = picture.resize((COLOUR_CELLS, COLOUR_CELLS), Image.Resampling.BOX).convert("YCbCr")
    _, blue, red = cells.split()
    return blue.tobytes() + red.tobytes()


def perceptual_hash(picture: Image.Image) -> int:
    """64 bits of the picture's coarse structure: which of its 8 x 8 lowest frequencies are above their median.

    Source: Zauner, "Implementation and Benchmarking of Perceptual Image Hash Functions", 2010, section 3.2.1 (DCT
    hash); with the frequencies from 0 as in Krawetz, "Looks Like It", 2011. Chosen over the difference hash (dHash,
    Krawetz 2013), under which different drawings of one style come as near as 5 bits; here 16 is the least.

    Args:
        picture: Any size; colours are ignored.

    Returns:
        0 to 2⁶⁴ - 1. Meaningless for one colour. The bit of frequency 0 says whether it is brighter than middle grey.
    """
    side = (HASH_SIDE, HASH_SIDE)
    luma = np.asarray(picture.convert("L").resize(side, Image.Resampling.BOX), dtype=np.float64) - 128
    frequency, position = np.arange(8)[:, None], np.arange(HASH_SIDE)[None]
    basis = np.cos(math.pi * frequency * (2 * position + 1) / (2 * HASH_SIDE))  # DCT-II, unscaled
    low = basis @ luma @ basis.T
    return int.from_bytes(np.packbits((low > np.median(low)).reshape(-1)).tobytes())
