from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from simpletuner.data.images import cut
from simpletuner.data.masks import by_name, check_size, mask_of, stack, weights
from simpletuner.data.placement import PlacementRules, place
from simpletuner.data.types import Size
from simpletuner.errors import ImageError
from simpletuner.flow.losses import mean_squared_error


def test_masks_are_found_by_relative_name_whatever_the_ending(tmp_path: Path) -> None:
    for name in ("m/a.png", "m/deep/b.webp", "p/a.jpg", "p/deep/b.png", "p/c.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8)).save(tmp_path / name)
    masks = by_name(tmp_path / "m")
    found = [mask_of(tmp_path / "p" / name, tmp_path / "p", masks) for name in ("a.jpg", "deep/b.png", "c.png")]
    assert found == [tmp_path / "m/a.png", tmp_path / "m/deep/b.webp", None]


@settings(max_examples=25, deadline=None)
@given(
    st.integers(40, 300),
    st.integers(40, 300),
    st.sampled_from(["square", "preserve"]),
    st.sampled_from(["center", "corner", "random"]),
    st.integers(0, 99),
)
def test_a_mask_goes_the_way_of_its_picture(
    tmp_path_factory: pytest.TempPathFactory, width: int, height: int, aspect: str, style: str, seed: int
) -> None:
    """A picture used as its own mask: the weights are the picture's cut pixels, averaged over each latent cell."""
    file = tmp_path_factory.mktemp("mask") / "a.png"
    noise = np.random.default_rng(seed).integers(0, 256, (height, width), dtype=np.uint8)
    Image.fromarray(noise).save(file)
    rules = PlacementRules(64, "pixel", 16, crop=True, crop_aspect=aspect, crop_style=style)  # type: ignore[arg-type]
    placement = place(Size(width, height), rules, seed)
    expected = F.avg_pool2d((cut(file, placement)[:1] / 2 + 0.5)[None], 8)[0]
    assert torch.allclose(weights(file, placement, "mask", 8), expected, atol=1e-6)


def test_a_segmentation_counts_wherever_it_is_not_black(tmp_path: Path) -> None:
    pixels = np.zeros((64, 64, 3), dtype=np.uint8)
    pixels[10, 20] = (0, 9, 0)  # one pixel makes its whole cell count
    pixels[40:, :] = (200, 0, 30)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    placement = place(Size(64, 64), PlacementRules(64, "pixel", 16), 0)
    expected = torch.zeros(8, 8)
    expected[5:] = 1
    expected[1, 2] = 1
    assert torch.equal(weights(tmp_path / "a.png", placement, "segmentation", 8)[0], expected)


def test_another_shape_is_refused_another_scale_is_not(tmp_path: Path) -> None:
    Image.new("L", (50, 40)).save(tmp_path / "a.png")
    check_size(tmp_path / "a.png", Size(100, 80))
    check_size(tmp_path / "a.png", Size(101, 80))
    with pytest.raises(ImageError, match="another shape"):
        check_size(tmp_path / "a.png", Size(80, 100))


def test_nothing_outside_the_mask_has_any_gradient() -> None:
    prediction = torch.randn(2, 8, 6, 4, requires_grad=True)
    mask = torch.zeros(1, 6, 4)
    mask[:, :3, 1:3] = 1
    both = stack([mask, None], (6, 4))
    assert both is not None
    mean_squared_error(prediction, torch.randn(2, 8, 6, 4), both).sum().backward()
    assert prediction.grad is not None
    assert torch.equal(prediction.grad[0].abs().sum(0) > 0, mask[0] > 0)
    assert (prediction.grad[1] != 0).all()
    assert stack([None, None], (6, 4)) is None


def test_white_everywhere_is_no_mask() -> None:
    prediction, target = torch.randn(3, 8, 4, 4), torch.randn(3, 8, 4, 4)
    plain = mean_squared_error(prediction, target)
    assert torch.equal(mean_squared_error(prediction, target, torch.ones(3, 1, 4, 4)), plain)
    half = torch.ones(3, 1, 4, 4)
    half[..., :2] = 0
    masked = mean_squared_error(prediction, target, half)
    expected = (prediction - target)[..., 2:].square().flatten(1).sum(1) / (8 * 4 * 4)  # divided by all elements
    assert torch.allclose(masked, expected)
