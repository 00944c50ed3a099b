"""The middle of GLUMBConv on tokens: SiLU, depthwise 3x3 convolution, gate, in one operation with its gradients.

In: x [B, H·W, 2C] (channels last, as a linear leaves it), weight [2C, 1, 3, 3], bias [2C]. Out: [B, H·W, C].

    s = SiLU(x);  [a, g] = conv(s) + bias, zeros around the picture;  out = a · SiLU(g)

Only x is kept for backward; s, a and g are computed again. With σ the logistic function and dout the incoming gradient:

    da = dout · g σ(g);                    dg = dout · a · σ(g) (1 + g (1 − σ(g)))
    dbias = Σ [da, dg] over all tokens;    dweight[i, j] = Σ s[y+i−1, x+j−1] · [da, dg][y, x]
    ds[y, x] = Σ_ij [da, dg][y−i+1, x−j+1] · weight[i, j];    dx = ds · σ(x) (1 + x (1 − σ(x)))

Where x is a product plus a bias of its own, that bias' gradient is Σ dx over all tokens: a column sum of a large tensor,
which is at hand here while dx is made. ``inner_bias`` takes it, see ``gated_depthwise``.

Sums are float32 (float64 for float64 tensors), results come in the dtype of what they belong to. Both paths are
deterministic on a given machine. Source: Xie et al. 2024, "SANA", section 2.3 (Mix-FFN); gradients by the chain rule.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from simpletuner.models.sana.kernels import runs_in_triton
from simpletuner.models.sana.layout import as_picture, as_tokens


def _exact(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor in the dtype of the sums: float64 stays, everything else becomes float32."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def _silu_slope(x: torch.Tensor) -> torch.Tensor:
    """The derivative of SiLU at x."""
    sigma = torch.sigmoid(x)
    return sigma * (1 + x * (1 - sigma))


def plain_forward(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """The operation in plain PyTorch.

    Args:
        x: [B, H·W, 2C], any floating dtype.
        weight: [2C, 1, 3, 3].
        bias: [2C].
        height: H in tokens.
        width: W in tokens.

    Returns:
        [B, H·W, C] in the dtype of x.
    """
    with torch.autocast(x.device.type, enabled=False):
        silu = as_picture(F.silu(_exact(x)), (height, width))
        value, gate = F.conv2d(silu, _exact(weight), _exact(bias), padding=1, groups=len(weight)).chunk(2, dim=1)
        return as_tokens(value * F.silu(gate)).to(x.dtype).contiguous()


def plain_backward(
    grad: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, height: int, width: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """The gradients of x, weight, bias and of a bias inside x, in plain PyTorch, by the formulas at the head of this module.

    Args:
        grad: [B, H·W, C], the gradient of the result.
        x: as in the forward pass; so are the rest.
        weight: [2C, 1, 3, 3].
        bias: [2C].
        height: H in tokens.
        width: W in tokens.

    Returns:
        (dx, dweight, dbias, Σ dx over all tokens), each in shape and dtype of its tensor, the last in those of bias.
    """
    with torch.autocast(x.device.type, enabled=False):
        exact, groups = _exact(x), len(weight)
        silu = as_picture(F.silu(exact), (height, width))
        value, gate = F.conv2d(silu, _exact(weight), _exact(bias), padding=1, groups=groups).chunk(2, dim=1)
        out = as_picture(_exact(grad), (height, width))
        both = torch.cat([out * F.silu(gate), out * value * _silu_slope(gate)], dim=1)
        dsilu = F.conv2d(both, _exact(weight).flip(2, 3), padding=1, groups=groups)
        padded = F.pad(silu, (1, 1, 1, 1))
        taps = [(padded[:, :, i : i + height, j : j + width] * both).sum((0, 2, 3)) for i in range(3) for j in range(3)]
        dweight = torch.stack(taps, dim=1).view(weight.shape)
        dx = as_tokens(dsilu) * _silu_slope(exact)
        sums = both.sum((0, 2, 3)).to(bias.dtype), dx.sum((0, 1)).to(bias.dtype)
        return dx.to(x.dtype).contiguous(), dweight.to(weight.dtype), *sums


def _check(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, height: int, width: int) -> None:
    """Raise ValueError where the shapes do not belong together: a kernel would read past the end."""
    if x.dim() != 3 or x.shape[1] != height * width or x.shape[2] % 2:
        raise ValueError(f"x must be [B, {height}·{width}, 2C] tokens; found {list(x.shape)}")
    if list(weight.shape) != [x.shape[2], 1, 3, 3] or list(bias.shape) != [x.shape[2]]:
        raise ValueError(
            f"for {x.shape[2]} channels weight must be [{x.shape[2]}, 1, 3, 3] and bias [{x.shape[2]}]; "
            f"found {list(weight.shape)} and {list(bias.shape)}"
        )


@torch.library.custom_op("simpletuner::gated_depthwise", mutates_args=())
def gated_depthwise(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    height: int,
    width: int,
    inner_bias: torch.Tensor | None = None,
) -> torch.Tensor:
    """SiLU, depthwise 3x3, gate: see the head of this module; Triton for CUDA tensors, the plain twin for others.

    Args:
        x: [B, H·W, 2C].
        weight: [2C, 1, 3, 3].
        bias: [2C].
        height: H in tokens.
        width: W in tokens.
        inner_bias: [2C], a bias that x already contains, added without a gradient (``bias.detach()``). Its value is not
            read here; its gradient, Σ dx over all tokens, is given to it. Adding it with a gradient too would count twice.

    Returns:
        [B, H·W, C] in the dtype of x.

    Raises:
        ValueError: the shapes do not belong together.
    """
    _check(x, weight, bias, height, width)
    if inner_bias is not None and inner_bias.shape != bias.shape:
        raise ValueError(f"inner_bias must be {list(bias.shape)}, as bias is; found {list(inner_bias.shape)}")
    if runs_in_triton(x):
        from simpletuner.models.sana.kernels import depthwise_triton

        return depthwise_triton.forward(x, weight, bias, height, width)
    return plain_forward(x, weight, bias, height, width)


@gated_depthwise.register_fake
def _(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    height: int,
    width: int,
    inner_bias: torch.Tensor | None = None,
) -> torch.Tensor:
    return x.new_empty(x.shape[0], x.shape[1], x.shape[2] // 2)


@torch.library.custom_op("simpletuner::gated_depthwise_backward", mutates_args=())
def gated_depthwise_backward(
    grad: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, height: int, width: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """(dx, dweight, dbias, Σ dx); an operator of its own, so that the compiler keeps it whole too."""
    if runs_in_triton(x):
        from simpletuner.models.sana.kernels import depthwise_triton

        return depthwise_triton.backward(grad, x, weight, bias, height, width)
    return plain_backward(grad, x, weight, bias, height, width)


@gated_depthwise_backward.register_fake
def _(
    grad: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, height: int, width: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    biases = bias.new_empty(bias.shape), bias.new_empty(bias.shape)
    return x.new_empty(x.shape), weight.new_empty(weight.shape), *biases


def _keep(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
    x, weight, bias, ctx.height, ctx.width, inner_bias = inputs
    ctx.inner = None if inner_bias is None else inner_bias.dtype
    ctx.save_for_backward(x, weight, bias)


def _gradients(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
    dx, dweight, dbias, inner = gated_depthwise_backward(grad, *ctx.saved_tensors, ctx.height, ctx.width)
    return dx, dweight, dbias, None, None, None if ctx.inner is None else inner.to(ctx.inner)


gated_depthwise.register_autograd(_gradients, setup_context=_keep)
