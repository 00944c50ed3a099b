"""A transformer block in training: diffusers' parameters, sums and names, in an order that costs less memory traffic.

In: a block's layers and tensors. Out: what the block makes of them; ``block_forward`` puts this in the place of diffusers'
forward. Tokens stay [B, N, C] throughout: 1x1 convolutions are matrix products over tokens, and only the depthwise one sees
a picture, as a channels-last view.

A layer that somebody has taken hold of (PEFT, LyCORIS, a quantiser, a hook) is called as a module, so adapters act as they
would in diffusers' forward; a plain one gives its weight to the product.

Source: Xie et al. 2024, "SANA" (arXiv 2410.10629), section 2; arithmetic of diffusers' ``SanaTransformerBlock``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from simpletuner.models.linears import Pointwise
from simpletuner.models.sana import joined, stream
from simpletuner.models.sana.attention import EPSILON
from simpletuner.models.sana.kernels import cross_attention as cross_attention_kernel
from simpletuner.models.sana.kernels import depthwise as depthwise_kernel
from simpletuner.models.sana.kernels import linear_attention as linear_attention_kernel
from simpletuner.models.sana.kernels import widest_dtype
from simpletuner.models.sana.layout import as_picture, as_tokens


@dataclass(frozen=True, slots=True)
class Ways:
    """Which kernels make the same sums; measured, so by kind of device.

    Attributes:
        products: 1x1 convolutions are matrix products over tokens; False leaves them to the convolution library.
        joined: Linear layers over the same tokens are one product; where all are trained their weights are laid together.
        kernels: The operations of ``sana.kernels`` in place of chains of PyTorch's; where a layer is not plain, the chain.
    """

    products: bool
    joined: bool
    kernels: bool = False


# CPU: oneDNN's 1x1 convolutions are quicker than the products (270 against 320 ms a step of the pocket model on one thread), and
# joining changes nothing. Elsewhere: bench/step.py compares.
CPU, ACCELERATOR = Ways(products=False, joined=False), Ways(products=True, joined=True)
KERNELS = Ways(products=True, joined=True, kernels=True)

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def untouched(module: nn.Module) -> bool:
    """Whether calling a module runs its class' forward and nothing else."""
    held = vars(module)
    return "forward" not in held and not any(held.get(name) for name in _HOOKS)


def is_plain(layer: nn.Module, kind: type[nn.Module]) -> bool:
    """Whether a layer is just its weight and bias, so that a product may take them."""
    return type(layer) is kind and untouched(layer) and "weight" in layer._parameters


def pointwise(layer: nn.Module, tokens: torch.Tensor, grid: tuple[int, int], ways: Ways) -> torch.Tensor:
    """A 1x1 convolution over tokens, however it is held: [B, N, I] → [B, N, O], N the cells of the grid (rows, columns)."""
    if isinstance(layer, nn.Conv2d) and ways.products and is_plain(layer, nn.Conv2d):
        return F.linear(tokens, layer.weight.flatten(1), layer.bias)
    if type(layer) is Pointwise and untouched(layer):
        result: torch.Tensor = layer.pointwise(tokens)
        return result
    return as_tokens(layer(as_picture(tokens, grid)))


def with_inner_bias(
    layer: nn.Module, tokens: torch.Tensor, grid: tuple[int, int], ways: Ways
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """``pointwise``, and the layer's bias where what comes next must make its gradient (None where that is done here).

    So it is for a plain layer whose bias is trained: the bias is added without a gradient.
    """
    linear: Any = layer.pointwise if type(layer) is Pointwise and untouched(layer) else layer
    bias = linear._parameters.get("bias") if is_plain(linear, nn.Conv2d) or is_plain(linear, nn.Linear) else None
    if bias is None or not bias.requires_grad:
        return pointwise(layer, tokens, grid, ways), None
    return F.linear(tokens, linear.weight.flatten(1), bias.detach()), bias


def projections(layers: tuple[Any, ...], tokens: torch.Tensor, ways: Ways) -> tuple[torch.Tensor, ...]:
    """Several linear layers of equal shape over the same tokens, each [B, N, I] → [B, N, O]."""
    if not (ways.joined and all(is_plain(layer, nn.Linear) for layer in layers)):
        return tuple(layer(tokens) for layer in layers)
    return side_by_side(layers, tokens).chunk(len(layers), dim=-1)


def side_by_side(layers: tuple[Any, ...], tokens: torch.Tensor) -> torch.Tensor:
    """Plain linear layers over the same tokens as one product: [B, N, I] → [B, N, layers * O]."""
    weights = [layer.weight for layer in layers]
    biases = [] if layers[0].bias is None else [layer.bias for layer in layers]
    same = all(tensor.dtype == tokens.dtype and tensor.requires_grad for tensor in (*weights, *biases))
    if same and tokens.requires_grad and not torch.is_autocast_enabled(tokens.device.type):
        return joined.joined_linear(tokens, weights, biases)
    return F.linear(tokens, torch.cat(weights), torch.cat(biases) if biases else None)


def packed(
    layers: tuple[Any, ...], norms: tuple[Any, ...], tokens: torch.Tensor, count: int, ways: Ways
) -> torch.Tensor:
    """Projections of the same tokens, each normed or not, as the kernels take them: [B, N, I] → [B, N, layers, count, d]."""
    if not any(norms) and ways.joined and all(is_plain(layer, nn.Linear) for layer in layers):
        return side_by_side(layers, tokens).unflatten(-1, (len(layers), count, -1))
    parts = [normed(norm, part) for norm, part in zip(norms, projections(layers, tokens, ways), strict=True)]
    return torch.stack(parts, dim=2).unflatten(-1, (count, -1))


def heads(tokens: torch.Tensor, count: int) -> torch.Tensor:
    """[B, N, count * d] → [B, count, N, d], a view."""
    return tokens.unflatten(-1, (count, -1)).transpose(1, 2)


def in_one_dtype(*tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """What a kernel takes together: in autocast's dtype, as it does for attention and convolutions, else in the widest.

    A quantised layer gives what it was given, so a query can be float32 beside a bf16 key.
    """
    kind = tensors[0].device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else widest_dtype(*tensors)
    return tuple(t.to(dtype) for t in tensors)


def normed(norm: Any, tokens: torch.Tensor) -> torch.Tensor:
    """A q/k norm over all heads together, where the model has one (SANA 1.5)."""
    result: torch.Tensor = tokens if norm is None else norm(tokens)
    return result


def linear_attention(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """ReLU linear attention over tokens in float32, whatever autocast says, as two batched products.

    Args:
        query: [B, heads, N, d].
        key: [B, heads, N, d].
        value: [B, heads, N, d].

    Returns:
        [B, heads, N, d] float32: Q (KᵀV) / Q (Kᵀ1), with ReLU applied to Q and K.

    Source: as ``attention.linear_attention``, which keeps diffusers' order of sums.
    """
    with torch.autocast(query.device.type, enabled=False):
        query, key = F.relu(query).float(), F.relu(key).float()
        value = F.pad(value.float(), (0, 1), value=1.0)  # a column of ones sums the keys
        summed = torch.matmul(query, torch.matmul(key.transpose(2, 3), value))
        return summed[..., :-1] / (summed[..., -1:] + EPSILON)


def self_attention(attn: Any, tokens: torch.Tensor, ways: Ways) -> torch.Tensor:
    """[B, N, C] → [B, N, C]."""
    layers, norms = (attn.to_q, attn.to_k, attn.to_v), (attn.norm_q, attn.norm_k, None)
    if ways.kernels:
        (joined,) = in_one_dtype(packed(layers, norms, tokens, attn.heads, ways))
        result = linear_attention_kernel.linear_attention(joined).flatten(2)
    else:
        parts = (normed(n, part) for n, part in zip(norms, projections(layers, tokens, ways), strict=True))
        result = linear_attention(*(heads(part, attn.heads) for part in parts)).transpose(1, 2).flatten(2)
    result = project_out(attn, result.to(tokens.dtype), ways)
    if result.dtype == torch.float16:
        limit = torch.finfo(torch.float16).max
        result = result.clip(-limit, limit)
    return result


def cross_attention(
    attn: Any, tokens: torch.Tensor, text: torch.Tensor, bias: torch.Tensor | None, ways: Ways
) -> torch.Tensor:
    """Tokens look at the text.

    Args:
        attn: diffusers' ``Attention``.
        tokens: [B, N, C].
        text: [B, n, C], trimmed to the longest caption of the batch.
        bias: [B, 1, n], 0 at real tokens and -10000 at padding; None where nothing is padded.
        ways: Of making the products.

    Returns:
        [B, N, C].
    """
    query = normed(attn.norm_q, attn.to_q(tokens))
    if ways.kernels:
        key_value = packed((attn.to_k, attn.to_v), (attn.norm_k, None), text, attn.heads, ways)
        scores = text.new_zeros(text.shape[:2]) if bias is None else bias[:, 0]
        query, key_value = in_one_dtype(query.unflatten(-1, (attn.heads, -1)), key_value)
        result = cross_attention_kernel.cross_attention(query, key_value, scores)
        return project_out(attn, result.flatten(2).to(query.dtype), ways)
    key, value = projections((attn.to_k, attn.to_v), text, ways)
    query, key, value = (heads(x, attn.heads) for x in (query, normed(attn.norm_k, key), value))
    mask = None if bias is None else bias[:, None]
    result = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
    return project_out(attn, result.transpose(1, 2).flatten(2).to(query.dtype), ways)


def lent_bias(attn: Any, ways: Ways) -> torch.Tensor | None:
    """The bias of an attention's output, where the operation that takes the output makes its gradient; else None.

    Between the two there must be nothing: no adapter, no dropout, and not the clipping of float16.
    """
    layer, dropout = attn.to_out
    if not (ways.kernels and is_plain(layer, nn.Linear) and layer.bias is not None and untouched(dropout)):
        return None
    kind = layer.weight.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else layer.weight.dtype
    idle = type(dropout) is nn.Dropout and (dropout.p == 0 or not dropout.training)
    bias: torch.Tensor = layer.bias
    return bias if idle and dtype != torch.float16 else None


def project_out(attn: Any, tokens: torch.Tensor, ways: Ways) -> torch.Tensor:
    """The output layer of an attention and its dropout."""
    bias = lent_bias(attn, ways)
    if bias is not None:
        return F.linear(tokens, attn.to_out[0].weight, bias.detach())
    result: torch.Tensor = attn.to_out[1](attn.to_out[0](tokens))
    return result


def feed_forward(ff: Any, tokens: torch.Tensor, grid: tuple[int, int], ways: Ways) -> torch.Tensor:
    """GLUMBConv: 1x1 up, depthwise 3x3, gate, 1x1 down. [B, N, C] → [B, N, C], N the cells of the grid."""
    depth = ff.conv_depth
    if ways.kernels and is_plain(depth, nn.Conv2d):
        wide, inner_bias = with_inner_bias(ff.conv_inverted, tokens, grid, ways)
        (wide,) = in_one_dtype(wide)
        middle = depthwise_kernel.gated_depthwise(wide, depth.weight, depth.bias, *grid, inner_bias)
    else:
        wide = pointwise(ff.conv_inverted, tokens, grid, ways)
        value, gate = as_tokens(depth(as_picture(F.silu(wide), grid))).chunk(2, dim=-1)
        middle = value * F.silu(gate)
    return pointwise(ff.conv_point, middle, grid, ways)


def is_bare(norm: nn.Module) -> bool:
    """Whether a norm is a LayerNorm without weights, which the kernels know."""
    return is_plain(norm, nn.LayerNorm) and norm.weight is None and norm.bias is None


def run_block(
    block: Any,
    at: stream.Between,
    text: torch.Tensor,
    bias: torch.Tensor | None,
    grid: tuple[int, int],
    ways: Ways,
) -> tuple[torch.Tensor, torch.Tensor]:
    """One block from its first norm to its last product, a function of its layers and the tensors.

    Args:
        block: diffusers' ``SanaTransformerBlock``.
        at: Tokens and what time says.
        text: [B, n, C].
        bias: [B, 1, n], 0 at real tokens and -10000 at padding, or None.
        grid: Rows and columns of tokens.
        ways: Of making the products.

    Returns:
        Tokens [B, N, C], and what the feed-forward made of them, still to be gated and added.
    """
    found = self_attention(block.attn1, at.inside, ways)
    tokens, asking = stream.gated(at.tokens, found, at.gate, lent_bias(block.attn1, ways), ways.kernels)
    found = cross_attention(block.attn2, asking, text, bias, ways)
    lent, bare = lent_bias(block.attn2, ways), ways.kernels and is_bare(block.norm2)
    tokens, inside = stream.added_and_normed(block.norm2, tokens, found, at.modulation_ff, lent, bare)
    return tokens, feed_forward(block.ff, inside, grid, ways)
