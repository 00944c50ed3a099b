import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from exif import ORIENTATION, TURNED
from PIL import Image, ImageCms

from simpletuner.data.images import cut, open_rgb, read_size
from simpletuner.data.placement import PlacementRules, place
from simpletuner.data.types import Placement, Size


def whole(size: Size) -> Placement:
    """As it is: no resize, no crop."""
    return Placement(size, size, (0, 0, size.width, size.height))


def as_is(path: Path) -> np.ndarray:
    """[H, W, 3] uint8, through both ways of reading."""
    size = read_size(path)
    pixels = cut(path, whole(size))
    assert pixels.shape == (3, size.height, size.width) and pixels.dtype == torch.float32 and pixels.is_contiguous()
    values = ((pixels + 1) * 127.5).round().to(torch.uint8).permute(1, 2, 0).numpy()
    assert (values == np.asarray(open_rgb(path))).all()
    return values


def noise(height: int, width: int, channels: int = 3, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)


def smooth(height: int, width: int) -> Image.Image:
    rows, columns = np.mgrid[0:height, 0:width]
    waves = [127 + 100 * np.sin(columns / width * 9 + k) * np.cos(rows / height * 7 - k) for k in range(3)]
    return Image.fromarray(np.stack(waves, -1).astype(np.uint8))


def png(path: Path, *chunks: tuple[bytes, bytes]) -> Path:
    """A PNG from its chunks, IEND added."""
    with path.open("wb") as file:
        file.write(b"\x89PNG\r\n\x1a\n")
        for kind, data in (*chunks, (b"IEND", b"")):
            file.write(struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)))
    return path


def ihdr(width: int, height: int, depth: int = 8, colour: int = 2) -> tuple[bytes, bytes]:
    return b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)


# ---- exact pixels


@pytest.mark.parametrize("ending", ["png", "bmp", "tiff", "webp", "ppm", "tga", "jp2"])
def test_lossless_pixels_are_exact(tmp_path: Path, ending: str) -> None:
    values = noise(33, 47)
    path = tmp_path / f"a.{ending}"
    Image.fromarray(values).save(path, **({"lossless": True} if ending == "webp" else {}))
    assert read_size(path) == Size(47, 33)
    assert (as_is(path) == values).all()


def test_the_range_is_minus_one_to_one(tmp_path: Path) -> None:
    Image.fromarray(np.array([[[0, 255, 51]]], dtype=np.uint8)).save(tmp_path / "a.png")
    pixels = cut(tmp_path / "a.png", whole(Size(1, 1))).flatten()
    assert pixels[:2].tolist() == [-1.0, 1.0] and pixels[2].item() == pytest.approx(-0.6, abs=1e-6)


def test_the_crop_box_is_cut_exactly(tmp_path: Path) -> None:
    values = noise(64, 96)
    Image.fromarray(values).save(tmp_path / "a.png")
    pixels = cut(tmp_path / "a.png", Placement(Size(32, 32), Size(96, 64), (7, 11, 39, 43)))
    assert torch.equal(pixels, torch.from_numpy(values[11:43, 7:39]).permute(2, 0, 1).float() / 127.5 - 1)


def test_the_file_is_not_written(tmp_path: Path) -> None:
    smooth(40, 40).save(tmp_path / "a.jpg")
    before = (tmp_path / "a.jpg").read_bytes(), (tmp_path / "a.jpg").stat().st_mtime_ns
    as_is(tmp_path / "a.jpg")
    assert before == ((tmp_path / "a.jpg").read_bytes(), (tmp_path / "a.jpg").stat().st_mtime_ns)


# ---- EXIF rotation


@pytest.mark.parametrize("ending", ["png", "tiff", "webp", "jpg"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_in_size_and_pixels(tmp_path: Path, orientation: int, ending: str) -> None:
    stored = np.kron(noise(2, 3), np.ones((16, 16, 1), dtype=np.uint8))
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    path = tmp_path / f"a.{ending}"
    options = {"jpg": {"quality": 100, "subsampling": 0}, "webp": {"lossless": True}}.get(ending, {})
    Image.fromarray(stored).save(path, exif=exif, **options)
    meant = TURNED[orientation](stored)
    assert read_size(path) == Size(meant.shape[1], meant.shape[0])
    assert np.abs(as_is(path).astype(int) - meant).max() <= (6 if ending == "jpg" else 0)


def test_exif_behind_the_pixels_of_a_png_counts(tmp_path: Path) -> None:
    values = noise(2, 3)
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    data = zlib.compress(b"".join(b"\0" + row.tobytes() for row in values))
    path = png(tmp_path / "a.png", ihdr(3, 2), (b"IDAT", data), (b"eXIf", exif.tobytes()[6:]))
    assert read_size(path) == Size(2, 3)
    assert (as_is(path) == TURNED[6](values)).all()


def test_the_letters_of_a_chunk_within_pixels_are_no_chunk(tmp_path: Path) -> None:
    row = b"\0\0\0\0\0\4eXIfMM\0*"
    data = zlib.compress(b"\0" + row.ljust(18, b"\0"), 0)
    path = png(tmp_path / "a.png", ihdr(6, 1), (b"IDAT", data))
    assert b"\4eXIf" in path.read_bytes()
    assert read_size(path) == Size(6, 1)
    assert as_is(path).tobytes() == row.ljust(18, b"\0")


def test_a_profile_after_a_resize_is_a_profile_before_it(tmp_path: Path) -> None:
    smooth(90, 120).save(tmp_path / "a.png", icc_profile=wide_profile())
    ours = cut(tmp_path / "a.png", Placement(Size(32, 32), Size(60, 45), (4, 4, 36, 36)))
    before = open_rgb(tmp_path / "a.png").resize((60, 45), Image.Resampling.BICUBIC).crop((4, 4, 36, 36))
    assert mean_error(ours, before) < 1.0


@pytest.mark.parametrize(
    "exif", [b"Exif\0\0broken", b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x63\0\0", b""]
)
def test_broken_exif_says_nothing(tmp_path: Path, exif: bytes) -> None:
    smooth(16, 24).save(tmp_path / "a.jpg", exif=exif)
    assert read_size(tmp_path / "a.jpg") == Size(24, 16)
    as_is(tmp_path / "a.jpg")


def test_reading_a_size_decodes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for ending in ("png", "jpg", "webp", "tiff", "gif", "avif"):
        smooth(20, 30).save(tmp_path / f"a.{ending}")
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda self: pytest.fail("decoded"))
    for ending in ("png", "jpg", "webp", "tiff", "gif", "avif"):
        assert read_size(tmp_path / f"a.{ending}") == Size(30, 20)


# ---- modes


def test_sixteen_bit_grey_is_scaled_not_clipped(tmp_path: Path) -> None:
    values = np.array([[0, 128, 129, 257, 32896, 65407, 65535]], dtype=np.uint16)
    for ending in ("png", "tiff"):
        Image.fromarray(values).save(tmp_path / f"a.{ending}")
        assert as_is(tmp_path / f"a.{ending}")[0, :, 0].tolist() == [0, 0, 1, 1, 128, 255, 255]
    assert (tmp_path / "a.ppm").write_bytes(b"P5 7 1 65535\n" + values.astype(">u2").tobytes())
    assert as_is(tmp_path / "a.ppm")[0, :, 2].tolist() == [0, 0, 1, 1, 128, 255, 255]


def test_big_endian_sixteen_bit_tiff(tmp_path: Path) -> None:
    Image.frombytes("I;16B", (2, 1), b"\x80\x80\xff\xff").save(tmp_path / "a.tiff")
    assert as_is(tmp_path / "a.tiff")[0, :, 0].tolist() == [128, 255]


def test_sixteen_bit_grey_with_a_transparent_value(tmp_path: Path) -> None:
    data = zlib.compress(b"\0" + struct.pack(">3H", 1000, 1001, 0))
    path = png(tmp_path / "a.png", ihdr(3, 1, 16, 0), (b"tRNS", struct.pack(">H", 1000)), (b"IDAT", data))
    assert as_is(path)[0, :, 0].tolist() == [255, 4, 0]


def test_sixteen_bit_colour(tmp_path: Path) -> None:
    data = zlib.compress(b"\0" + struct.pack(">6H", 0, 0x8080, 0xFFFF, 0x1111, 0x2222, 0x3333))
    path = png(tmp_path / "a.png", ihdr(2, 1, 16, 2), (b"IDAT", data))
    assert as_is(path)[0].tolist() == [[0, 128, 255], [0x11, 0x22, 0x33]]
    key = (b"tRNS", struct.pack(">3H", 0x1111, 0x2222, 0x3333))
    path = png(tmp_path / "b.png", ihdr(2, 1, 16, 2), key, (b"IDAT", data))
    assert as_is(path)[0].tolist() == [[0, 128, 255], [255, 255, 255]]


def test_integer_and_float_grey(tmp_path: Path) -> None:
    def row(values: list[float], dtype: type) -> list[int]:
        Image.fromarray(np.array([values], dtype=dtype)).save(tmp_path / "a.tiff")
        return as_is(tmp_path / "a.tiff")[0, :, 0].tolist()

    assert row([0, 257, 65535], np.int32) == [0, 1, 255]
    assert row([0, 2**30, 2**31 - 1], np.int32) == [0, 128, 255]
    assert row([-5, 0, 65535], np.int32) == [0, 0, 255]
    assert row([0, 0.5, 1.0], np.float32) == [0, 128, 255]
    assert row([0, 7, 255.0], np.float32) == [0, 7, 255]
    assert row([0, 257, 65535.0], np.float32) == [0, 1, 255]
    assert row([float("nan"), 0.5, 1.0], np.float32) == [0, 128, 255]


def test_one_bit_and_grey(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0, 255]], dtype=np.uint8)).convert("1").save(tmp_path / "a.png")
    assert as_is(tmp_path / "a.png").tolist() == [[[0] * 3, [255] * 3]]
    path = png(tmp_path / "b.png", ihdr(2, 1, 1, 0), (b"tRNS", b"\0\0"), (b"IDAT", zlib.compress(b"\0\x40")))
    assert as_is(path).tolist() == [[[255] * 3, [255] * 3]]  # black is transparent, so all is white
    Image.fromarray(np.array([[0, 77]], dtype=np.uint8)).save(tmp_path / "c.png", transparency=77)
    assert as_is(tmp_path / "c.png").tolist() == [[[0] * 3, [255] * 3]]


def test_transparency_lies_over_white(tmp_path: Path) -> None:
    rgba = np.array([[[200, 0, 0, 255], [200, 0, 0, 0], [200, 0, 0, 51]]], dtype=np.uint8)
    Image.fromarray(rgba).save(tmp_path / "a.png")
    assert as_is(tmp_path / "a.png")[0].tolist() == [[200, 0, 0], [255] * 3, [244, 204, 204]]
    grey = np.array([[[0, 255], [0, 0], [0, 51]]], dtype=np.uint8)
    Image.fromarray(grey).save(tmp_path / "b.png")
    assert as_is(tmp_path / "b.png")[0, :, 1].tolist() == [0, 255, 204]
    rgb = Image.fromarray(np.array([[[1, 2, 3], [9, 9, 9]]], dtype=np.uint8))
    rgb.save(tmp_path / "c.png", transparency=(9, 9, 9))
    assert as_is(tmp_path / "c.png")[0].tolist() == [[1, 2, 3], [255] * 3]


@pytest.mark.parametrize("ending", ["png", "gif"])
def test_palettes_with_and_without_transparency(tmp_path: Path, ending: str) -> None:
    picture = Image.new("P", (3, 1))
    picture.putpalette([10, 20, 30, 200, 100, 50, 7, 8, 9])
    picture.putdata([0, 1, 2])
    picture.save(tmp_path / f"a.{ending}")
    assert as_is(tmp_path / f"a.{ending}")[0].tolist() == [[10, 20, 30], [200, 100, 50], [7, 8, 9]]
    picture.save(tmp_path / f"b.{ending}", transparency=1)
    assert as_is(tmp_path / f"b.{ending}")[0].tolist() == [[10, 20, 30], [255] * 3, [7, 8, 9]]
    if ending == "png":
        picture.save(tmp_path / "c.png", transparency=bytes([255, 0, 51]))
        assert as_is(tmp_path / "c.png")[0].tolist() == [[10, 20, 30], [255] * 3, [205, 206, 206]]


def test_cmyk_and_ycck(tmp_path: Path) -> None:
    for colour, expected in (
        ((0, 0, 0, 0), (255, 255, 255)),
        ((0, 255, 255, 0), (255, 0, 0)),
        ((0, 0, 0, 255), (0, 0, 0)),
    ):
        for name in ("a.tiff", "a.jpg"):
            Image.new("CMYK", (16, 16), colour).save(tmp_path / name)
            assert np.abs(as_is(tmp_path / name).astype(int) - expected).max() <= 3, (name, colour)


def test_lab_and_ycbcr_tiff(tmp_path: Path) -> None:
    red = Image.new("RGB", (8, 8), (200, 40, 30))
    lab = ImageCms.profileToProfile(
        red, ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), outputMode="LAB"
    )
    assert lab is not None
    lab.save(tmp_path / "a.tiff")
    assert np.abs(as_is(tmp_path / "a.tiff").astype(int) - (200, 40, 30)).max() <= 3
    red.convert("YCbCr").save(tmp_path / "b.tiff")
    assert np.abs(as_is(tmp_path / "b.tiff").astype(int) - (200, 40, 30)).max() <= 3


@pytest.mark.parametrize("ending", ["gif", "webp", "png", "tiff", "avif"])
def test_of_an_animation_the_first_frame_is_used(tmp_path: Path, ending: str) -> None:
    frames = [Image.new("RGB", (32, 32), colour) for colour in ("red", "lime", "blue")]
    frames[0].save(tmp_path / f"a.{ending}", save_all=True, append_images=frames[1:], duration=100)
    assert np.abs(as_is(tmp_path / f"a.{ending}").astype(int) - (255, 0, 0)).max() <= 3


# ---- colour profiles


def wide_profile() -> bytes:
    """Adobe RGB's matrix as a minimal ICC v2 file."""

    def fixed(*values: float) -> bytes:
        return b"XYZ \0\0\0\0" + b"".join(struct.pack(">i", round(v * 65536)) for v in values)

    curve = b"curv\0\0\0\0" + struct.pack(">IHH", 1, 0x0233, 0)
    tags = {
        b"desc": b"desc\0\0\0\0" + struct.pack(">I", 5) + b"wide\0" + b"\0" * 78,
        b"wtpt": fixed(0.9642, 1.0, 0.8249),
        b"rXYZ": fixed(0.6097, 0.3111, 0.0195),
        b"gXYZ": fixed(0.2053, 0.6257, 0.0609),
        b"bXYZ": fixed(0.1492, 0.0632, 0.7446),
        b"rTRC": curve,
        b"gTRC": curve,
        b"bTRC": curve,
    }
    offset, table, body = 128 + 4 + 12 * len(tags), struct.pack(">I", len(tags)), b""
    for name, data in tags.items():
        data += b"\0" * (-len(data) % 4)
        table += name + struct.pack(">II", offset + len(body), len(data))
        body += data
    head = struct.pack(">I4sI4s4s4s", offset + len(body), b"\0" * 4, 0x02400000, b"mntr", b"RGB ", b"XYZ ")
    head += struct.pack(">6H", 2026, 1, 1, 0, 0, 0) + b"acsp" + b"\0" * 28 + fixed(0.9642, 1.0, 0.8249)[8:]
    return head.ljust(128, b"\0") + table + body


def test_a_profile_is_turned_into_srgb(tmp_path: Path) -> None:
    # In Adobe RGB (100, 150, 100) is greener than the same figures in sRGB; grey stays grey.
    values = np.array([[[100, 150, 100], [128, 128, 128]]], dtype=np.uint8)
    Image.fromarray(values).save(tmp_path / "a.png", icc_profile=wide_profile())
    green, grey = as_is(tmp_path / "a.png")[0].astype(int).tolist()
    assert green[0] < 85 and abs(green[1] - 150) <= 3 and green[2] < 101
    assert max(grey) - min(grey) <= 1 and abs(grey[0] - 128) <= 2
    palette = Image.fromarray(values).quantize(2)
    palette.save(tmp_path / "p.png", icc_profile=wide_profile())
    assert np.abs(as_is(tmp_path / "p.png")[0].astype(int) - (green, grey)).max() <= 1
    alpha = np.dstack([values, [[255, 0]]]).astype(np.uint8)
    Image.fromarray(alpha).save(tmp_path / "t.png", icc_profile=wide_profile())
    assert as_is(tmp_path / "t.png")[0].tolist() == [green, [255, 255, 255]]


def test_a_broken_or_unfitting_profile_is_ignored(tmp_path: Path) -> None:
    values = noise(8, 8)
    for name, profile in (("a", b"no profile"), ("b", wide_profile()[:200])):
        Image.fromarray(values).save(tmp_path / f"{name}.png", icc_profile=profile)
        assert (as_is(tmp_path / f"{name}.png") == values).all()
    grey = Image.fromarray(values[..., 0])
    grey.save(tmp_path / "c.png", icc_profile=wide_profile())  # for RGB, on a grey picture
    assert (as_is(tmp_path / "c.png")[..., 0] == values[..., 0]).all()
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    Image.fromarray(values).save(tmp_path / "d.png", icc_profile=srgb)
    assert np.abs(as_is(tmp_path / "d.png").astype(int) - values).max() <= 1


# ---- resizing


def mean_error(a: torch.Tensor, b: Image.Image) -> float:
    return float(((a + 1) * 127.5 - torch.from_numpy(np.array(b)).permute(2, 0, 1)).abs().mean())


def test_resizing_agrees_with_pillow_bicubic(tmp_path: Path) -> None:
    picture = smooth(150, 210)
    picture.save(tmp_path / "a.png")
    for size in (Size(105, 75), Size(64, 64), Size(420, 300)):
        ours = cut(tmp_path / "a.png", Placement(size, size, (0, 0, *size)))
        assert mean_error(ours, picture.resize(size, Image.Resampling.BICUBIC)) < 0.6


def test_shrinking_does_not_alias(tmp_path: Path) -> None:
    stripes = np.zeros((256, 256, 3), dtype=np.uint8)
    stripes[:, ::2] = 255
    Image.fromarray(stripes).save(tmp_path / "a.png")
    pixels = cut(tmp_path / "a.png", Placement(Size(96, 96), Size(96, 96), (0, 0, 96, 96)))[:, 4:-4, 4:-4]
    assert pixels.abs().max() < 0.12  # even grey: the stripes are too fine to be seen


@pytest.mark.parametrize("orientation", [1, 6])
def test_a_large_jpeg_is_decoded_small_without_a_visible_change(tmp_path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    smooth(1024, 1600).save(tmp_path / "a.jpg", quality=95, exif=exif)
    size = read_size(tmp_path / "a.jpg")
    target = Size(200, 128) if orientation == 1 else Size(128, 200)
    half = open_rgb(tmp_path / "a.jpg", target)
    assert Size(*half.size) == Size(size.width // 4, size.height // 4)
    placement = place(size, PlacementRules(128, "pixel", 8), 0)
    assert placement.resize_to == target
    reference = open_rgb(tmp_path / "a.jpg").resize(target, Image.Resampling.BICUBIC)
    assert mean_error(cut(tmp_path / "a.jpg", placement), reference) < 1.0


def test_a_circle_stays_round(tmp_path: Path) -> None:
    rows, columns = np.mgrid[0:400, 0:800]
    disc = ((rows - 200) ** 2 + (columns - 400) ** 2 <= 120**2).astype(np.uint8) * 255
    Image.fromarray(np.stack([disc] * 3, -1)).save(tmp_path / "a.png")
    pixels = cut(tmp_path / "a.png", place(Size(800, 400), PlacementRules(256, "pixel", crop=True), 0))[0] > 0
    assert abs(int(pixels.any(0).sum()) - int(pixels.any(1).sum())) <= 1
