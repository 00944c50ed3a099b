import io
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFilter

from simpletuner.data.duplicates import find_duplicates
from simpletuner.data.images import open_rgb
from simpletuner.data.quality import BLOCKY, BLURRED, Quality, measure, warnings
from simpletuner.data.types import Size

Change = Callable[[Image.Image], Image.Image]


def scene(width: int = 640, height: int = 480, seed: int = 0) -> Image.Image:
    """Smooth ground, hard-edged ellipses, a little noise: sharp, and with no grid of its own."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(40, 216, (6, 8, 3), dtype=np.uint8))
    ground = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC)) + rng.normal(0, 2, (height, width, 1))
    picture = Image.fromarray(ground.clip(0, 255).astype(np.uint8))
    draw = ImageDraw.Draw(picture)
    for _ in range(80):
        x, y, r = rng.uniform(0, width), rng.uniform(0, height), rng.uniform(0.01, 0.1) * width
        draw.ellipse((x - r, y - r, x + r, y + r * 0.6), fill=tuple(int(c) for c in rng.integers(0, 256, 3)))
    return picture


def jpeg(picture: Image.Image, value: int) -> Image.Image:
    memory = io.BytesIO()
    picture.save(memory, "JPEG", quality=value)
    return Image.open(memory).convert("RGB")


def bits(one: Image.Image, other: Image.Image) -> int:
    return (measure(one).perceptual_hash ^ measure(other).perceptual_hash).bit_count()


def said(picture: Image.Image) -> str:
    return " ".join(warnings(measure(picture)))


@pytest.mark.parametrize("seed", range(3))
def test_nothing_is_said_of_a_good_picture(seed: int) -> None:
    assert said(scene(seed=seed)) == said(jpeg(scene(seed=seed), 95)) == ""


# ---- blur


def test_blur_lowers_sharpness_step_by_step() -> None:
    values = [measure(scene().filter(ImageFilter.GaussianBlur(s))).sharpness for s in (0, 1, 2, 4)]
    assert values == sorted(values, reverse=True) and values[0] > 2 * BLURRED and values[2] < BLURRED
    assert "blurred" in said(scene().filter(ImageFilter.GaussianBlur(2)))


def test_an_enlarged_picture_looks_blurred() -> None:
    assert "blurred" in said(scene(160, 120).resize((640, 480), Image.Resampling.BICUBIC))


def test_a_blurred_background_is_no_blurred_picture() -> None:
    picture = scene().filter(ImageFilter.GaussianBlur(6))
    picture.paste(scene(320, 240, seed=1), (160, 120))
    assert "blurred" not in said(picture)


def test_sharpness_is_the_same_at_half_the_contrast() -> None:
    dim = Image.fromarray(np.asarray(scene()) // 2 + 60)
    assert measure(dim).sharpness == pytest.approx(measure(scene()).sharpness, rel=0.05)


def test_large_pictures_are_judged_at_one_size() -> None:
    # What is soft at 3,000 px is sharp at the size pictures are trained at.
    soft = scene(3000, 2000).filter(ImageFilter.GaussianBlur(1))
    assert "blurred" not in said(soft)
    assert measure(soft.crop((1000, 600, 2000, 1400))).sharpness < measure(soft).sharpness


# ---- blocks


def test_strong_compression_shows_and_a_cameras_does_not() -> None:
    values = [measure(jpeg(scene(), value)).blockiness for value in (95, 50, 10)]
    assert values == sorted(values) and values[0] < 1.1 and values[2] > BLOCKY
    assert "JPEG" in said(jpeg(scene(), 10))


@pytest.mark.parametrize("offset", [(1, 0), (3, 5), (7, 7)])
def test_blocks_are_found_wherever_the_grid_begins(offset: tuple[int, int]) -> None:
    left, top = offset
    assert measure(jpeg(scene(), 10).crop((left, top, 630, 470))).blockiness > BLOCKY


@pytest.mark.parametrize("turned", list(Image.Transpose))
def test_blocks_do_not_depend_on_rotation(turned: Image.Transpose) -> None:
    picture = jpeg(scene(), 10)
    assert measure(picture.transpose(turned)).blockiness == pytest.approx(measure(picture).blockiness, rel=0.05)


def test_stripes_and_pixel_art_are_no_blocks() -> None:
    stripes = np.tile(np.where(np.arange(512) % 8 < 4, 90, 110).astype(np.uint8), (512, 1))
    noise = np.random.default_rng(0).integers(0, 9, (512, 512), dtype=np.uint8)
    for values in (stripes + noise, stripes.T + noise):
        assert measure(Image.fromarray(values).convert("RGB")).blockiness < 1.1
    cells = Image.fromarray(np.random.default_rng(1).integers(0, 256, (128, 128, 3), dtype=np.uint8))
    assert measure(cells.resize((512, 512), Image.Resampling.NEAREST)).blockiness < 1.1


# ---- borders


@pytest.mark.parametrize("quality", [None, 75])
@pytest.mark.parametrize("colour", ["black", "white", "#203060"])
@pytest.mark.parametrize("sides", [(0, 60, 0, 60), (50, 0, 50, 0), (40, 30, 20, 10), (0, 0, 0, 60)])
def test_bars_are_measured(sides: tuple[int, int, int, int], colour: str, quality: int | None) -> None:
    left, top, right, bottom = sides
    picture = Image.new("RGB", (640 + left + right, 480 + top + bottom), colour)
    picture.paste(scene(seed=2), (left, top))
    picture = jpeg(picture, quality) if quality else picture
    found = measure(picture).borders
    assert all(abs(a - b) <= (0 if quality is None else 8) for a, b in zip(found, sides, strict=True)), found
    assert "border" in said(picture)


def test_bars_of_a_large_picture_are_in_its_own_pixels() -> None:
    picture = Image.new("RGB", (2400, 1800))
    picture.paste(scene(2400, 1400), (0, 200))
    left, top, right, bottom = measure(picture).borders
    assert left == right == 0 and abs(top - 200) <= 3 and abs(bottom - 200) <= 3


def test_a_thing_on_a_plain_ground_has_no_border() -> None:
    picture = Image.new("RGB", (400, 400), "white")
    ImageDraw.Draw(picture).ellipse((60, 80, 340, 320), fill="navy")
    assert measure(picture).borders == (0, 0, 0, 0)


# ---- emptiness


@pytest.mark.parametrize("colour", ["black", "white", "red", "#808080"])
def test_one_colour(colour: str) -> None:
    found = measure(jpeg(Image.new("RGB", (300, 200), colour), 50))
    assert found.one_colour and found.contrast < 1 and found.borders == (0, 0, 0, 0)
    assert len(warnings(found)) == 1 and "one colour" in warnings(found)[0]


def test_colours_of_equal_luma_are_not_one_colour() -> None:
    picture = Image.new("RGB", (300, 200), (255, 0, 0))
    picture.paste((0, 130, 0), (0, 0, 150, 200))
    assert not measure(picture).one_colour


def test_mean_and_contrast_are_what_numpy_says() -> None:
    found, values = measure(scene()), np.asarray(scene(), dtype=np.float64)
    assert found.contrast == pytest.approx(values.std(axis=(0, 1)).max())
    assert found.mean == pytest.approx(np.asarray(scene().convert("L")).mean())


@pytest.mark.parametrize("size", [(1, 1), (1, 500), (500, 1), (2, 2), (3, 3), (9, 4), (5000, 2)])
def test_tiny_and_narrow_pictures_have_statistics_too(size: tuple[int, int]) -> None:
    for picture in (Image.new("RGB", size, "teal"), Image.effect_noise(size, 60).convert("RGB")):
        found = measure(picture)
        assert found.size == Size(*size) and np.isfinite([found.sharpness, found.blockiness, found.contrast]).all()
        assert isinstance(warnings(found), tuple)


# ---- fingerprints


CHANGES: dict[str, Change] = {
    "JPEG 30": lambda p: jpeg(p, 30),
    "half": lambda p: p.resize((p.width // 2, p.height // 2)),
    "grey": lambda p: p.convert("L").convert("RGB"),
    "brighter": lambda p: p.point(lambda v: min(255, v + 15)),
    "cropped": lambda p: p.crop((4, 3, 636, 477)),
    "blurred": lambda p: p.filter(ImageFilter.GaussianBlur(2)),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_near_copies_have_near_hashes_and_other_content(change: Change) -> None:
    for seed in range(4):
        picture = scene(seed=seed)
        assert bits(picture, change(picture)) <= 8
        assert measure(picture).content != measure(change(picture)).content


def test_different_pictures_have_distant_hashes() -> None:
    hashes = [measure(scene(160, 120, seed)).perceptual_hash for seed in range(40)]
    assert min((a ^ b).bit_count() for i, a in enumerate(hashes) for b in hashes[:i]) > 10
    assert all(0 <= value < 2**64 for value in hashes)


def test_content_is_that_of_the_pixels_and_not_of_the_file(tmp_path: Path) -> None:
    picture = jpeg(scene(), 80)
    paths = [tmp_path / name for name in ("a.png", "b.bmp", "c.webp")]
    for path in paths:
        picture.save(path, **({"lossless": True} if path.suffix == ".webp" else {}))
    assert len({measure(open_rgb(path)) for path in paths}) == 1


@pytest.mark.parametrize("size", [(64, 48), (3000, 2000)])
def test_one_changed_pixel_is_other_content(size: tuple[int, int]) -> None:
    picture, changed = Image.new("RGB", size, "teal"), Image.new("RGB", size, "teal")
    changed.putpixel((size[0] // 2, size[1] // 3), (90, 128, 128))
    assert measure(picture).content != measure(changed).content


def test_content_knows_colours_and_shape() -> None:
    # The same luma, and the same bytes in other shapes.
    reds = [Image.new("RGB", (50, 40), colour) for colour in ((100, 0, 0), (101, 0, 0))]
    assert measure(reds[0]).content != measure(reds[1]).content
    assert measure(Image.new("RGB", (50, 40))).content != measure(Image.new("RGB", (40, 50))).content


def test_only_rgb_is_measured() -> None:
    with pytest.raises(ValueError, match="RGB"):
        measure(Image.new("L", (10, 10)))


def test_every_sentence_is_plain() -> None:
    bad = Quality(Size(800, 600), 0.01, 2.0, (0, 90, 0, 90), 100.0, 50.0, 0, "")
    assert len(warnings(bad)) == 3 and all(line.endswith(".") for line in warnings(bad))
    assert "90 px top, 90 px bottom" in warnings(bad)[2]
    assert not any("border" in line for line in warnings(replace(bad, borders=(3, 3, 3, 3))))


def test_a_thing_with_a_straight_edge_on_a_plain_ground_has_no_border() -> None:
    # A house on the ground: plain on one side. And two pixels between plain halves are no picture in a frame.
    one_side = Quality(Size(128, 128), 0.5, 1.0, (0, 0, 12, 4), 100.0, 50.0, 0, "")
    assert warnings(one_side) == ()
    assert "20 px right" in warnings(replace(one_side, borders=(0, 0, 20, 0)))[0]
    plain = Image.new("RGB", (120, 240), "white")
    plain.paste("black", (0, 60, 120, 62))
    assert measure(plain).borders == (0, 0, 0, 0)


def test_circles_of_two_colours_are_not_near_and_a_small_copy_is() -> None:
    def circle(colour: str) -> Image.Image:
        picture = Image.blend(scene(120, 120), Image.new("RGB", (120, 120), "white"), 0.7)
        ImageDraw.Draw(picture).ellipse((48, 48, 72, 72), fill=colour)
        return picture

    found = [measure(p) for p in (circle("red"), circle("orange"), jpeg(circle("red"), 60).resize((80, 80)))]
    hashes, contents = [q.perceptual_hash for q in found], [q.content for q in found]
    assert find_duplicates(contents, hashes).near == ((0, 1, 2),), "their luma alone is nearly the same"
    assert find_duplicates(contents, hashes, colours=[q.colours for q in found]).near == ((0, 2),)
