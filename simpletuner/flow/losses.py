"""Room 7, Score: prediction and target become one number per sample. Weighs nothing, logs nothing."""

from __future__ import annotations

import torch


def mean_squared_error(
    prediction: torch.Tensor, target: torch.Tensor, weights: torch.Tensor | None = None
) -> torch.Tensor:
    """Mean squared error of each sample, summed in float32.

    Args:
        prediction: [B, ...] any float dtype.
        target: Same shape.
        weights: [B, 1, h, w] in [0, 1] for a masked loss, or None. The mean is over all elements, not over the white
            ones: a small mask gives a small loss, as in the original program.

    Returns:
        [B] float32, at least 0.

    Source: the flow-matching loss, Lipman et al. 2023 (arXiv 2210.02747), eq. 23.
    """
    error = (prediction.float() - target.float()).square()
    if weights is not None:
        error = error * weights
    return error.flatten(1).mean(1)
