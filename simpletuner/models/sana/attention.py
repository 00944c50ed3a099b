"""Sana's linear attention with its sums kept in float32, also under autocast.

diffusers' own processor converts query, key and value to float32, but an autocast region turns the two products back to
half precision; with 1024 tokens they overflow float16 and lose three digits in bfloat16.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

EPSILON = 1e-15


def linear_attention(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """ReLU linear attention, float32 whatever autocast says.

    Args:
        query: [B, heads, d, N].
        key: [B, heads, N, d].
        value: [B, heads, d, N].

    Returns:
        [B, heads, d, N] float32: V K^T Q / (1 K^T Q), with ReLU applied to Q and K.

    Source: Xie et al. 2024, "SANA", section 2.2; arithmetic in the order of diffusers' SanaLinearAttnProcessor2_0, so
    that float32 results are equal to the last bit.
    """
    with torch.autocast(query.device.type, enabled=False):
        query, key = F.relu(query).float(), F.relu(key).float()
        value = F.pad(value.float(), (0, 0, 0, 1), value=1.0)  # a row of ones sums the keys
        summed = torch.matmul(torch.matmul(value, key), query)
        return summed[:, :, :-1] / (summed[:, :, -1:] + EPSILON)


class LinearAttention:
    """An attention processor for diffusers' ``Attention``; self-attention only, no mask."""

    def __call__(self, attn: Any, hidden_states: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
        """[B, N, C] → [B, N, C] in the dtype it came in."""
        query, key, value = attn.to_q(hidden_states), attn.to_k(hidden_states), attn.to_v(hidden_states)
        query = query if attn.norm_q is None else attn.norm_q(query)
        key = key if attn.norm_k is None else attn.norm_k(key)
        query, key, value = (x.transpose(1, 2).unflatten(1, (attn.heads, -1)) for x in (query, key, value))
        result = linear_attention(query, key.transpose(2, 3), value)
        result = attn.to_out[0](result.flatten(1, 2).transpose(1, 2).to(hidden_states.dtype))
        result = attn.to_out[1](result)
        if result.dtype == torch.float16:
            limit = torch.finfo(torch.float16).max
            result = result.clip(-limit, limit)
        return result


def use_float32_sums(transformer: Any) -> None:
    """Give every self-attention of a SanaTransformer2DModel this processor; weights and state-dict keys stay."""
    for block in transformer.transformer_blocks:
        block.attn1.processor = LinearAttention()
