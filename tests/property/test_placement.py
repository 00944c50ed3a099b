from hypothesis import given
from hypothesis import strategies as st

from simpletuner.data.placement import PlacementRules, place, reject_reason
from simpletuner.data.types import Size

sizes = st.builds(Size, st.integers(16, 6000), st.integers(16, 6000))
rules = st.builds(
    PlacementRules,
    resolution=st.integers(64, 2048),
    resolution_type=st.sampled_from(["pixel", "pixel_area"]),
    alignment=st.sampled_from([16, 32, 64]),
    crop=st.booleans(),
    crop_aspect=st.sampled_from(["square", "preserve", "closest"]),
    aspect_buckets=st.just((1.0, 0.75, 1.5)),
    crop_style=st.sampled_from(["center", "corner", "random"]),
    maximum_image_size=st.none() | st.integers(64, 3000),
    target_downsample_size=st.integers(64, 3000),
)


@given(sizes, rules, st.integers(0, 2**32))
def test_every_placement_is_sound(size: Size, rule: PlacementRules, seed: int) -> None:
    placement = place(size, rule, seed)
    left, top, right, bottom = placement.crop_box
    assert (right - left, bottom - top) == placement.bucket
    assert placement.bucket.width % rule.alignment == 0 == placement.bucket.height % rule.alignment
    assert left >= 0 and top >= 0 and right <= placement.resize_to.width and bottom <= placement.resize_to.height
    assert placement == place(size, rule, seed)


@given(sizes, rules, st.integers(0, 2**32))
def test_nothing_is_stretched(size: Size, rule: PlacementRules, seed: int) -> None:
    resized = place(size, rule, seed).resize_to
    # One scale explains both sides to within a pixel of rounding.
    low = max((resized.width - 1) / size.width, (resized.height - 1) / size.height)
    high = min((resized.width + 1) / size.width, (resized.height + 1) / size.height)
    assert low <= high


@given(st.builds(Size, st.integers(256, 4000), st.integers(256, 4000)), st.integers(256, 1024))
def test_without_a_crop_at_most_one_cell_is_trimmed(size: Size, resolution: int) -> None:
    rule = PlacementRules(resolution, "pixel_area", 32)
    placement = place(size, rule, 0)
    if max(size) / min(size) < 4:
        assert placement.resize_to.width - placement.bucket.width <= 33 * max(1, size.width / size.height)
        assert placement.resize_to.height - placement.bucket.height <= 33 * max(1, size.height / size.width)


@given(sizes, st.sampled_from([448, 512, 736, 1024]))
def test_a_square_crop_is_exactly_the_resolution(size: Size, resolution: int) -> None:
    placement = place(size, PlacementRules(resolution, "pixel_area", 32, crop=True), 0)
    assert placement.bucket == Size(resolution, resolution)  # 448 stays 448, 736 stays 736


def test_area_is_megapixels() -> None:
    assert place(Size(3000, 3000), PlacementRules(1.0, "area", 32), 0).bucket == Size(992, 992)
    assert place(Size(3000, 3000), PlacementRules(1024, "pixel_area", 32), 0).bucket == Size(1024, 1024)
    assert place(Size(1600, 800), PlacementRules(512, "pixel", 32), 0).bucket == Size(1024, 512)


def test_a_large_picture_is_downsampled_before_the_crop() -> None:
    rule = PlacementRules(512, "pixel", 32, crop=True, maximum_image_size=1024, target_downsample_size=768)
    assert place(Size(2048, 2048), rule, 0).resize_to == Size(768, 768)
    assert place(Size(1024, 1024), rule, 0).resize_to == Size(512, 512)
    area = PlacementRules(0.25, "area", 32, crop=True, maximum_image_size=1.0, target_downsample_size=0.64)
    assert place(Size(1600, 1600), area, 0).resize_to == Size(800, 800)


def test_the_crop_is_where_its_style_says() -> None:
    boxes = {
        style: place(Size(800, 400), PlacementRules(256, "pixel", 32, crop=True, crop_style=style), 3).crop_box  # type: ignore[arg-type]
        for style in ("center", "corner", "random")
    }
    assert boxes["center"] == (128, 0, 384, 256)
    assert boxes["corner"] == (0, 0, 256, 256)
    seeds = {
        place(Size(800, 400), PlacementRules(256, "pixel", 32, crop=True, crop_style="random"), s) for s in range(9)
    }
    assert len(seeds) > 1


def test_small_pictures_are_rejected_with_both_figures() -> None:
    rule = PlacementRules(1024, "pixel_area", 32, minimum_image_size=1024)
    assert reject_reason(Size(1024, 1024), rule) is None
    reason = reject_reason(Size(800, 600), rule)
    assert reason is not None and "800x600" in reason and "1024" in reason
    square = PlacementRules(1024, "pixel_area", 32, crop=True, minimum_image_size=1024)
    assert reject_reason(Size(4000, 600), square) is not None
    assert reject_reason(Size(4000, 600), rule) is None
    assert reject_reason(Size(4000, 600), PlacementRules(512, "pixel", 32, minimum_image_size=601)) is not None


@given(sizes, rules, st.integers(0, 2**32))
def test_no_pixel_more_than_needed_is_resized(size: Size, rule: PlacementRules, seed: int) -> None:
    placement = place(size, rule, seed)
    enlarged = placement.resize_to.width > size.width or placement.resize_to.height > size.height
    if rule.maximum_image_size is None or enlarged:  # nothing asked for a larger one
        assert (
            placement.resize_to.width == placement.bucket.width or placement.resize_to.height == placement.bucket.height
        )


@given(
    st.builds(Size, st.integers(100, 6000), st.integers(100, 6000)),
    st.integers(256, 2048),
    st.sampled_from([16, 32, 64]),
    st.booleans(),
)
def test_the_bucket_is_near_the_wanted_area_and_aspect(size: Size, edge: int, alignment: int, megapixels: bool) -> None:
    resolution, kind = (edge * edge / 1e6, "area") if megapixels else (edge, "pixel_area")
    bucket = place(size, PlacementRules(resolution, kind, alignment), 0).bucket  # type: ignore[arg-type]
    aspect = size.width / size.height
    wanted = (edge * aspect**0.5, edge / aspect**0.5)
    for side, ideal in zip(bucket, wanted, strict=True):
        assert (
            abs(side - ideal) <= alignment / 2 + 1e-6 or side == alignment
        )  # half a cell, or the one cell there must be


@given(sizes, st.integers(64, 2048), st.sampled_from([16, 32, 64]))
def test_pixel_is_the_shorter_edge(size: Size, resolution: int, alignment: int) -> None:
    bucket = place(size, PlacementRules(resolution, "pixel", alignment), 0).bucket
    assert abs(min(bucket) - resolution) <= alignment / 2 or min(bucket) == alignment
    assert (bucket.width >= bucket.height) == (size.width >= size.height) or bucket.width == bucket.height


@given(sizes, rules)
def test_turning_the_picture_turns_its_place(size: Size, rule: PlacementRules) -> None:
    if not rule.crop or rule.crop_aspect != "closest":  # a list of aspects need not hold each one's mirror
        placement, turned = place(size, rule, 0), place(Size(size.height, size.width), rule, 0)
        assert (turned.bucket, turned.resize_to) == (placement.bucket[::-1], placement.resize_to[::-1])


@given(sizes, rules, st.integers(0, 2**32))
def test_centre_and_corner(size: Size, rule: PlacementRules, seed: int) -> None:
    placement = place(size, rule, seed)
    left, top, right, bottom = placement.crop_box
    if not rule.crop or rule.crop_style == "center":
        assert placement.resize_to.width - right - left in (0, 1) and placement.resize_to.height - bottom - top in (
            0,
            1,
        )
    elif rule.crop_style == "corner":
        assert (left, top) == (0, 0)


@given(st.builds(Size, st.integers(1, 200_000), st.integers(1, 200_000)), rules)
def test_what_is_used_fits_into_memory(size: Size, rule: PlacementRules) -> None:
    resized = place(size, rule, 0).resize_to
    assert reject_reason(size, rule) is not None or resized.width * resized.height <= 100_000_000
