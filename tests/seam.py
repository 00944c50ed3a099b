"""The seam between two blocks, once by the operation and once by PyTorch's, over a table of six rows a picture."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from simpletuner.models.sana.kernels import gated_norm

EPSILON = 1e-6


def operation(x: torch.Tensor, y: torch.Tensor, table: torch.Tensor) -> list[torch.Tensor]:
    """The sum and its modulated norm; the table's last row is the gate, its first two are the next block's modulation."""
    return list(gated_norm.gated_norm(x, y, table[:, 5:], table[:, :2], EPSILON))


def chain(x: torch.Tensor, y: torch.Tensor, table: torch.Tensor) -> list[torch.Tensor]:
    """The same by its definition."""
    s = x + table[:, 5:] * y
    return [s, F.layer_norm(s, s.shape[-1:], eps=EPSILON) * (1 + table[:, 1:2]) + table[:, :1]]
