"""The seam between two blocks: a block's last residual sum and the next block's norm with its modulation, in one pass.

In: tokens x and y [B, N, C], a gate [B, 1, C], a modulation [B, 2, C] (shift, then scale). Out: the sum and its modulated
norm. Dtypes, sums and formulas are those of ``residual.py``, for

    s = x + gate · y, rounded to its dtype;  n = x̂ (1 + scale) + shift, in the dtype of s, with x̂ the norm of s

With d the gradient of s there, its reader's and its norm's together:

    dx = d;  dy = d · gate;  dgate = Σ_N d · y;  dshift and dscale as there

s is kept for backward with two numbers a token, and y where the gate's gradient is wanted. A gradient of the gate or of the
modulation that is wanted brings all three.
"""

from __future__ import annotations

from typing import Any

import torch

from simpletuner.models.sana.kernels import runs_in_triton, widest_dtype
from simpletuner.models.sana.kernels.residual import (
    Wanted,
    absent,
    check_shapes,
    chosen_gradients,
    plain_gated,
    plain_gated_backward,
    plain_norm,
    plain_norm_backward,
    wanted_gradients,
)

Three = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def plain_forward(
    x: torch.Tensor, y: torch.Tensor, gate: torch.Tensor, modulation: torch.Tensor, epsilon: float
) -> Three:
    """The operation in plain PyTorch.

    Args:
        x: [B, N, C].
        y: [B, N, C].
        gate: [B, 1, C].
        modulation: [B, 2, C]: shift, scale.
        epsilon: Of the LayerNorm.

    Returns:
        s and n, [B, N, C] in the widest dtype of x, y and gate; mean and 1 / deviation of every token [B, N, 2] in the
        dtype of the sums.
    """
    return plain_norm(plain_gated(x, y, gate), None, modulation, epsilon)


def plain_backward(
    grads: tuple[torch.Tensor, torch.Tensor],
    kept: tuple[torch.Tensor, torch.Tensor],
    y: torch.Tensor | None,
    gate: torch.Tensor,
    modulation: torch.Tensor,
) -> Three:
    """(dx, dy, dshift and dscale and dgate) in plain PyTorch.

    Args:
        grads: The gradients of s and n, each [B, N, C].
        kept: s and the statistics, as the forward pass returned them.
        y: [B, N, C]; None where neither dgate nor dmodulation is wanted.
        gate: [B, 1, C].
        modulation: [B, 2, C].

    Returns:
        dx in the dtype of s; dy in that of y (of s where y is not known); the sums [B, 3, C] in the widest of gate and
        modulation, without elements where y is None.
    """
    d, dmodulation, _ = plain_norm_backward(grads, *kept, modulation, None, y is not None)
    _, dy, dgate, _ = plain_gated_backward(d, None, y, gate, None)
    return d, dy, absent(d) if y is None else torch.cat([dmodulation, dgate], dim=1)


@torch.library.custom_op("simpletuner::gated_norm", mutates_args=())
def gated_norm_forward(
    x: torch.Tensor, y: torch.Tensor, gate: torch.Tensor, modulation: torch.Tensor, epsilon: float
) -> Three:
    """(s, n, statistics): see ``plain_forward``; Triton for CUDA tensors, the plain twin for others.

    Raises:
        ValueError: the shapes do not belong together.
    """
    check_shapes([x, y], gate, 1, None)
    check_shapes([x], modulation, 2, None)
    if all(runs_in_triton(tensor) for tensor in (x, y, gate, modulation)):
        from simpletuner.models.sana.kernels import gated_norm_triton

        return gated_norm_triton.forward(x, y, gate, modulation, epsilon)
    return plain_forward(x, y, gate, modulation, epsilon)


@gated_norm_forward.register_fake
def _(x: torch.Tensor, y: torch.Tensor, gate: torch.Tensor, modulation: torch.Tensor, epsilon: float) -> Three:
    s = x.new_empty(x.shape, dtype=widest_dtype(x, y, gate))
    exact = torch.float64 if s.dtype == torch.float64 else torch.float32
    return s, torch.empty_like(s), x.new_empty(*x.shape[:2], 2, dtype=exact)


@torch.library.custom_op("simpletuner::gated_norm_backward", mutates_args=())
def gated_norm_backward(
    grad_s: torch.Tensor,
    grad_n: torch.Tensor,
    s: torch.Tensor,
    statistics: torch.Tensor,
    y: torch.Tensor | None,
    gate: torch.Tensor,
    modulation: torch.Tensor,
) -> Three:
    """(dx, dy, sums): see ``plain_backward``."""
    given = (grad_s, grad_n), (s, statistics), y, gate, modulation
    known = (grad_s, grad_n, s, gate, modulation, s if y is None else y)
    if all(runs_in_triton(tensor) for tensor in known):
        from simpletuner.models.sana.kernels import gated_norm_triton

        return gated_norm_triton.backward(*given)
    return plain_backward(*given)


@gated_norm_backward.register_fake
def _(
    grad_s: torch.Tensor,
    grad_n: torch.Tensor,
    s: torch.Tensor,
    statistics: torch.Tensor,
    y: torch.Tensor | None,
    gate: torch.Tensor,
    modulation: torch.Tensor,
) -> Three:
    dx, dy = s.new_empty(s.shape), s.new_empty(s.shape, dtype=(s if y is None else y).dtype)
    sums = (len(s), 3, s.shape[2]) if y is not None else (0,)
    return dx, dy, s.new_empty(sums, dtype=s.dtype if y is None else widest_dtype(gate, modulation))


class GatedNorm(torch.autograd.Function):
    """``gated_norm``; of autograd around the operators, as in ``residual.py``."""

    @staticmethod
    def forward(
        ctx: Any, x: Any, y: Any, gate: Any, modulation: Any, epsilon: float, wanted: Wanted
    ) -> tuple[Any, Any]:
        """The sum and its norm."""
        s, n, statistics = gated_norm_forward(x, y, gate, modulation, epsilon)
        ctx.save_for_backward(s, statistics, y if wanted[2] or wanted[3] else None, gate, modulation)
        ctx.wanted, ctx.dtypes = wanted, (x.dtype, y.dtype, gate.dtype, modulation.dtype)
        return s, n

    @staticmethod
    def backward(ctx: Any, grad_s: Any, grad_n: Any) -> tuple[Any, ...]:
        """All four gradients in one pass."""
        dx, dy, sums = gated_norm_backward(grad_s, grad_n, *ctx.saved_tensors)
        dgate, dmodulation = (sums[:, 2:], sums[:, :2]) if sums.numel() else (sums, sums)
        found = (t.to(dtype) for t, dtype in zip((dx, dy, dgate, dmodulation), ctx.dtypes, strict=True))
        return (*chosen_gradients(ctx.wanted, *found), None, None)


def gated_norm(
    x: torch.Tensor, y: torch.Tensor, gate: torch.Tensor, modulation: torch.Tensor, epsilon: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """(s, LayerNorm(s) (1 + scale) + shift) of s = x + gate · y, both [B, N, C] in the dtype of s.

    Args:
        x: [B, N, C].
        y: [B, N, C].
        gate: [B, 1, C].
        modulation: [B, 2, C]: shift, scale.
        epsilon: Of the LayerNorm, which has no weights of its own.

    Raises:
        ValueError: the shapes do not belong together.
    """
    check_shapes([x, y], gate, 1, None)
    check_shapes([x], modulation, 2, None)
    s, normed = GatedNorm.apply(x, y, gate, modulation, epsilon, wanted_gradients(x, y, gate, modulation))
    return s, normed
