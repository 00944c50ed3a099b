"""A circle stays a circle, in every bucket and wherever the crop falls."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from simpletuner.data.images import cut
from simpletuner.data.placement import PlacementRules, place
from simpletuner.data.types import Size

ASPECTS = (0.4, 0.5, 0.67, 0.75, 1.0, 1.33, 1.5, 2.0, 2.5)


def spans(size: Size, rules: PlacementRules, seed: int) -> tuple[int, int, float]:
    """Width and height in the result of a disc in the middle of the crop, and the diameter it should have."""
    placement = place(size, rules, seed)
    left, top, right, bottom = placement.crop_box
    scale = placement.resize_to.width / size.width, placement.resize_to.height / size.height
    middle = (left + right) / 2 / scale[0], (top + bottom) / 2 / scale[1]
    diameter = 0.6 * min(placement.bucket)
    radius = diameter / 2 / scale[0]
    rows, columns = np.mgrid[0 : size.height, 0 : size.width] + 0.5
    disc = ((columns - middle[0]) ** 2 + (rows - middle[1]) ** 2 <= radius**2).astype(np.uint8) * 255
    with tempfile.TemporaryDirectory() as folder:
        Image.fromarray(disc).save(Path(folder) / "a.png", compress_level=1)
        inside = cut(Path(folder) / "a.png", placement)[0] > 0
    return int(inside.any(0).sum()), int(inside.any(1).sum()), diameter


def allowed(size: Size, diameter: float) -> float:
    """Pixels of rounding: of the resize, and of a disc drawn with the source's coarser or finer pixels."""
    return 2.5 + diameter * 2.0 / min(size)


@settings(max_examples=40)
@given(
    st.builds(Size, st.integers(120, 900), st.integers(120, 900)),
    st.sampled_from(["square", "preserve", "closest", "random", "none"]),
    st.sampled_from(["center", "corner", "random"]),
    st.sampled_from([("pixel", 160.0), ("pixel_area", 224.0), ("area", 0.04)]),
    st.integers(0, 99),
)
def test_wherever_the_crop_falls(size: Size, aspect: str, style: str, resolution: tuple[str, float], seed: int) -> None:
    rules = PlacementRules(
        resolution[1],
        resolution[0],  # type: ignore[arg-type]
        crop=aspect != "none",
        crop_aspect=aspect if aspect != "none" else "square",  # type: ignore[arg-type]
        crop_style=style,  # type: ignore[arg-type]
        aspect_buckets=ASPECTS,
    )
    width, height, diameter = spans(size, rules, seed)
    assert abs(width - height) <= allowed(size, diameter)
    assert abs(width - diameter) <= allowed(size, diameter)


@pytest.mark.parametrize("aspect", ASPECTS)
def test_in_every_bucket(aspect: float) -> None:
    rules = PlacementRules(192, crop=True, crop_aspect="closest", aspect_buckets=(aspect,))
    for size in (Size(400, 300), Size(300, 400), Size(640, 160)):
        width, height, diameter = spans(size, rules, 0)
        assert abs(width - height) <= allowed(size, diameter) and abs(width - diameter) <= allowed(size, diameter)
