"""The hand-written operations of a Sana block for ``operations.py``: each with the ordinary ways of making the same sums."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import residual_operations
import torch
import torch.nn.functional as F

from simpletuner.models.sana.kernels import cross_attention, depthwise, linear_attention

HEIGHT, WIDTH, CHANNELS, HEADS, HEAD = 32, 32, 5600, 70, 32  # of Sana 1.6B at 1024 px
CROSS_HEADS, CROSS_HEAD, KEYS, SHORTEST, LONGEST = 20, 112, 256, 75, 225
MODEL = HEADS * HEAD  # channels of the residual stream

Operation = Callable[..., Any]  # of one tensor or of several, all of one shape


class Subject(NamedTuple):
    """One operation: the shapes of its inputs and output, its ways, and the values moved, forward and with backward."""

    name: str
    shapes: list[tuple[int, ...]]
    out: tuple[int, ...]
    ways: dict[str, Operation]
    exact: Operation
    moved: tuple[int, int]


def cudnn_middle(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """As diffusers does: a convolution of the library over channels-last views."""
    picture = F.silu(x).unflatten(1, (height, width)).permute(0, 3, 1, 2)
    value, gate = F.conv2d(picture, weight, bias, padding=1, groups=len(weight)).chunk(2, dim=1)
    return (value * F.silu(gate)).permute(0, 2, 3, 1).flatten(1, 2)


def diffusers_attention(qkv: torch.Tensor) -> torch.Tensor:
    """As diffusers does: float32 copies in its layouts, a row of ones that sums the keys."""
    query, key, value = (part.permute(0, 2, 3, 1) for part in qkv.unbind(2))
    query, key = F.relu(query).float(), F.relu(key.transpose(2, 3)).float()
    both = (F.pad(value.float(), (0, 0, 0, 1), value=1.0) @ key) @ query
    return (both[:, :, :-1] / (both[:, :, -1:] + 1e-15)).permute(0, 3, 1, 2).to(qkv.dtype)


def twin_attention(qkv: torch.Tensor) -> torch.Tensor:
    """The plain twin of the package, differentiated by torch."""
    return linear_attention.plain_forward(qkv)[0]


def depthwise_subject(batch: int, height: int, width: int, channels: int, compiled: bool) -> Subject:
    def at(function: Operation) -> Operation:
        return lambda *tensors: function(*tensors, height, width)

    ways = {"cuDNN, eager": at(cudnn_middle)}
    if compiled:
        ways["cuDNN, compiled"] = torch.compile(at(cudnn_middle), dynamic=False)
        ways["twin, compiled"] = torch.compile(at(depthwise.plain_forward), dynamic=False)
    ways["triton" if compiled else "twin"] = at(depthwise.gated_depthwise)
    tokens = batch * height * width
    shapes = [(batch, height * width, 2 * channels), (2 * channels, 1, 3, 3), (2 * channels,)]
    moved = (3 * tokens * channels, 14 * tokens * channels)
    return Subject(
        "SiLU, depthwise 3x3, gate", shapes, (batch, height * width, channels), ways, at(cudnn_middle), moved
    )


def attention_subject(batch: int, tokens: int, heads: int, width: int, compiled: bool) -> Subject:
    ways = {"diffusers, eager": diffusers_attention}
    if compiled:
        ways["diffusers, compiled"] = torch.compile(diffusers_attention, dynamic=False)
        ways["twin, compiled"] = torch.compile(twin_attention, dynamic=False)
    ways["triton" if compiled else "twin"] = linear_attention.linear_attention
    values = batch * tokens * heads * width
    shape, out = (batch, tokens, 3, heads, width), (batch, tokens, heads, width)
    return Subject("linear attention", [shape], out, ways, diffusers_attention, (4 * values, 11 * values))


def masked_sdpa(query: torch.Tensor, key_value: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """As diffusers does."""
    query, key, value = (part.transpose(1, 2) for part in (query, *key_value.unbind(2)))
    return F.scaled_dot_product_attention(query, key, value, bias[:, None, None].to(query.dtype)).transpose(1, 2)


def cudnn_sdpa(query: torch.Tensor, key_value: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """The same through cuDNN, which wants the bias of every query written out."""
    query, key, value = (part.transpose(1, 2) for part in (query, *key_value.unbind(2)))
    mask = bias[:, None, None].to(query.dtype).expand(-1, 1, query.shape[2], -1).contiguous()
    return torch.ops.aten._scaled_dot_product_cudnn_attention(query, key, value, mask, True)[0].transpose(1, 2)


class PyTorchsKernel(torch.autograd.Function):
    """The package's operation by PyTorch's memory-efficient kernel, as where Triton is missing."""

    @staticmethod
    def forward(ctx: Any, *given: torch.Tensor) -> torch.Tensor:
        out, lse = cross_attention.library_forward(*given)
        ctx.save_for_backward(*given, out, lse)
        return out

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        return (*cross_attention.library_backward(grad, *ctx.saved_tensors), None)


def cross_subject(batch: int, tokens: int, heads: int, width: int, keys: int, compiled: bool) -> Subject:
    lengths = torch.linspace(SHORTEST, LONGEST, batch + 2)[1:-1].round()[:, None] * keys / KEYS
    bias = torch.where(torch.arange(keys)[None] < lengths, 0.0, -10000.0)
    bias = bias.to("cuda", torch.bfloat16) if compiled else bias

    def at(function: Operation) -> Operation:
        return lambda query, key_value: function(query, key_value, bias.to(query.dtype))

    ways = {"SDPA with a mask": at(masked_sdpa)}
    if compiled:
        ways |= {"SDPA of cuDNN": at(cudnn_sdpa), "PyTorch's kernel": at(PyTorchsKernel.apply)}
    ways["triton" if compiled else "twin"] = at(cross_attention.cross_attention)
    values = batch * tokens * heads * width
    shapes, out = [(batch, tokens, heads, width), (batch, keys, 2, heads, width)], (batch, tokens, heads, width)
    return Subject("cross-attention", shapes, out, ways, at(masked_sdpa), (2 * values, 8 * values))


def residual_subject(name: str, batch: int, tokens: int, channels: int, compiled: bool) -> Subject:
    rows, summands, biased, chain, operation, passes = residual_operations.OPERATIONS[name]
    ways: dict[str, Operation] = {"chain, eager": chain}
    if compiled:
        ways["chain, compiled"] = torch.compile(chain, dynamic=False)
        ways |= residual_operations.OTHER_WAYS.get(name, {})
    ways["triton" if compiled else "twin"] = operation
    out = (batch, tokens, channels)
    shapes = [*([out] * summands), (batch, rows, channels), *([(channels,)] if biased else [])]
    values = batch * tokens * channels
    return Subject(name, shapes, out, ways, chain, (passes[0] * values, passes[1] * values))
