"""What room 3 refuses, and that it refuses with an ImageError and nothing else."""

import struct
import time
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from simpletuner.data.images import cut, open_rgb, read_size
from simpletuner.data.types import Placement, Size
from simpletuner.errors import ImageError


def whole(size: Size) -> Placement:
    """As it is: no resize, no crop."""
    return Placement(size, size, (0, 0, size.width, size.height))


def smooth(height: int, width: int) -> Image.Image:
    rows, columns = np.mgrid[0:height, 0:width]
    waves = [127 + 100 * np.sin(columns / width * 9 + k) * np.cos(rows / height * 7 - k) for k in range(3)]
    return Image.fromarray(np.stack(waves, -1).astype(np.uint8))


def header_only(path: Path, width: int, height: int) -> Path:
    """A PNG of 200 bytes that claims any size."""
    chunks = (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)), (b"IDAT", zlib.compress(bytes(99)))
    with path.open("wb") as file:
        file.write(b"\x89PNG\r\n\x1a\n")
        for kind, data in (*chunks, (b"IEND", b"")):
            file.write(struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)))
    return path


def test_a_bomb_is_refused_by_its_header(tmp_path: Path) -> None:
    for width, height in ((10_001, 10_000), (20_000, 20_000), (2**31 - 1, 2**31 - 1)):
        path = header_only(tmp_path / "a.png", width, height)
        start = time.perf_counter()
        for read in (read_size, open_rgb):
            with pytest.raises(ImageError, match="megapixels"):
                read(path)
        assert time.perf_counter() - start < 1.0


def test_just_below_the_limit_is_read_in_silence(tmp_path: Path) -> None:
    path = header_only(tmp_path / "a.png", 10_000, 10_000)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read_size(path) == Size(10_000, 10_000)


@pytest.mark.parametrize("ending", ["jpg", "png", "webp", "gif", "tiff", "bmp", "avif", "jp2"])
def test_a_file_cut_short_is_refused(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"a.{ending}"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(path)
    content = path.read_bytes()
    for share in (0.02, 0.3, 0.6):
        path.write_bytes(content[: int(len(content) * share)])
        with pytest.raises(ImageError):
            cut(path, whole(Size(64, 64)))


def test_files_that_are_no_pictures(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(b"")
    with pytest.raises(ImageError, match="empty"):
        read_size(path)
    path.write_text("<html>404</html>")
    with pytest.raises(ImageError, match="not a picture"):
        read_size(path)
    path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n")  # would start Ghostscript
    with pytest.raises(ImageError, match="not a picture"):
        read_size(path)
    for missing in (tmp_path / "b.png", tmp_path):
        with pytest.raises(ImageError, match="not a file"):
            read_size(missing)


def test_a_wrong_ending_does_no_harm(tmp_path: Path) -> None:
    smooth(16, 24).save(tmp_path / "a.png")
    (tmp_path / "a.png").rename(tmp_path / "a.jpg")
    assert read_size(tmp_path / "a.jpg") == Size(24, 16)


@pytest.mark.parametrize("ending", ["jpg", "png", "webp", "gif", "tiff", "bmp", "ico"])
def test_damaged_bytes_give_pixels_or_an_image_error_and_nothing_else(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"a.{ending}"
    smooth(48, 48).save(path)
    content = np.frombuffer(path.read_bytes(), dtype=np.uint8)
    generator = np.random.default_rng(1)
    for _ in range(60):
        damaged = content.copy()
        where = generator.integers(0, len(damaged) if generator.random() < 0.5 else 200, 6) % len(damaged)
        damaged[where] = generator.integers(0, 256, 6)
        path.write_bytes(damaged.tobytes())
        try:
            pixels = cut(path, Placement(Size(32, 32), Size(32, 32), (0, 0, 32, 32)))
        except ImageError:
            continue
        assert pixels.shape == (3, 32, 32) and bool(pixels.isfinite().all())


def test_threads_agree(tmp_path: Path) -> None:
    paths = []
    for index in range(12):
        paths.append(tmp_path / f"{index}.{'jpg' if index % 2 else 'png'}")
        smooth(60 + index, 80).save(paths[-1])
    alone = [np.asarray(open_rgb(p)) for p in paths]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda p: np.asarray(open_rgb(p)), paths))
    assert all((a == b).all() for a, b in zip(alone, together, strict=True))
