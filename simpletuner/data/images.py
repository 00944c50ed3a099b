"""Room 3, Cut: a file and a Placement become pixels.

In: a path. Out: its size from the header alone, or pixels [3, H, W] in [-1, 1]. One decoder for everything: EXIF
rotation, ICC to sRGB, CMYK, palettes, transparency over white, 16 bits. Refuses bombs by their header. Writes nothing.
"""

from __future__ import annotations

import io
import warnings
from pathlib import Path

import numpy as np
import torch
from PIL import ExifTags, Image, ImageCms, ImageOps, UnidentifiedImageError

from simpletuner.data.types import Placement, Size
from simpletuner.errors import ImageError

MAX_PIXELS = 100_000_000
_SWAPS_SIDES = {5, 6, 7, 8}
_WHITE = 255
_FAILURES = (OSError, ValueError, SyntaxError, EOFError, MemoryError, OverflowError, Image.DecompressionBombError)


def _open(path: Path) -> Image.Image:
    """Open without decoding; refuse what is too large or no picture.

    Raises:
        ImageError: With a plain reason.
    """
    try:
        with warnings.catch_warnings():
            # Pillow warns long before our own limit; ours decides.
            warnings.simplefilter("ignore")
            picture = Image.open(path)
    except Image.DecompressionBombError as error:
        raise ImageError(f"it is larger than {MAX_PIXELS // 10**6} megapixels") from error
    except UnidentifiedImageError as error:
        empty = path.is_file() and path.stat().st_size == 0
        raise ImageError("the file is empty" if empty else "it is not a picture that can be read") from error
    except _FAILURES as error:
        raise ImageError(f"it cannot be opened ({error})") from error
    if picture.width * picture.height > MAX_PIXELS:
        picture.close()
        raise ImageError(
            f"it has {picture.width}x{picture.height} pixels, more than {MAX_PIXELS // 10**6} megapixels"
        )
    if not picture.width or not picture.height:
        picture.close()
        raise ImageError("it has no pixels")
    return picture


def _orientation(picture: Image.Image) -> int:
    try:
        value = picture.getexif().get(ExifTags.Base.Orientation, 1)
    except _FAILURES:
        return 1  # broken EXIF says nothing
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def read_size(path: Path) -> Size:
    """Size after EXIF rotation, from the header alone.

    Raises:
        ImageError: No readable picture, or more than ``MAX_PIXELS``.
    """
    with _open(path) as picture:
        size = Size(*picture.size)
        return Size(size.height, size.width) if _orientation(picture) in _SWAPS_SIDES else size


def open_rgb(path: Path, at_least: Size | None = None) -> Image.Image:
    """Decode to upright 8-bit sRGB.

    Args:
        path: The picture; its first frame is used.
        at_least: If given, a JPEG may be decoded at a half, quarter or eighth of its size as long as both sides stay
            at least twice this (after rotation): same result after resizing, many times faster.

    Raises:
        ImageError: It cannot be decoded.
    """
    with _open(path) as picture:
        orientation = _orientation(picture)
        if at_least and picture.format == "JPEG" and picture.mode == "RGB":
            wanted = at_least[::-1] if orientation in _SWAPS_SIDES else tuple(at_least)
            picture.draft("RGB", (wanted[0] * 2, wanted[1] * 2))
        try:
            picture.load()
            upright = ImageOps.exif_transpose(picture)
            return _to_srgb(upright, picture.info.get("icc_profile"))
        except _FAILURES as error:
            raise ImageError(f"it cannot be decoded ({error})") from error


def _to_srgb(picture: Image.Image, profile: bytes | None) -> Image.Image:
    """Any mode → RGB: depth first, then colour, then transparency over white."""
    picture = _to_eight_bits(picture)
    alpha = None
    if picture.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in picture.info:
        picture = picture.convert("RGBA")
        alpha = picture.getchannel("A")
        picture = picture.convert("RGB")
    converted = _apply_profile(picture, profile)
    if alpha is not None:
        canvas = Image.new("RGB", converted.size, (_WHITE,) * 3)
        canvas.paste(converted, mask=alpha)
        converted = canvas
    return converted


def _to_eight_bits(picture: Image.Image) -> Image.Image:
    """16- and 32-bit grey and float grey → L by scale; Pillow's own conversion would clip at 255."""
    if picture.mode.startswith("I;16") or picture.mode == "I":
        values = np.asarray(picture).astype(np.float64)
        return Image.fromarray(np.clip(np.rint(values / 257.0), 0, 255).astype(np.uint8), "L")
    if picture.mode == "F":
        values = np.nan_to_num(np.asarray(picture).astype(np.float64))
        scale = 255.0 if values.max(initial=0.0) <= 1.0 else 1.0  # float TIFFs are either 0…1 or 0…255
        return Image.fromarray(np.clip(np.rint(values * scale), 0, 255).astype(np.uint8), "L")
    return picture


def _apply_profile(picture: Image.Image, profile: bytes | None) -> Image.Image:
    """Convert to sRGB through the embedded ICC profile; a broken or unfitting profile is ignored."""
    if profile and picture.mode in ("RGB", "L", "CMYK"):
        try:
            source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            result = ImageCms.profileToProfile(picture, source, ImageCms.createProfile("sRGB"), outputMode="RGB")
            if result is not None:
                return result
        except (ImageCms.PyCMSError, OSError, ValueError):
            pass
    return picture.convert("RGB")


def cut(path: Path, placement: Placement) -> torch.Tensor:
    """Decode, resize and crop.

    Args:
        path: The picture.
        placement: From room 2, made for this picture's size.

    Returns:
        [3, H, W] float32 in [-1, 1], H and W those of the bucket. Without a resize the pixels are exact.

    Raises:
        ImageError: It cannot be decoded.

    Antialiased bicubic in torch: Lanczos quality at a third of the time, no aliasing.
    """
    picture = open_rgb(path, placement.resize_to)
    pixels = torch.from_numpy(np.asarray(picture).copy()).permute(2, 0, 1)
    wanted = placement.resize_to
    if pixels.shape[1:] != (wanted.height, wanted.width):
        resized = torch.nn.functional.interpolate(
            pixels[None], size=(wanted.height, wanted.width), mode="bicubic", antialias=True, align_corners=False
        )
        pixels = resized[0]
    left, top, right, bottom = placement.crop_box
    return pixels[:, top:bottom, left:right].float() / 127.5 - 1.0
