"""How many pictures a second can be judged, decoding included, and where the thresholds come from.

    python bench/quality.py                       # 1,000 readings of JPEGs of 2 to 12 megapixels, two processes
    python bench/quality.py --profile             # the same with an ICC profile in each, as phones write them
    python bench/quality.py --thresholds [FOLDER] # statistics of pictures made worse step by step

It makes its own pictures: 1/f noise with hard-edged ellipses, 50 files of different sizes, each read as often as needed.
Without FOLDER the thresholds are looked at with such pictures too.
"""

from __future__ import annotations

import argparse
import io
import math
import multiprocessing
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image, ImageCms, ImageDraw, ImageFilter

from simpletuner.data import duplicates, quality
from simpletuner.data.images import open_rgb

FILES = 50
GRAIN = 5.0  # levels; makes files of the size cameras write, about 0.3 MB a megapixel
TARGET = 60.0  # seconds for 1,000


def drawn(width: int, height: int, seed: int, grain: float = 2.0) -> Image.Image:
    """A picture with structure at all sizes, sharp edges and a little noise."""
    rng = np.random.default_rng(seed)
    total = np.full((height, width, 3), 128, dtype=np.float32)
    cells = 3
    while cells < max(width, height):
        few = rng.normal(0, 60 / math.sqrt(cells), (cells * height // max(width, height) + 2, cells + 2, 3))
        for channel in range(3):
            layer = Image.fromarray(few[..., channel].astype(np.float32))
            total[..., channel] += np.asarray(layer.resize((width, height), Image.Resampling.BILINEAR))
        cells *= 4
    picture = Image.fromarray((total + rng.normal(0, grain, (height, width, 1))).clip(0, 255).astype(np.uint8))
    draw = ImageDraw.Draw(picture)
    for _ in range(60):
        x, y, radius = rng.uniform(0, width), rng.uniform(0, height), rng.uniform(0.005, 0.08) * width
        draw.ellipse((x, y, x + radius, y + radius * 0.7), fill=tuple(int(c) for c in rng.integers(0, 256, 3)))
    return picture


def judge(path: Path) -> quality.Quality:
    return quality.measure(open_rgb(path, exact_colours=False))


def speed(count: int, processes: int, profile: bool) -> None:
    icc = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes() if profile else None
    with tempfile.TemporaryDirectory() as folder:
        paths = []
        megapixels = 0.0
        for index in range(FILES):
            area = 2e6 + 10e6 * index / (FILES - 1)
            width = int(math.sqrt(area * 4 / 3))
            paths.append(Path(folder) / f"{index}.jpg")
            drawn(width, int(area / width), index, GRAIN).save(paths[-1], quality=90, icc_profile=icc)
            megapixels += area / 1e6 / FILES
        size = sum(path.stat().st_size for path in paths) / FILES / 2**20
        print(f"{FILES} JPEGs of 2 to 12 megapixels, mean {megapixels:.1f}, {size:.1f} MiB each; {count} readings")
        todo = [paths[index * 7 % FILES] for index in range(count)]
        with ProcessPoolExecutor(processes, mp_context=multiprocessing.get_context("spawn")) as pool:
            list(pool.map(judge, paths[:processes]))  # starting up is not what is measured
            start = time.perf_counter()
            found = list(pool.map(judge, todo, chunksize=8))
            seconds = time.perf_counter() - start
    rate = count / seconds
    print(f"{processes} processes: {seconds:.1f} s, {rate:.1f} pictures/s; 1,000 in {1000 / rate:.1f} s ({TARGET:.0f})")
    rng = np.random.default_rng(0)
    hashes = [int(value) for value in rng.integers(0, 2**64, 100_000, dtype=np.uint64)]
    start = time.perf_counter()
    duplicates.find_duplicates(range(len(hashes)), hashes)
    print(f"100,000 random hashes at {duplicates.NEAR} bits: {time.perf_counter() - start:.1f} s")
    groups = duplicates.find_duplicates([f.content for f in found], [f.perceptual_hash for f in found])
    print(f"{len(groups.exact)} exact groups of {FILES}, {len(groups.near)} near ones of 0")


def as_jpeg(value: int) -> Callable[[Image.Image], Image.Image]:
    def change(picture: Image.Image) -> Image.Image:
        memory = io.BytesIO()
        picture.save(memory, "JPEG", quality=value)
        return Image.open(memory).convert("RGB")

    return change


def enlarged(times: int) -> Callable[[Image.Image], Image.Image]:
    return lambda p: p.resize((p.width // times, p.height // times), Image.Resampling.LANCZOS).resize(p.size)


def blurred(sigma: float) -> Callable[[Image.Image], Image.Image]:
    return lambda p: p.filter(ImageFilter.GaussianBlur(sigma))


def boxed(colour: str) -> Callable[[Image.Image], Image.Image]:
    def change(picture: Image.Image) -> Image.Image:
        canvas = Image.new("RGB", (picture.width, picture.height * 5 // 4), colour)
        canvas.paste(picture, (0, picture.height // 8))
        return as_jpeg(75)(canvas)

    return change


def cropped(share: float) -> Callable[[Image.Image], Image.Image]:
    def change(picture: Image.Image) -> Image.Image:
        left, top = int(picture.width * share), int(picture.height * share)
        return picture.crop((left, top, picture.width - left, picture.height - top))

    return change


CHANGES: dict[str, Callable[[Image.Image], Image.Image]] = {
    "as it is": lambda p: p,
    **{f"blur, sigma {s}": blurred(s) for s in (1, 1.5, 2, 3)},
    **{f"enlarged {k} times": enlarged(k) for k in (2, 3, 4)},
    **{f"JPEG quality {q}": as_jpeg(q) for q in (95, 85, 75, 50, 30, 10)},
    "black bars": boxed("black"),
    "white bars": boxed("white"),
    "half size": lambda p: p.resize((p.width // 2, p.height // 2)),
    "cropped 1 %": cropped(0.01),
    "cropped 3 %": cropped(0.03),
    "a fifth of the contrast": lambda p: Image.blend(Image.new("RGB", p.size, "grey"), p, 0.2),
}


def _pictures(folder: Path | None) -> Iterator[Image.Image]:
    if folder is None:
        yield from (drawn(640, 480, seed) for seed in range(25))
        return
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() in (".png", ".jpg", ".jpeg", ".webp"):
            picture = open_rgb(path)
            if min(picture.size) >= 200:
                yield picture


def _spread(values: list[float]) -> str:
    return " ".join(f"{value:6.3f}" for value in np.quantile(values, (0, 0.1, 0.5, 0.9, 1)))


def thresholds(folder: Path | None) -> None:
    pictures = list(_pictures(folder))
    first = [quality.measure(picture) for picture in pictures]
    print(f"{len(pictures)} pictures; least, 10 %, median, 90 %, most; warned: blurred, blocks, border, one colour")
    for name, change in CHANGES.items():
        found = [quality.measure(change(picture)) for picture in pictures]
        said = [" ".join(quality.warnings(f)) for f in found]
        counts = [sum(word in s for s in said) for word in ("blurred", "blocks", "border", "nearly of")]
        bits = [float((a.perceptual_hash ^ b.perceptual_hash).bit_count()) for a, b in zip(first, found, strict=True)]
        sharp, blocks = _spread([f.sharpness for f in found]), _spread([f.blockiness for f in found])
        print(f"{name:24s} sharp {sharp} | blocks {blocks} | hash p90 {np.quantile(bits, 0.9):4.1f} | {counts}")
    apart = [(a.perceptual_hash ^ b.perceptual_hash).bit_count() for i, a in enumerate(first) for b in first[:i]]
    print(f"{len(apart)} pairs of different pictures: at least {min(apart, default=64)} bits")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--profile", action="store_true", help="give each file an ICC profile")
    parser.add_argument("--thresholds", nargs="?", const="", help="a folder of pictures, or nothing for synthetic ones")
    arguments = parser.parse_args()
    if arguments.thresholds is not None:
        thresholds(Path(arguments.thresholds) if arguments.thresholds else None)
    else:
        speed(arguments.count, arguments.processes, arguments.profile)


if __name__ == "__main__":
    main()
