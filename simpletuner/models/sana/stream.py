"""The residual stream of a block: what is added to it, gated or not, and what its norms hand to the next part.

In: tokens [B, N, C], what a part of the block made of them, and rows of the block's table from the time. Out: tokens.
Either way the sums are diffusers'; ``kernels`` asks for the operations of ``kernels/residual.py`` in place of chains of
PyTorch's. A bias given beside a result has been added to it already, detached: what is done here gives it its gradient.

Between two blocks stands one operation, the last sum of the one with the first norm of the other: a block hands on
``Between`` in place of tokens, where both are run here. Where blocks are recomputed in backward, however few of them, every
block hands on tokens alone: a recomputed one keeps what it was given, and that would be tokens and norm.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from simpletuner.models.sana.kernels import gated_norm, residual


class Between(NamedTuple):
    """What a block begins with, and how it goes on.

    Attributes:
        tokens: [B, N, C].
        inside: [B, N, C], their modulated norm, for self-attention.
        gate: [B, 1, C], of what self-attention makes.
        modulation_ff: [B, 2, C], shift and scale of the norm before the feed-forward.
        gate_ff: [B, 1, C], of what the feed-forward makes.
    """

    tokens: torch.Tensor
    inside: torch.Tensor
    gate: torch.Tensor
    modulation_ff: torch.Tensor
    gate_ff: torch.Tensor


def rows(block: Any, time: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """What time [B, 6 * C] says to a block: modulation [B, 2, C], gate [B, 1, C], and both of the feed-forward."""
    table = block.scale_shift_table[None] + time.reshape(len(time), 6, -1)
    return table.split((2, 1, 2, 1), dim=1)


def entered(block: Any, tokens: torch.Tensor, time: torch.Tensor, kernels: bool) -> Between:
    """The beginning of a block to which nothing but tokens [B, N, C] was handed."""
    modulation, *others = rows(block, time)
    return Between(*normed(block.norm1, tokens, modulation, kernels), *others)


def crossed(block: Any, tokens: torch.Tensor, result: torch.Tensor, gate: torch.Tensor, time: torch.Tensor) -> Between:
    """From the end of one block, tokens + gate · result, to the beginning of the next, by one operation."""
    modulation, *others = rows(block, time)
    tokens, inside = gated_norm.gated_norm(tokens, result, gate, modulation, block.norm1.eps)
    # The compiler asks what a tensor is a view of, and the first block's tokens come out of their norm as one of themselves.
    return Between(tokens.view_as(tokens), inside, *others)


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
