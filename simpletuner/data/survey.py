"""What a dataset looks like before an hour is spent on it: counts, captions, sizes and a thumbnail of each picture.

In: samples with placements, and the files that were skipped. Out: a Survey in plain values, for a terminal or a page.
Decides nothing and writes nothing.
"""

from __future__ import annotations

import base64
import io
import multiprocessing
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from simpletuner.data.duplicates import find_duplicates
from simpletuner.data.encode import PlacedSample
from simpletuner.data.images import open_rgb
from simpletuner.data.quality import Quality, measure, reduced, warnings
from simpletuner.data.types import Size, Skipped
from simpletuner.errors import ImageError

THUMBNAIL = 192
WORTH_PROCESSES = 16 * 2**20  # bytes of files; fewer are decoded in less time than processes take to start
UPSCALED_FROM = 1.01  # a percent of enlargement cannot be seen


@dataclass(frozen=True, slots=True)
class Look:
    """What decoding one picture tells.

    Attributes:
        thumbnail: A JPEG of the whole upright picture, at most ``THUMBNAIL`` px wide and high.
        quality: Its statistics, or None if it could not be decoded.
        problem: Why it could not be decoded, or "".
    """

    thumbnail: bytes = b""
    quality: Quality | None = None
    problem: str = ""


@dataclass(frozen=True, slots=True)
class Picture:
    """One used picture.

    Attributes:
        path: Its file.
        size: Upright size in pixels.
        bucket: Where it goes.
        crop: (left, top, width, height) of the part that is used, as shares of the picture in [0, 1].
        enlarged: How much it is resized; above 1 it is enlarged.
        captions: Alternative captions.
        cut: The end of the first caption that is too long for the model, "" if none is.
        reconstruction: PSNR in dB of the VAE's reconstruction, or None if not measured.
    """

    path: Path
    size: Size
    bucket: Size
    crop: tuple[float, float, float, float]
    enlarged: float
    captions: tuple[str, ...]
    cut: str = ""
    reconstruction: float | None = None


@dataclass(frozen=True, slots=True)
class BucketLine:
    """One bucket: how many pictures, and how many of them are enlarged."""

    size: Size
    count: int
    enlarged: int


@dataclass(frozen=True, slots=True)
class Copies:
    """Groups of at least two pictures each.

    Attributes:
        exact: The same pixels, whatever the file.
        near: Another size, compression or shade of the same picture, most likely.
    """

    exact: list[list[Path]]
    near: list[list[Path]]


@dataclass(slots=True)
class Survey:
    """One dataset.

    Attributes:
        id: The dataset's id.
        folder: Its pictures.
        role: ``image`` or ``eval``.
        pictures: Used ones.
        skipped: The others, with reasons, and other files.
        looks: By path, where pictures were decoded.
        cached: Used pictures whose latents are in the cache already.
        cache_bytes: Size of the cache on disk.
        resolution: How large they are trained, in words: ``1024 px``.
    """

    id: str
    folder: Path
    role: str
    pictures: list[Picture]
    skipped: list[Skipped]
    looks: dict[Path, Look] = field(default_factory=dict)
    cached: int = 0
    cache_bytes: int = 0
    resolution: str = ""

    @property
    def found(self) -> int:
        """Pictures that were looked at: used ones and skipped ones."""
        return len(self.pictures) + sum(item.picture for item in self.skipped)

    @property
    def buckets(self) -> list[BucketLine]:
        """Lines by size."""
        counts = Counter(p.bucket for p in self.pictures)
        enlarged = Counter(p.bucket for p in self.enlarged)
        return [BucketLine(size, count, enlarged[size]) for size, count in sorted(counts.items())]

    @property
    def enlarged(self) -> list[Picture]:
        """Pictures too small for their bucket, the worst first."""
        found = [p for p in self.pictures if p.enlarged > UPSCALED_FROM]
        return sorted(found, key=lambda p: -p.enlarged)

    @property
    def without_caption(self) -> list[Picture]:
        """Pictures of which a caption is empty."""
        return [p for p in self.pictures if not all(p.captions)]

    @property
    def cut_captions(self) -> list[Picture]:
        """Pictures of which a caption is too long."""
        return [p for p in self.pictures if p.cut]

    @property
    def doubtful(self) -> dict[Path, tuple[str, ...]]:
        """Sentences about pictures that look blurred, blocky, bordered or empty."""
        seen = {p.path: self.looks[p.path].quality for p in self.pictures if p.path in self.looks}
        return {path: found for path, quality in seen.items() if quality and (found := warnings(quality))}

    @property
    def copies(self) -> Copies:
        """Pictures that are there more than once, exactly or nearly."""
        measured = {p.path: q for p in self.pictures if (seen := self.looks.get(p.path)) and (q := seen.quality)}
        paths, qualities = list(measured), list(measured.values())
        found = find_duplicates(
            [q.content for q in qualities],
            [None if q.one_colour else q.perceptual_hash for q in qualities],
            colours=[q.colours for q in qualities],
        )
        return Copies(
            exact=[[paths[i] for i in group] for group in found.exact],
            near=[[paths[i] for i in group] for group in found.near],
        )

    @property
    def repeated_captions(self) -> list[tuple[str, int]]:
        """Captions that several pictures share, the most frequent first."""
        counts = Counter(caption for p in self.pictures for caption in set(p.captions) if caption)
        return [(caption, count) for caption, count in counts.most_common() if count > 1]


def picture_of(placed: PlacedSample, cut: str = "") -> Picture:
    """One placed sample in the terms of a person: shares of the picture, not pixels of the resized one."""
    resized, (left, top, right, bottom) = placed.placement.resize_to, placed.placement.crop_box
    size = placed.sample.size
    return Picture(
        path=placed.sample.path,
        size=size,
        bucket=placed.placement.bucket,
        crop=(
            left / resized.width,
            top / resized.height,
            (right - left) / resized.width,
            (bottom - top) / resized.height,
        ),
        enlarged=max(resized.width / size.width, resized.height / size.height),
        captions=placed.sample.captions,
        cut=cut,
    )


def look(path: Path) -> Look:
    """Decode one picture, in full: for its thumbnail and its statistics, which a draft would spoil."""
    try:
        picture = open_rgb(path, exact_colours=False)
    except ImageError as error:
        return Look(problem=str(error))
    small = reduced(picture)
    quality = measure(picture, small)
    small.thumbnail((THUMBNAIL, THUMBNAIL), reducing_gap=2.0)
    memory = io.BytesIO()
    small.save(memory, format="JPEG", quality=72)
    return Look(memory.getvalue(), quality)


def _bytes(path: Path) -> int:
    """Of the file; 0 where it cannot be seen, which ``look`` will tell."""
    try:
        return path.stat().st_size
    except OSError:
        return 0


def look_at(
    paths: Sequence[Path], processes: int, progress: Callable[[Sequence[Path]], Iterable[Path]] = iter
) -> dict[Path, Look]:
    """Decode many pictures on several processes.

    Args:
        paths: Pictures; repeated ones are decoded once.
        processes: Worker processes; 1 decodes here.
        progress: Wraps the list, for a bar.
    """
    unique = list(dict.fromkeys(paths))
    if processes <= 1 or len(unique) < 2 * processes or sum(map(_bytes, unique)) < WORTH_PROCESSES:
        return {path: look(path) for path in progress(unique)}
    # Spawned, not forked: the parent may hold threads and a GPU.
    with ProcessPoolExecutor(processes, mp_context=multiprocessing.get_context("spawn")) as pool:
        return dict(zip(progress(unique), pool.map(look, unique, chunksize=8), strict=True))


def data_url(jpeg: bytes) -> str:
    """A picture inside a page, without a file beside it."""
    return "data:image/jpeg;base64," + base64.b64encode(jpeg).decode("ascii")
