"""Files made by hand, and arrays whose pixels are known; colour profiles are computed here, not by a library."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
import numpy.typing as npt
from exif import ORIENTATION, Pixels
from PIL import Image

BEST: dict[str, dict[str, Any]] = {
    "jpg": {"quality": 100, "subsampling": 0},
    "webp": {"lossless": True, "exact": True},
    "avif": {"quality": 100, "subsampling": "4:4:4"},
}
LOSS = {"jpg": 7, "avif": 7}  # of one channel of one pixel, at the best quality


def blocks(seed: int = 0, height: int = 32, width: int = 48) -> Pixels:
    """Blocks of 16 px: every orientation looks different, and JPEG keeps them."""
    colours = np.random.default_rng(seed).integers(0, 256, (height // 16, width // 16, 3), dtype=np.uint8)
    return np.kron(colours, np.ones((16, 16, 1), dtype=np.uint8))


def noise(seed: int = 0, height: int = 64, width: int = 64) -> Pixels:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def three(grey: npt.NDArray[Any]) -> Pixels:
    return np.repeat(grey.astype(np.uint8)[..., None], 3, axis=2)


def over_white(colour: npt.NDArray[Any], alpha: npt.NDArray[Any]) -> Pixels:
    share = alpha[..., None] / 255
    return np.rint(colour * share + 255 * (1 - share)).astype(np.uint8)


def saved(picture: Image.Image | npt.NDArray[Any], kind: str, **options: Any) -> bytes:
    """The bytes of a file as Pillow writes it."""
    file = io.BytesIO()
    picture = picture if isinstance(picture, Image.Image) else Image.fromarray(picture)
    picture.save(file, {"jpg": "jpeg", "jp2": "jpeg2000"}.get(kind, kind), **{**BEST.get(kind, {}), **options})
    return file.getvalue()


def turned(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    return bytes(exif.tobytes())


def png(
    width: int, height: int, depth: int, colour: int, raw: bytes, *chunks: tuple[bytes, bytes], **how: int
) -> bytes:
    """A PNG from its raw rows (each with its filter byte); ``chunks`` stand before the pixels."""
    head = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, how.get("interlace", 0))
    parts = [b"\x89PNG\r\n\x1a\n"]
    for kind, data in ((b"IHDR", head), *chunks, (b"IDAT", zlib.compress(raw)), (b"IEND", b"")):
        parts.append(struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)))
    return b"".join(parts)


def rows(values: npt.NDArray[Any]) -> bytes:
    """Rows for ``png``: filter 0, most significant byte first."""
    return b"".join(b"\0" + row.astype(values.dtype.newbyteorder(">")).tobytes() for row in values)


def adam7(values: Pixels) -> bytes:
    """The seven passes of an interlaced PNG."""
    passes = ((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1))
    return b"".join(rows(values[top::down, left::right]) for top, left, down, right in passes)


def tiff(values: npt.NDArray[Any], photometric: int, **tags: int) -> bytes:
    """An uncompressed little-endian TIFF of [H, W, C]; ``tags`` are named t338 and so on."""
    height, width, channels = values.shape
    bits = values.dtype.itemsize * 8
    entries = {256: width, 257: height, 258: bits, 259: 1, 262: photometric, 273: 0, 277: channels, 278: height}
    entries |= {279: values.nbytes, 339: 3 if values.dtype.kind == "f" else 1} | {
        int(k[1:]): v for k, v in tags.items()
    }
    after = 8 + 2 + 12 * len(entries) + 4
    depths = struct.pack("<H", bits) * channels
    body = b""
    for tag, value in sorted(entries.items()):
        many = tag in (258, 339) and channels > 2
        if many:
            value = after + (0 if tag == 258 else 8)
        body += struct.pack(
            "<HHII", tag, 3 if many else 4, channels if many else 1, after + 16 if tag == 273 else value
        )
    formats = struct.pack("<H", entries[339]) * channels
    head = struct.pack("<2sHIH", b"II", 42, 8, len(entries)) + body + bytes(4)
    data: bytes = values.astype(values.dtype.newbyteorder("<")).tobytes()
    return bytes(head + depths.ljust(8, b"\0") + formats.ljust(8, b"\0") + data)


# ---- colour profiles, made and applied by hand

SRGB = ((0.43607, 0.22249, 0.01392), (0.38515, 0.71687, 0.09708), (0.14307, 0.06061, 0.71410))
DISPLAY_P3 = ((0.51512, 0.24120, -0.00105), (0.29198, 0.69225, 0.04189), (0.15710, 0.06657, 0.78407))
ADOBE_RGB = ((0.60974, 0.31111, 0.01947), (0.20528, 0.62567, 0.06087), (0.14919, 0.06322, 0.74457))
Primaries = tuple[tuple[float, float, float], ...]
# Source: IEC 61966-2-1 as the ICC's parametric curve of type 3; Adobe RGB (1998): a power of 563/256.
_PARAMETRIC = b"para\0\0\0\0" + struct.pack(
    ">HH5i", 3, 0, *(round(v * 65536) for v in (2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045))
)
_POWER = b"curv\0\0\0\0" + struct.pack(">IHH", 1, 0x0233, 0)


def profile(primaries: Primaries) -> bytes:
    """A minimal ICC profile with these columns of its matrix (D50)."""

    def fixed(values: tuple[float, ...]) -> bytes:
        return b"XYZ \0\0\0\0" + b"".join(struct.pack(">i", round(v * 65536)) for v in values)

    curve = _POWER if primaries is ADOBE_RGB else _PARAMETRIC
    tags = {
        b"desc": b"desc\0\0\0\0" + struct.pack(">I", 5) + b"test\0" + bytes(78),
        b"wtpt": fixed((0.9642, 1, 0.8249)),
    }
    tags |= {letter + b"XYZ": fixed(column) for letter, column in zip((b"r", b"g", b"b"), primaries, strict=True)}
    tags |= {letter + b"TRC": curve for letter in (b"r", b"g", b"b")}
    offset, table, body = 128 + 4 + 12 * len(tags), struct.pack(">I", len(tags)), b""
    for name, data in tags.items():
        table += name + struct.pack(">II", offset + len(body), len(data))
        body += data + bytes(-len(data) % 4)
    head = struct.pack(">I4sI4s4s4s", offset + len(body), bytes(4), 0x02400000, b"mntr", b"RGB ", b"XYZ ")
    head += struct.pack(">6H", 2026, 1, 1, 0, 0, 0) + b"acsp" + bytes(28) + fixed((0.9642, 1, 0.8249))[8:]
    return head.ljust(128, b"\0") + table + body


def to_srgb(values: Pixels, primaries: Primaries) -> Pixels:
    """What these values mean in sRGB."""
    part = values / 255
    light = (
        part ** (563 / 256)
        if primaries is ADOBE_RGB
        else np.where(part <= 0.04045, part / 12.92, ((part + 0.055) / 1.055) ** 2.4)
    )
    linear = np.clip(light @ np.array(primaries) @ np.linalg.inv(np.array(SRGB)), 0, 1)
    coded = np.where(linear <= 0.0031308, linear * 12.92, 1.055 * linear ** (1 / 2.4) - 0.055)
    result: Pixels = np.rint(coded * 255).astype(np.uint8)
    return result


def one_colour(width: int, height: int, colour: int, bytes_a_row: int, *chunks: tuple[bytes, bytes]) -> bytes:
    """A true PNG of zeros; a few hundred kB, whatever its size. 0: one bit, grey; 2: RGB; 3: palette; 6: RGBA."""
    packer = zlib.compressobj(1)
    some = bytes((bytes_a_row + 1) * 100)
    data = b"".join(packer.compress(some) for _ in range(height // 100)) + packer.flush()
    empty = png(width, height, 1 if colour == 0 else 8, colour, b"", *chunks)
    at = empty.index(b"IDAT") - 4
    return (
        empty[:at]
        + struct.pack(">I", len(data))
        + b"IDAT"
        + data
        + struct.pack(">I", zlib.crc32(b"IDAT" + data))
        + empty[-12:]
    )
