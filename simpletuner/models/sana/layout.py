"""Two ways to see the same cells: a sequence of tokens, as linear layers want them, and a picture, as convolutions do."""

from __future__ import annotations

import torch


def as_picture(tokens: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
    """[B, H·W, C] → [B, C, H, W], a view in channels-last strides; the grid is (H, W)."""
    return tokens.unflatten(1, grid).permute(0, 3, 1, 2)


def as_tokens(picture: torch.Tensor) -> torch.Tensor:
    """[B, C, H, W] → [B, H·W, C]; a view where the picture is channels-last."""
    return picture.permute(0, 2, 3, 1).flatten(1, 2)
