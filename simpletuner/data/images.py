"""Room 3, Cut: a file and a Placement become pixels.

In: a path. Out: its size from the header alone, or pixels [3, H, W] in [-1, 1]. One decoder for everything: EXIF
rotation, ICC to sRGB, CMYK, palettes, transparency over white, 16 bits. Refuses bombs by their header. Chooses no
size itself and writes nothing.
"""

from __future__ import annotations

import io
import re
import stat
import threading
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import torch
from PIL import ExifTags, Image, ImageCms, UnidentifiedImageError, features

from simpletuner.data.types import Placement, Size
from simpletuner.errors import ImageError

MAX_PIXELS = 100_000_000
# Larger pictures are first averaged to about twice the wanted size, so that they are not held in memory several times.
LARGE_PIXELS = 25_000_000
# Named, so that no file can reach the decoders that start other programs (EPS) or that few people audit. TGA has no
# signature and takes others for its own, so it comes last.
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "DIB", "TIFF", "GIF", "AVIF", "JPEG2000", "PPM", "ICO", "TGA")
_SWAPS_SIDES = (5, 6, 7, 8)
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_PNG_TAIL = 1 << 17  # bytes; EXIF with its thumbnail is at most half of this
_GONE = "not a file (any more)"
# First bytes of what Pillow does not open. These are pictures, so converting them helps:
_FOREIGN = (
    (rb".{4}ftyp.{0,60}avi[fs]", "AVIF"),
    (rb".{4}ftyp.{0,60}(hei[cxms]|hev[cxms]|mif1|msf1)", "HEIC"),
    (rb"\0\0\0\x0cJXL |\xff\x0a", "JPEG XL"),
    (rb"8BPS", "a Photoshop file"),
    (rb"II[*+]\0|MM\0[*+]", "a raw photograph or a TIFF of a rare kind"),
)
# And these are not:
_NO_PICTURE = (
    (rb".{4}ftyp", "a film"),
    (rb"%PDF", "a PDF"),
    (rb"%!PS", "PostScript"),
    (rb"PK\x03\x04", "a zip archive"),
    (rb"version https://git-lfs", "only Git LFS's pointer to one (git lfs pull fetches it)"),
    (rb"([\t\n\r -~]|[\xc2-\xf4][\x80-\xbf]+)+[\xc2-\xf4]?\Z", "text"),
)
# Warning filters belong to the whole process and pictures are opened by several threads.
_filters = threading.Lock()


@contextmanager
def _plain_reasons(doing: str, path: Path) -> Iterator[None]:
    """Whatever a decoder raises for a broken file becomes an ImageError with a plain reason."""
    too_large = f"it is larger than {MAX_PIXELS // 10**6} megapixels"
    try:
        yield
    except ImageError:
        raise
    except Image.DecompressionBombError as error:
        raise ImageError(too_large) from error
    except UnidentifiedImageError as error:
        raise ImageError(_what_it_is(path)) from error
    except Exception as error:  # one unreadable picture: decoders raise nearly anything
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        reason = re.sub(r" \(\d+ bytes not processed\)", "", reason)  # of a file cut short, a number that helps nobody
        raise ImageError(f"it cannot be {doing}: the file is damaged or cut short ({reason})") from error


def _what_it_is(path: Path) -> str:
    """Why nothing here opens this file, from its first bytes."""
    head = b""
    with suppress(OSError), path.open("rb") as file:
        head = file.read(512)
    for start, what in _FOREIGN:
        if re.match(start, head, re.DOTALL):
            if what == "AVIF" and features.check("avif"):
                return "it cannot be opened: the file is damaged or cut short (AVIF)"
            return f"it is {what}, which cannot be read here: convert it to JPEG or PNG"
    for start, what in _NO_PICTURE:
        if re.match(start, head, re.DOTALL):
            return f"it is not a picture, whatever its name says: it is {what}"
    return "it is not a picture that can be read, whatever its name says"


def _refuse_what_is_no_file(path: Path) -> None:
    """Before anything is opened: opening a pipe waits for ever.

    Raises:
        ImageError: It is no ordinary file, or an empty one.
    """
    try:
        status = path.stat()
    except PermissionError as error:
        raise ImageError("it cannot be opened: no permission to read it") from error
    except OSError as error:
        link = path.is_symlink()
        raise ImageError(f"it is {'a link to something that does not exist' if link else _GONE}") from error
    if stat.S_ISDIR(status.st_mode):
        raise ImageError(f"it is {_GONE}")
    if not stat.S_ISREG(status.st_mode):
        raise ImageError("it is not a file but a pipe, socket or device")
    if status.st_size == 0:
        raise ImageError("the file is empty")


def _open(path: Path) -> Image.Image:
    """Open without decoding; refuse what is too large or no picture.

    Raises:
        ImageError: With a plain reason.
    """
    _refuse_what_is_no_file(path)
    try:
        with _filters, warnings.catch_warnings():
            # Pillow warns below our own limit; ours decides.
            warnings.simplefilter("ignore")
            with _plain_reasons("opened", path):
                picture = Image.open(path, formats=FORMATS)
                # A file with a name may be mapped into memory: then Pillow leaves a TIFF sideways, and a file that
                # gets shorter meanwhile kills the process.
                picture.filename = ""
    except ImageError as error:
        if isinstance(error.__cause__, PermissionError):
            raise ImageError("it cannot be opened: no permission to read it") from error
        raise
    width, height = picture.size
    if width * height > MAX_PIXELS or width < 1 or height < 1:
        picture.close()
        raise ImageError(f"it has {width}x{height} pixels; from 1 to {MAX_PIXELS // 10**6} megapixels can be read")
    return picture


def _late_exif(path: Path) -> bytes | None:
    """The eXIf chunk of a PNG behind its pixels, from the end of the file alone.

    ExifTool writes it there, and Pillow sees it only after decoding all pixels.
    """
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - _PNG_TAIL))
        tail = file.read()
    at = tail.rfind(b"eXIf")
    if at < 4:
        return None
    end = at + 4 + int.from_bytes(tail[at - 4 : at])
    # The same four letters may stand in the pixels by chance; the checksum may not.
    return tail[at + 4 : end] if zlib.crc32(tail[at:end]).to_bytes(4) == tail[end : end + 4] else None


def _orientation(picture: Image.Image, path: Path) -> int:
    """EXIF orientation 1 to 8, from the header. 1 for TIFF, which Pillow turns by itself."""
    if picture.format == "TIFF":
        return 1
    try:
        with _plain_reasons("opened", path), _filters, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if picture.format == "PNG" and "exif" not in picture.info and (exif := _late_exif(path)):
                picture.info["exif"] = exif
            # Not picture.getexif(): that of PNG decodes the whole picture.
            value = Image.Image.getexif(picture).get(ExifTags.Base.Orientation, 1)
    except ImageError:
        return 1  # broken EXIF says nothing
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def read_size(path: Path) -> Size:
    """Size after EXIF rotation, from the header alone.

    Raises:
        ImageError: No readable picture, or more than ``MAX_PIXELS``.
    """
    with _open(path) as picture:
        size = Size(*picture.size)
        return Size(size.height, size.width) if _orientation(picture, path) in _SWAPS_SIDES else size


def open_rgb(path: Path, at_least: Size | None = None, exact_colours: bool = True) -> Image.Image:
    """Decode to upright 8-bit sRGB.

    Args:
        path: The picture; its first frame is used.
        at_least: If given, a JPEG may be decoded at a half, quarter or eighth of its size, and a picture of more than
            ``LARGE_PIXELS`` at any whole part of it, as long as both sides stay at least twice this (after rotation):
            same result after resizing, many times faster.
        exact_colours: False leaves the profile of an RGB picture alone: for statistics, several times faster.

    Raises:
        ImageError: It cannot be decoded.
    """
    rgb, profile = _decode(path, at_least)
    return _apply_profile(rgb, profile) if exact_colours else rgb


def _decode(path: Path, at_least: Size | None) -> tuple[Image.Image, bytes | None]:
    """Upright RGB, and the ICC profile that is still to be applied, if any."""
    with _open(path) as picture:
        orientation = _orientation(picture, path)
        with _plain_reasons("decoded", path):
            wanted = at_least or Size(*picture.size)
            if orientation in _SWAPS_SIDES:
                wanted = Size(wanted.height, wanted.width)
            if at_least and picture.format in ("JPEG", "MPO"):
                picture.draft(None, (wanted.width * 2, wanted.height * 2))
            picture.load()
            profile = picture.info.get("icc_profile")
            part = min(picture.width // (wanted.width * 2), picture.height // (wanted.height * 2))
            part = max(1, part) if picture.width * picture.height > LARGE_PIXELS else 1
            if picture.mode == "RGB" and not picture.has_transparency_data:
                # The common case: its profile costs less after the resize.
                # Loaded, it outlives its file.
                rgb = picture.reduce(part) if part > 1 else picture
            else:
                rgb, profile = _to_srgb_reduced(_to_eight_bits(picture), profile, part), None
            return (rgb.transpose(_UPRIGHT[orientation]) if orientation != 1 else rgb), profile


def _to_srgb_reduced(picture: Image.Image, profile: bytes | None, part: int) -> Image.Image:
    """``_to_srgb`` of a picture that is first averaged to one part of its size, which costs a fraction.

    Transparent pixels count by their alpha in the average, so over white it is the same picture; colours are averaged as
    they are stored, as resizing does, and the profile is applied to what is left. From top to bottom, to need little
    memory. LAB is converted first: its halves of a circle cannot be averaged as they are stored.
    """
    if part == 1:
        return _to_srgb(picture, profile)
    first, profile = (_to_srgb, None) if picture.mode == "LAB" else (_averageable, profile)
    rows = part * max(1, 2_000_000 // (picture.width * part))
    result: Image.Image | None = None
    for top in range(0, picture.height, rows):
        band = picture.crop((0, top, picture.width, min(top + rows, picture.height)))
        small = first(band, None).reduce(part)
        if result is None:
            result = Image.new(small.mode, (-(-picture.width // part), -(-picture.height // part)))
        result.paste(small, (0, top // part))
    assert result is not None  # a picture has at least one row
    return _to_srgb(result, profile)


def _averageable(picture: Image.Image, _: bytes | None) -> Image.Image:
    """The same colours in a mode that ``reduce`` averages rightly: premultiplied where there is alpha."""
    if picture.mode in ("RGB", "RGBA", "LA", "L", "CMYK") and "transparency" not in picture.info:
        return picture
    colours, alpha = _split_alpha(picture)
    if alpha is None:
        return colours
    colours = colours.copy()
    colours.putalpha(alpha)
    return colours


def _to_srgb(picture: Image.Image, profile: bytes | None) -> Image.Image:
    """Any mode of 8 bits → RGB: colour first, then transparency over white."""
    picture, alpha = _split_alpha(picture)
    converted = _apply_profile(picture, profile)
    if alpha is None:
        return converted
    canvas = Image.new("RGB", converted.size, "white")
    canvas.paste(converted, mask=alpha)
    return canvas


def _to_eight_bits(picture: Image.Image) -> Image.Image:
    """16- and 32-bit grey and float grey → L by scale; Pillow's own conversion would clip at 255."""
    if not (picture.mode.startswith("I") or picture.mode == "F"):
        return picture
    values = np.asarray(picture)
    if picture.mode == "F":
        values = np.nan_to_num(values.astype(np.float64))
        top = values.max(initial=0.0)
        # Float files do not say their range: 0…1, 0…255 and 0…65535 are in use.
        scale = 255.0 if top <= 1.0 else 1.0 if top <= 255.0 else 1 / 257
        grey = np.rint(np.clip(values * scale, 0, 255)).astype(np.uint8)
    elif values.max(initial=0) > 65535:  # 32-bit integers
        grey = np.clip(values.astype(np.int64) >> 23, 0, 255).astype(np.uint8)
    else:
        grey = ((np.clip(values, 0, 65535).astype(np.uint32) + 128) // 257).astype(np.uint8)
        if getattr(picture, "tag_v2", {}).get(ExifTags.Base.PhotometricInterpretation) == 0:
            grey = 255 - grey  # a TIFF in which white is zero: Pillow turns it at 8 bits, not at 16
    result = Image.fromarray(grey)
    key = picture.info.get("transparency")
    if isinstance(key, int):  # the one grey that stands for nothing, in the depth of the file
        result.putalpha(Image.fromarray(np.where(values == key, 0, 255).astype(np.uint8)))
    return result


def _split_alpha(picture: Image.Image) -> tuple[Image.Image, Image.Image | None]:
    """Colours (grey stays grey, palettes become RGB) and alpha, if there is any."""
    grey = picture.mode in ("1", "L", "LA", "La")
    if picture.has_transparency_data:
        key = picture.info.get("transparency")
        if picture.mode == "RGB" and isinstance(key, tuple) and max(key) > 255:
            picture.info["transparency"] = tuple(part >> 8 for part in key)  # 16-bit PNG, read as 8 bits
        picture = picture.convert("LA" if grey else "RGBA")
        return picture.convert("L" if grey else "RGB"), picture.getchannel("A")
    if grey:
        return picture.convert("L"), None
    return (picture if picture.mode in ("RGB", "CMYK", "LAB") else picture.convert("RGB")), None


def _apply_profile(picture: Image.Image, profile: bytes | None) -> Image.Image:
    """Convert to sRGB through the embedded ICC profile; a broken or unfitting profile is ignored."""
    lab = picture.mode == "LAB"
    if profile or lab:
        try:
            source = ImageCms.createProfile("LAB") if lab else ImageCms.ImageCmsProfile(io.BytesIO(profile or b""))
            result = ImageCms.profileToProfile(picture, source, ImageCms.createProfile("sRGB"), outputMode="RGB")
            if result is not None:
                return result
        except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
            pass
    return picture.convert("RGB")


def cut(path: Path, placement: Placement) -> torch.Tensor:
    """Decode, resize and crop.

    Antialiased bicubic in torch: Lanczos quality at a third of the time, no aliasing.

    Args:
        path: The picture.
        placement: From room 2, made for this picture's size.

    Returns:
        [3, H, W] float32 in [-1, 1], H and W those of the bucket. Without a resize the pixels are exact.

    Raises:
        ImageError: It cannot be decoded.
    """
    picture, profile = _decode(path, placement.resize_to)
    pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1)
    wanted = placement.resize_to
    if pixels.shape[1:] != (wanted.height, wanted.width):
        resized = torch.nn.functional.interpolate(
            pixels[None], size=(wanted.height, wanted.width), mode="bicubic", antialias=True, align_corners=False
        )
        pixels = resized[0]
    left, top, right, bottom = placement.crop_box
    pixels = pixels[:, top:bottom, left:right]
    if profile:
        converted = _apply_profile(Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy()), profile)
        pixels = torch.from_numpy(np.array(converted)).permute(2, 0, 1)
    return pixels.contiguous().float() / 127.5 - 1.0
