"""The residual stream of a block: what is added to it, gated or not, and what its norms hand to the next part.

In: tokens [B, N, C], what a part of the block made of them, and rows of the block's table from the time. Out: tokens.
Either way the sums are diffusers'; ``kernels`` asks for the operations of ``kernels/residual.py`` in place of chains of
PyTorch's. A bias given beside a result has been added to it already, detached: what is done here gives it its gradient.
"""

from __future__ import annotations

from typing import Any

import torch

from simpletuner.models.sana.kernels import residual


def modulated(tokens: torch.Tensor, modulation: torch.Tensor) -> torch.Tensor:
    """Tokens (1 + scale) + shift, with [B, N, C] tokens and [B, 2, C]: shift, scale."""
    shift, scale = modulation.chunk(2, dim=1)
    return torch.addcmul(shift, tokens, 1 + scale)


def normed(
    norm: Any, tokens: torch.Tensor, modulation: torch.Tensor, kernels: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """The tokens, to be read from here on, and their modulated norm in their dtype."""
    if kernels:
        return residual.norm(tokens, modulation, norm.eps)
    return tokens, modulated(norm(tokens), modulation).to(tokens.dtype)


def gated(
    tokens: torch.Tensor, result: torch.Tensor, gate: torch.Tensor, bias: torch.Tensor | None, kernels: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens + gate · result with a gate [B, 1, C], once for each of two readers."""
    if kernels:
        return residual.gated_add_twice(tokens, result, gate, bias)
    total = torch.addcmul(tokens, gate, result)
    return total, total


def gated_last(tokens: torch.Tensor, result: torch.Tensor, gate: torch.Tensor, kernels: bool) -> torch.Tensor:
    """The same for one reader."""
    return residual.gated_add(tokens, result, gate) if kernels else torch.addcmul(tokens, gate, result)


def added_and_normed(
    norm: Any,
    tokens: torch.Tensor,
    result: torch.Tensor,
    modulation: torch.Tensor,
    bias: torch.Tensor | None,
    kernels: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens + result, and the modulated norm of the sum."""
    if kernels:
        return residual.add_norm(tokens, result, modulation, norm.eps, bias)
    if bias is not None:
        result = result + (bias - bias.detach())  # adds zero, but a gradient
    tokens = tokens + result
    return tokens, modulated(norm(tokens), modulation)
