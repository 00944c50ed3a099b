"""What stands between the products of a Sana block: residual sums, gates, LayerNorms and their modulation, each in one pass.

In: tokens [B, N, C]; from the time a gate [B, 1, C] or a modulation [B, 2, C] (shift, then scale), rows of a larger table
as they lie there. Out: tokens, with gradients. Dtypes may differ: sums are float32 (float64 for float64 tensors), and a
result has the widest dtype of what it is made of, or that of its tokens where it says so.

    gated:   out = x + gate · y
    norm:    s = x or x + y, rounded to its dtype;  x̂ = (s − mean(s)) / sqrt(var(s) + ε);  n = x̂ (1 + scale) + shift

With the incoming gradients g of out, ds of s and dn of n, and w = dn (1 + scale), r = 1 / sqrt(var + ε):

    gated:   dx = g;  dy = g · gate;  dgate = Σ_N g · y
    norm:    dx = dy = ds + r (w − mean(w) − x̂ mean(w x̂));  dshift = Σ_N dn;  dscale = Σ_N dn · x̂

Where y comes from a linear layer, its bias can be given: it does not enter the result, for the layer has added it (a
detached one), but gets its gradient Σ_{B, N} dy here, where dy is in registers, instead of in a pass of its own. s is kept
for backward with two numbers a token. Where the tokens have two readers (a residual passes by its norm), they are returned
twice, once for each, so that backward has both gradients at once. A gradient that is not wanted is not summed.

Source: Ba et al. 2016, "Layer Normalization"; Peebles and Xie 2022, "DiT" (arXiv 2212.09748), adaLN-Zero; gradients by
the chain rule.
"""

from __future__ import annotations

from typing import Any

import torch

from simpletuner.models.sana.kernels import runs_in_triton, widest_dtype


def _exact(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor in the dtype of the sums: float64 stays, everything else becomes float32."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def absent(tensor: torch.Tensor) -> torch.Tensor:
    """What stands for a result that is not wanted, since an operator cannot return None."""
    return tensor.new_empty(0)


def _like(tensor: torch.Tensor | None, wanted: bool, other: torch.Tensor) -> torch.Tensor:
    """Room for the gradient of `tensor`, on the device of `other`."""
    return tensor.new_empty(tensor.shape) if tensor is not None and wanted else absent(other)


def plain_gated(x: torch.Tensor, y: torch.Tensor, gate: torch.Tensor) -> torch.Tensor:
    """The gated sum in plain PyTorch: [B, N, C] twice and [B, 1, C] → [B, N, C]."""
    return (_exact(x) + _exact(gate) * _exact(y)).to(widest_dtype(x, y, gate)).contiguous()


def plain_gated_backward(
    grad: torch.Tensor,
    other: torch.Tensor | None,
    y: torch.Tensor | None,
    gate: torch.Tensor,
    bias: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """(dx, dy, dgate, dbias) in plain PyTorch; see the head of this module.

    Args:
        grad: [B, N, C], the gradient of the result.
        other: A second one, of its other reader; without it dx is `grad`, and has no elements here.
        y: [B, N, C]; None where dgate is not wanted, which has then no elements.
        gate: [B, 1, C].
        bias: [C], or None: dbias has then no elements.

    Returns:
        Each in shape and dtype of its tensor; dy in the dtype of `grad` where y is not known.
    """
    g = _exact(grad) if other is None else _exact(grad) + _exact(other)
    dx = absent(grad) if other is None else g.to(grad.dtype).contiguous()
    dy = g * _exact(gate)
    dgate = absent(gate) if y is None else (g * _exact(y)).sum(1, keepdim=True).to(gate.dtype)
    dbias = absent(gate) if bias is None else dy.sum((0, 1)).to(bias.dtype)
    return dx, dy.to(grad.dtype if y is None else y.dtype).contiguous(), dgate, dbias


def plain_norm(
    x: torch.Tensor, y: torch.Tensor | None, modulation: torch.Tensor, epsilon: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The norm in plain PyTorch.

    Args:
        x: [B, N, C].
        y: [B, N, C], added before; or None.
        modulation: [B, 2, C]: shift, scale.
        epsilon: Of the LayerNorm.

    Returns:
        s [B, N, C]; n [B, N, C], in the dtype of x where there is no y; mean and 1 / deviation of every token [B, N, 2] in
        the dtype of the sums.
    """
    s = x if y is None else (_exact(x) + _exact(y)).to(widest_dtype(x, y)).contiguous()
    exact = _exact(s)
    mean = exact.mean(-1, keepdim=True)
    r = ((exact - mean).square().mean(-1, keepdim=True) + epsilon).rsqrt()
    shift, scale = _exact(modulation).chunk(2, dim=1)
    n = (exact - mean) * r * (1 + scale) + shift
    return s, n.to(x.dtype if y is None else widest_dtype(s, modulation)).contiguous(), torch.cat([mean, r], dim=-1)


def plain_norm_backward(
    grads: tuple[torch.Tensor, torch.Tensor],
    s: torch.Tensor,
    statistics: torch.Tensor,
    modulation: torch.Tensor,
    bias: torch.Tensor | None,
    summed: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(ds, dmodulation, dbias) in plain PyTorch, each in shape and dtype of its tensor; see the head of this module.

    Args:
        grads: The gradients of s and n, each [B, N, C].
        s: As the forward pass returned it.
        statistics: [B, N, 2], likewise.
        modulation: [B, 2, C].
        bias: [C], or None: dbias has then no elements.
        summed: dmodulation is wanted; else it has no elements.
    """
    mean, r = statistics.split(1, dim=-1)
    normed, dn = (_exact(s) - mean) * r, _exact(grads[1])
    w = dn * (1 + _exact(modulation[:, 1:]))
    d = w - w.mean(-1, keepdim=True) - normed * (w * normed).mean(-1, keepdim=True)
    d = _exact(grads[0]) + r * d
    dmodulation = absent(s)
    if summed:
        dmodulation = torch.stack([dn.sum(1), (dn * normed).sum(1)], dim=1).to(modulation.dtype)
    dbias = absent(s) if bias is None else d.sum((0, 1)).to(bias.dtype)
    return d.to(s.dtype).contiguous(), dmodulation, dbias


def check_shapes(tokens: list[torch.Tensor], table: torch.Tensor, rows: int, bias: torch.Tensor | None) -> None:
    """Raise ValueError where the shapes do not belong together: a kernel would read past the end."""
    batch, _, channels = shape = tokens[0].shape
    if any(other.shape != shape for other in tokens) or table.shape != (batch, rows, channels):
        raise ValueError(
            f"tokens must be [B, N, C], all of one shape, beside [B, {rows}, C] from the time; found "
            f"{', '.join(str(list(t.shape)) for t in (*tokens, table))}"
        )
    if bias is not None and bias.shape != (channels,):
        raise ValueError(f"the bias of {channels} channels must be [{channels}]; found {list(bias.shape)}")


@torch.library.custom_op("simpletuner::gated_add", mutates_args=())
def gated_add_forward(x: torch.Tensor, y: torch.Tensor, gate: torch.Tensor) -> torch.Tensor:
    """Gated sum: see ``plain_gated``; Triton for CUDA tensors, the plain twin for others.

    Raises:
        ValueError: the shapes do not belong together.
    """
    check_shapes([x, y], gate, 1, None)
    if all(runs_in_triton(tensor) for tensor in (x, y, gate)):
        from simpletuner.models.sana.kernels import residual_triton

        return residual_triton.gated(x, y, gate)
    return plain_gated(x, y, gate)


@gated_add_forward.register_fake
def _(x: torch.Tensor, y: torch.Tensor, gate: torch.Tensor) -> torch.Tensor:
    return x.new_empty(x.shape, dtype=widest_dtype(x, y, gate))


@torch.library.custom_op("simpletuner::gated_add_backward", mutates_args=())
def gated_add_backward(
    grad: torch.Tensor,
    other: torch.Tensor | None,
    y: torch.Tensor | None,
    gate: torch.Tensor,
    bias: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """(dx, dy, dgate, dbias): see ``plain_gated_backward``; an operator, so that the compiler keeps it whole too."""
    if runs_in_triton(grad) and runs_in_triton(gate) and (y is None or runs_in_triton(y)):
        from simpletuner.models.sana.kernels import residual_triton

        return residual_triton.gated_backward(grad, other, y, gate, bias)
    return plain_gated_backward(grad, other, y, gate, bias)


@gated_add_backward.register_fake
def _(
    grad: torch.Tensor,
    other: torch.Tensor | None,
    y: torch.Tensor | None,
    gate: torch.Tensor,
    bias: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    dx = absent(grad) if other is None else grad.new_empty(grad.shape)
    dy = torch.empty_like(grad if y is None else y, memory_format=torch.contiguous_format)
    return dx, dy, _like(gate, y is not None, gate), _like(bias, True, gate)


@torch.library.custom_op("simpletuner::modulated_norm", mutates_args=())
def norm_forward(
    x: torch.Tensor, y: torch.Tensor | None, modulation: torch.Tensor, epsilon: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(s, n, statistics): see ``plain_norm``, but that s has no elements where it is x itself.

    Raises:
        ValueError: the shapes do not belong together.
    """
    check_shapes([x] if y is None else [x, y], modulation, 2, None)
    if runs_in_triton(x) and runs_in_triton(modulation) and (y is None or runs_in_triton(y)):
        from simpletuner.models.sana.kernels import residual_triton

        return residual_triton.norm(x, y, modulation, epsilon)
    s, n, statistics = plain_norm(x, y, modulation, epsilon)
    return absent(x) if y is None else s, n, statistics


@norm_forward.register_fake
def _(
    x: torch.Tensor, y: torch.Tensor | None, modulation: torch.Tensor, epsilon: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    s = absent(x) if y is None else x.new_empty(x.shape, dtype=widest_dtype(x, y))
    n = x.new_empty(x.shape, dtype=x.dtype if y is None else widest_dtype(s, modulation))
    exact = torch.float64 if s.dtype == torch.float64 else torch.float32
    return s, n, x.new_empty(*x.shape[:2], 2, dtype=exact)


@torch.library.custom_op("simpletuner::modulated_norm_backward", mutates_args=())
def norm_backward(
    grad_s: torch.Tensor,
    grad_n: torch.Tensor,
    s: torch.Tensor,
    statistics: torch.Tensor,
    modulation: torch.Tensor,
    bias: torch.Tensor | None,
    summed: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(ds, dmodulation, dbias): see ``plain_norm_backward``."""
    if all(runs_in_triton(tensor) for tensor in (grad_s, grad_n, s, modulation)):
        from simpletuner.models.sana.kernels import residual_triton

        return residual_triton.norm_backward((grad_s, grad_n), s, statistics, modulation, bias, summed)
    return plain_norm_backward((grad_s, grad_n), s, statistics, modulation, bias, summed)


@norm_backward.register_fake
def _(
    grad_s: torch.Tensor,
    grad_n: torch.Tensor,
    s: torch.Tensor,
    statistics: torch.Tensor,
    modulation: torch.Tensor,
    bias: torch.Tensor | None,
    summed: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return s.new_empty(s.shape), _like(modulation, summed, s), _like(bias, True, s)


Wanted = tuple[bool, ...]


def wanted_gradients(*tensors: torch.Tensor | None) -> Wanted:
    """Which of them are to get a gradient."""
    return tuple(tensor is not None and tensor.requires_grad for tensor in tensors)


def chosen_gradients(wanted: Wanted, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
    """What autograd is given: None in place of a gradient that is not wanted."""
    return tuple(gradient if asked else None for gradient, asked in zip(gradients, wanted, strict=True))


# Functions of autograd around the operators, which may not themselves return a tensor twice or one that they were given.
class GatedAdd(torch.autograd.Function):
    """``gated_add``, its result twice where `readers` is 2."""

    @staticmethod
    def forward(ctx: Any, x: Any, y: Any, gate: Any, bias: Any, wanted: Wanted, readers: int) -> tuple[Any, ...]:
        """The result of the operator, kept by nobody."""
        ctx.save_for_backward(y if wanted[2] else None, gate, bias if wanted[3] else None)
        ctx.wanted, ctx.dtypes = wanted, (x.dtype, y.dtype)
        out = gated_add_forward(x, y, gate)
        return (out, out.view_as(out)) if readers == 2 else (out,)

    @staticmethod
    def backward(ctx: Any, grad: Any, other: Any = None) -> tuple[Any, ...]:
        """The gradient of x is the incoming one itself, not a copy."""
        dx, dy, dgate, dbias = gated_add_backward(grad, other, *ctx.saved_tensors)
        dx = grad if other is None else dx
        dx, dy = dx.to(ctx.dtypes[0]), dy.to(ctx.dtypes[1])
        return (*chosen_gradients(ctx.wanted, dx, dy, dgate, dbias), None, None)


class Norm(torch.autograd.Function):
    """``norm``."""

    @staticmethod
    def forward(ctx: Any, x: Any, modulation: Any, epsilon: float, wanted: Wanted) -> tuple[Any, Any]:
        """The tokens as they are, and their norm."""
        _, n, statistics = norm_forward(x, None, modulation, epsilon)
        ctx.save_for_backward(x, statistics, modulation)
        ctx.wanted = wanted
        return x.view_as(x), n

    @staticmethod
    def backward(ctx: Any, grad_s: Any, grad_n: Any) -> tuple[Any, ...]:
        """Both gradients in one pass."""
        d, dmodulation, _ = norm_backward(grad_s, grad_n, *ctx.saved_tensors, None, ctx.wanted[1])
        return (*chosen_gradients(ctx.wanted, d, dmodulation), None, None)


class AddNorm(torch.autograd.Function):
    """``add_norm``."""

    @staticmethod
    def forward(
        ctx: Any, x: Any, y: Any, modulation: Any, bias: Any, epsilon: float, wanted: Wanted
    ) -> tuple[Any, Any]:
        """The sum and its norm."""
        s, n, statistics = norm_forward(x, y, modulation, epsilon)
        ctx.save_for_backward(s, statistics, modulation, bias if wanted[3] else None)
        ctx.wanted, ctx.dtypes = wanted, (x.dtype, y.dtype)
        return s, n

    @staticmethod
    def backward(ctx: Any, grad_s: Any, grad_n: Any) -> tuple[Any, ...]:
        """The gradients of x and y are one tensor where their dtypes are one."""
        d, dmodulation, dbias = norm_backward(grad_s, grad_n, *ctx.saved_tensors, ctx.wanted[2])
        dx, dy = (d.to(dtype) for dtype in ctx.dtypes)
        return (*chosen_gradients(ctx.wanted, dx, dy, dmodulation, dbias), None, None)


def gated_add(x: torch.Tensor, y: torch.Tensor, gate: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """The sum x + gate · y, [B, N, C].

    Args:
        x: [B, N, C].
        y: [B, N, C].
        gate: [B, 1, C].
        bias: [C], already in y: it gets the gradient that a bias of y has. None for none.

    Raises:
        ValueError: the shapes do not belong together.
    """
    return _gated_add(x, y, gate, bias, 1)[0]


def gated_add_twice(
    x: torch.Tensor, y: torch.Tensor, gate: torch.Tensor, bias: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """As ``gated_add``, the same tensor for each of two readers, whose gradients the kernel adds."""
    first, second = _gated_add(x, y, gate, bias, 2)
    return first, second


def _gated_add(x: Any, y: Any, gate: Any, bias: Any, readers: int) -> tuple[torch.Tensor, ...]:
    check_shapes([x, y], gate, 1, bias)
    wanted = wanted_gradients(x, y, gate, bias)
    result: tuple[torch.Tensor, ...] = GatedAdd.apply(x, y, gate, bias, wanted, readers)
    return result


def norm(x: torch.Tensor, modulation: torch.Tensor, epsilon: float) -> tuple[torch.Tensor, torch.Tensor]:
    """(x, LayerNorm(x) (1 + scale) + shift), both [B, N, C] in the dtype of x; read x on from here: its gradient is one pass.

    Args:
        x: [B, N, C].
        modulation: [B, 2, C]: shift, scale.
        epsilon: Of the LayerNorm, which has no weights of its own.

    Raises:
        ValueError: the shapes do not belong together.
    """
    check_shapes([x], modulation, 2, None)
    kept, normed = Norm.apply(x, modulation, epsilon, wanted_gradients(x, modulation))
    return kept, normed


def add_norm(
    x: torch.Tensor, y: torch.Tensor, modulation: torch.Tensor, epsilon: float, bias: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """(s, LayerNorm(s) (1 + scale) + shift) of s = x + y, both [B, N, C].

    Args:
        x: [B, N, C].
        y: [B, N, C].
        modulation: [B, 2, C]: shift, scale.
        epsilon: Of the LayerNorm, which has no weights of its own.
        bias: [C], already in y, as in ``gated_add``.

    Raises:
        ValueError: the shapes do not belong together.
    """
    check_shapes([x, y], modulation, 2, bias)
    s, normed = AddNorm.apply(x, y, modulation, bias, epsilon, wanted_gradients(x, y, modulation, bias))
    return s, normed
