"""Colours of pictures as a few figures: how much of a palette is shared, and how far the mean colours are apart.

In: pixels. Out: numbers. Knows nothing of what is shown.
"""

from __future__ import annotations

import torch

CELLS = 4  # of each channel: 64 colours in all


def histogram(pixels: torch.Tensor) -> torch.Tensor:
    """Joint colour histogram of each picture, 4 x 4 x 4 cells.

    Args:
        pixels: [B, 3, H, W] in [-1, 1].

    Returns:
        [B, 64] float32, each row sums to 1.
    """
    level = ((pixels.clamp(-1, 0.999) + 1) * (CELLS / 2)).long()
    index = (level[:, 0] * CELLS + level[:, 1]) * CELLS + level[:, 2]
    count = CELLS**3
    return torch.stack([torch.bincount(row.flatten(), minlength=count).float() / row.numel() for row in index])


def overlap(made: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """Histogram intersection: the share of pixels whose colours both have.

    Source: Swain and Ballard, "Color Indexing", IJCV 7, 1991, equation 2.

    Args:
        made: [B, 64] histograms.
        wanted: [64], such as the mean of the training pictures'.

    Returns:
        [B] in [0, 1]; 1 is the same palette in the same shares.
    """
    return torch.minimum(made, wanted).sum(dim=1)


def moments(pixels: torch.Tensor) -> torch.Tensor:
    """Mean and standard deviation of R, G and B in levels, 0 to 255. [B, 3, H, W] in [-1, 1] → [B, 6]."""
    levels = (pixels.float() + 1) * 127.5
    return torch.cat([levels.mean(dim=(2, 3)), levels.std(dim=(2, 3), correction=0)], dim=1)


def colour_distance(made: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """Mean absolute difference of six moments, in levels, 0 to 255. [B, 6] and [6] → [B]."""
    return (made - wanted).abs().mean(dim=1)
