"""Masks: where a picture counts in the loss. White counts, black does not.

In: a mask beside its picture's name, and the picture's placement. Out: weights on the latent grid. A mask goes the very
way its picture went (same resize, same crop), so the two stay aligned to the pixel.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F

from simpletuner.data.discover import find_pictures
from simpletuner.data.images import cut, read_size
from simpletuner.data.types import Placement, Size
from simpletuner.errors import ImageError

UNUSABLE = "its mask cannot be used"
MaskKind = Literal["mask", "segmentation"]


@dataclass(frozen=True, slots=True)
class MaskSource:
    """A conditioning dataset in plain values.

    Attributes:
        id: Its id, for messages.
        folder: Searched with its subfolders; only read.
        kind: ``mask``: grey values weigh the loss. ``segmentation``: whatever is not black counts fully.
        probability: Share of the draws in which a segmentation acts; 1 for ``mask``.
    """

    id: str
    folder: Path
    kind: MaskKind
    probability: float = 1.0


def by_name(folder: Path) -> dict[tuple[str, ...], Path]:
    """Mask files by their path inside ``folder`` without ending: ``a/cat.png`` belongs to ``a/cat.jpg``."""
    return {_name(path, folder): path for path in find_pictures(folder)[0]}


def mask_of(picture: Path, folder: Path, masks: Mapping[tuple[str, ...], Path]) -> Path | None:
    """The mask of one picture of ``folder``, or None."""
    return masks.get(_name(picture, folder))


def _name(path: Path, folder: Path) -> tuple[str, ...]:
    return path.relative_to(folder).with_suffix("").parts


def check_size(mask: Path, picture: Size) -> None:
    """Raises ImageError if a mask has another shape than its picture (both upright); another scale is fine."""
    size = read_size(mask)
    if abs(size.width * picture.height - size.height * picture.width) > max(size.width, size.height, *picture):
        raise ImageError(f"its mask {mask.name} is {size}, another shape than the picture's {picture}")


def weights(mask: Path, placement: Placement, kind: MaskKind, stride: int) -> torch.Tensor:
    """Loss weights of one picture.

    Args:
        mask: The mask file.
        placement: The picture's.
        kind: See ``MaskSource``.
        stride: Pixels per latent cell.

    Returns:
        [1, H / stride, W / stride] float32 in [0, 1]: the mean of each cell's pixels (``mask``, first channel), or 1
        where any of its pixels is not black (``segmentation``).

    Raises:
        ImageError: It cannot be decoded.
    """
    pixels = cut(mask, placement)[None] / 2 + 0.5
    grid = (placement.bucket.height // stride, placement.bucket.width // stride)
    if kind == "segmentation":
        return F.adaptive_max_pool2d((pixels.mean(1, keepdim=True) > 0.5 / 255).float(), grid)[0]
    return F.interpolate(pixels[:, :1], size=grid, mode="area")[0].clamp(0, 1)


def stack(chosen: Sequence[torch.Tensor | None], grid: tuple[int, int]) -> torch.Tensor | None:
    """[B, 1, h, w] weights of a batch, ones where a sample has none; None if no sample has any."""
    if all(one is None for one in chosen):
        return None
    return torch.stack([torch.ones(1, *grid) if one is None else one.float() for one in chosen])
