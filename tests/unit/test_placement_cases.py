from dataclasses import replace

import pytest

from simpletuner.data.placement import PlacementRules, place, reject_reason
from simpletuner.data.types import Placement, Size
from simpletuner.errors import DataError

WIDE = Size(1600, 800)


@pytest.mark.parametrize(
    ("size", "rules", "expected"),
    [
        # The field's usual resolutions, no snapping to a table.
        (Size(3000, 3000), PlacementRules(448), Placement(Size(448, 448), Size(448, 448), (0, 0, 448, 448))),
        (Size(3000, 3000), PlacementRules(736), Placement(Size(736, 736), Size(736, 736), (0, 0, 736, 736))),
        # 1024·√2 = 1448.2 → 1440 (45 cells), 1024/√2 = 724.1 → 736; height rules: 1472x736, trimmed 16 px each side.
        (WIDE, PlacementRules(1024), Placement(Size(1440, 736), Size(1472, 736), (16, 0, 1456, 736))),
        (WIDE, PlacementRules(512, "pixel"), Placement(Size(1024, 512), Size(1024, 512), (0, 0, 1024, 512))),
        # 0.25 MP: edge 500 → 512.
        (WIDE, PlacementRules(0.25, "area", crop=True), Placement(Size(512, 512), Size(1024, 512), (256, 0, 768, 512))),
        # A wide picture with a circle keeps it round: half of it is cut off, nothing is squashed.
        (
            WIDE,
            PlacementRules(512, "pixel", crop=True, crop_style="corner"),
            Placement(Size(512, 512), Size(1024, 512), (0, 0, 512, 512)),
        ),
        (
            WIDE,
            PlacementRules(512, "pixel", crop=True, crop_aspect="closest", aspect_buckets=(1.0, 1.5, 0.67)),
            Placement(Size(768, 512), Size(1024, 512), (128, 0, 896, 512)),
        ),
        # Smaller than its bucket: enlarged with its own aspect.
        (Size(100, 50), PlacementRules(64, "pixel", 64), Placement(Size(128, 64), Size(128, 64), (0, 0, 128, 64))),
        # At least one cell.
        (Size(64, 64), PlacementRules(8, "pixel"), Placement(Size(32, 32), Size(32, 32), (0, 0, 32, 32))),
    ],
)
def test_golden_placements(size: Size, rules: PlacementRules, expected: Placement) -> None:
    assert place(size, rules, 0) == expected


def test_closest_is_in_ratio_not_in_difference() -> None:
    # 0.7 lies nearer to 1.0 than to 0.5 by ratio; so does its mirror 1/0.7 to 1.0 than to 2.0.
    rules = PlacementRules(256, crop=True, crop_aspect="closest", aspect_buckets=(0.5, 1.0, 2.0))
    assert place(Size(720, 1000), rules, 0).bucket == Size(256, 256)
    assert place(Size(1000, 720), rules, 0).bucket == Size(256, 256)
    assert place(Size(690, 1000), rules, 0).bucket == place(Size(500, 1000), rules, 0).bucket


def test_an_uncropped_picture_is_centred_whatever_the_crop_style() -> None:
    for style in ("center", "corner", "random"):
        rules = PlacementRules(1024, crop_style=style)  # type: ignore[arg-type]
        assert place(WIDE, rules, 5).crop_box == (16, 0, 1456, 736)


def test_the_maximum_acts_only_with_a_crop_and_above_it() -> None:
    limits = {"maximum_image_size": 1000, "target_downsample_size": 700}
    crop = PlacementRules(512, "pixel", crop=True, **limits)  # type: ignore[arg-type]
    assert place(Size(3000, 1500), crop, 0).resize_to == Size(1400, 700)
    assert place(Size(2000, 1000), crop, 0).resize_to == Size(1024, 512)
    assert place(Size(3000, 1500), PlacementRules(512, "pixel", **limits), 0).resize_to == Size(1024, 512)  # type: ignore[arg-type]
    edge = PlacementRules(512, crop=True, **limits)  # type: ignore[arg-type]
    assert place(Size(2000, 2000), edge, 0).resize_to == Size(700, 700)


def test_downsampling_never_enlarges_and_always_covers() -> None:
    above = PlacementRules(512, "pixel", crop=True, maximum_image_size=600, target_downsample_size=5000)
    assert place(Size(900, 900), above, 0).resize_to == Size(900, 900)
    below = PlacementRules(512, "pixel", crop=True, maximum_image_size=600, target_downsample_size=10)
    assert place(Size(900, 900), below, 0).resize_to == Size(512, 512)


def test_a_minimum_of_none_or_zero_is_no_minimum() -> None:
    for minimum in (None, 0):
        assert reject_reason(Size(10, 10), PlacementRules(512, minimum_image_size=minimum)) is None


@pytest.mark.parametrize(
    ("size", "kind", "minimum", "used"),
    [
        (Size(1024, 1024), "pixel_area", 1024, True),
        (Size(2048, 512), "pixel_area", 1024, True),
        (Size(1023, 1024), "pixel_area", 1024, False),
        (Size(2048, 512), "pixel", 513, False),
        (Size(2048, 512), "pixel", 512, True),
        (Size(1000, 500), "area", 0.5, True),
        (Size(1000, 499), "area", 0.5, False),
    ],
)
def test_the_minimum(size: Size, kind: str, minimum: float, used: bool) -> None:
    reason = reject_reason(size, PlacementRules(0.25 if kind == "area" else 512, kind, minimum_image_size=minimum))  # type: ignore[arg-type]
    assert (reason is None) is used
    assert reason is None or (str(size) in reason and f"{minimum:g}" in reason)


def test_a_strip_is_refused_not_blown_up() -> None:
    reason = reject_reason(Size(16, 6000), PlacementRules(1024, "pixel", crop=True))
    assert reason is not None and "16x6000" in reason and "1024x384000" in reason


def test_closest_without_a_list_is_refused() -> None:
    with pytest.raises(DataError, match="crop_aspect_buckets"):
        PlacementRules(512, crop=True, crop_aspect="closest")


def test_random_aspects_follow_their_weights_and_the_upscale_limit() -> None:
    rules = PlacementRules(512, crop=True, crop_aspect="random", aspect_buckets=(1.0, 0.5), aspect_weights=(1.0, 9.0))
    buckets = [place(Size(2000, 2000), rules, seed).bucket for seed in range(200)]
    assert set(buckets) == {Size(512, 512), Size(352, 736)} and buckets.count(Size(352, 736)) > 140
    limited = replace(rules, max_upscale_threshold=0.1)
    assert {place(Size(540, 540), limited, seed).bucket for seed in range(50)} == {Size(512, 512)}
    # Where every bucket enlarges the picture, the one that does so least is taken.
    assert {place(Size(100, 100), limited, seed).bucket for seed in range(50)} == {Size(512, 512)}
    closest = replace(limited, crop_aspect="closest")
    assert place(Size(560, 900), closest, 0).bucket == Size(352, 736)
    assert place(Size(560, 700), closest, 0).bucket == Size(512, 512)  # the taller one would enlarge it


def test_aspect_limits_reject_with_the_key() -> None:
    rules = PlacementRules(512, minimum_aspect_ratio=0.5, maximum_aspect_ratio=2.0)
    assert reject_reason(Size(800, 800), rules) is None
    assert "maximum_aspect_ratio" in str(reject_reason(Size(2100, 1000), rules))
    assert "minimum_aspect_ratio" in str(reject_reason(Size(400, 1000), rules))
