"""Room 7, Score: prediction and target become one number per sample. Weighs nothing, logs nothing."""

from __future__ import annotations

import torch


def mean_squared_error(prediction: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Mean squared error of each sample, summed in float32.

    Args:
        prediction: [B, ...] any float dtype.
        target: Same shape.

    Returns:
        [B] float32, at least 0.

    Source: the flow-matching loss, Lipman et al. 2023 (arXiv 2210.02747), eq. 23.
    """
    return (prediction.float() - target.float()).square().flatten(1).mean(1)
