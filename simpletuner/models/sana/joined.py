"""Linear layers over the same tokens as one product, without putting their weights together in every step.

The weights are laid side by side once, each parameter a view of one stretch of memory; parameters stay what they are for
everybody else (optimizers write in place, files hold each by its name). Whether they still lie so is looked at in every
call, at run time, by the operation itself: a model moved to another device has them apart, and they are then put together
as before. It is a torch custom operator, because a compiler that knows no aliases cannot take the view.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F

ALIGNMENT = 16  # bytes: what kernels with wide loads want of the beginning of a tensor


def lie_together(tensors: Sequence[torch.Tensor]) -> bool:
    """Whether each begins where the one before it ends, in one storage."""
    if not all(t.is_contiguous() and t.shape[1:] == tensors[0].shape[1:] for t in tensors):
        return False
    storage = tensors[0].untyped_storage().data_ptr()
    return all(
        b.dtype == a.dtype and b.untyped_storage().data_ptr() == storage and b.data_ptr() == a.data_ptr() + a.nbytes
        for a, b in itertools.pairwise(tensors)
    )


@torch.no_grad()
def lay_together(parameters: Sequence[torch.nn.Parameter]) -> bool:
    """Give parameters one stretch of memory, in this order and with the numbers they have; False if they cannot lie so."""
    kinds = {(p.dtype, p.device, p.shape[1:], p.is_contiguous()) for p in parameters}
    ordinary = all(type(p) is torch.nn.Parameter and p.nbytes and p.nbytes % ALIGNMENT == 0 for p in parameters)
    if len(kinds) > 1 or not ordinary or parameters[0].device.type == "meta" or not parameters[0].is_contiguous():
        return False
    if not lie_together(parameters):
        parts = torch.cat([p.detach() for p in parameters]).split([len(p) for p in parameters])
        for parameter, part in zip(parameters, parts, strict=True):
            parameter.data = part
    return True


def _whole(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """All of them, one below the other: the memory they lie in, or a copy where they lie apart."""
    if not lie_together(tensors):
        return torch.cat(list(tensors))
    first = tensors[0]
    return first.as_strided((sum(len(t) for t in tensors), *first.shape[1:]), first.stride())


@torch.library.custom_op("simpletuner::joined_linear", mutates_args=())
def joined_linear(
    tokens: torch.Tensor, weights: Sequence[torch.Tensor], biases: Sequence[torch.Tensor]
) -> torch.Tensor:
    """Linear layers over the same tokens.

    Args:
        tokens: [..., I], of the dtype of the weights.
        weights: Each [O, I]; O may differ.
        biases: Each [O]; none at all where the layers have none.

    Returns:
        [..., all O one after the other].
    """
    return F.linear(tokens, _whole(weights), _whole(biases) if biases else None)


@joined_linear.register_fake
def _(tokens: torch.Tensor, weights: Sequence[torch.Tensor], biases: Sequence[torch.Tensor]) -> torch.Tensor:
    return tokens.new_empty(*tokens.shape[:-1], sum(weight.shape[0] for weight in weights))


@torch.library.custom_op("simpletuner::joined_linear_backward", mutates_args=())
def joined_linear_backward(
    grad: torch.Tensor, tokens: torch.Tensor, weights: Sequence[torch.Tensor], biased: bool
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(dtokens, dweight [all O, I], dbias [all O], or [0] without biases)."""
    rows = grad.reshape(-1, grad.shape[-1])
    dtokens = (rows @ _whole(weights)).view(tokens.shape)
    dbias = rows.sum(0) if biased else grad.new_empty(0)
    return dtokens, rows.t() @ tokens.reshape(-1, tokens.shape[-1]), dbias


@joined_linear_backward.register_fake
def _(
    grad: torch.Tensor, tokens: torch.Tensor, weights: Sequence[torch.Tensor], biased: bool
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    width = grad.shape[-1]
    dweight = grad.new_empty(width, tokens.shape[-1])
    return tokens.new_empty(tokens.shape), dweight, grad.new_empty(width if biased else 0)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
    tokens, weights, biases = inputs
    ctx.biased, ctx.widths = bool(biases), [weight.shape[0] for weight in weights]
    ctx.save_for_backward(tokens, *weights)


def _gradients(ctx: Any, grad: torch.Tensor) -> tuple[Any, ...]:
    tokens, *weights = ctx.saved_tensors
    dtokens, dweight, dbias = joined_linear_backward(grad, tokens, weights, ctx.biased)
    dbiases = list(dbias.split(ctx.widths)) if ctx.biased else []
    return dtokens, list(dweight.split(ctx.widths)), dbiases


joined_linear.register_autograd(_gradients, setup_context=_keep)
