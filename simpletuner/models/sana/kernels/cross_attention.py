"""Cross-attention of tokens to text in one operation with its gradients, whatever the length of the text.

In: query [B, N, heads, d], key and value side by side [B, n, 2, heads, d], bias [B, n] added to every score (0 at real
tokens, very negative at padding). Out: [B, N, heads, d]. On a GPU the Triton kernels of ``cross_attention_triton.py``
do the operation, or PyTorch's own memory-efficient attention where Triton is missing, the GPU is older or heads are
wider. It is one operator, because the compiler then need not know the length of the text, which differs from batch to
batch; no score matrix [N, n] is ever written to memory.

    p = softmax(q kᵀ / sqrt(d) + bias);  out = p v;  with dp = dout vᵀ:  ds = p (dp − Σ dout · out)

Every way counts the bias from the greatest of its picture: softmax does not see it, but where all keys are masked a sum
with -10000 would cost the scores their digits.

Source: Vaswani et al. 2017, eq. 1; gradients as in Dao et al. 2022, "FlashAttention", appendix B.4.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from simpletuner.models.sana.kernels import runs_in_triton

ALIGNMENT = 16  # PyTorch's kernel reads the bias in pieces of this many
LSE_ALIGNMENT = 32  # and keeps one number a query, rounded up to this


def _exact(tensor: torch.Tensor) -> torch.Tensor:
    """[B, n, heads, d] → [B, heads, n, d] in the dtype of the sums: float64 stays, everything else becomes float32."""
    return (tensor if tensor.dtype == torch.float64 else tensor.float()).transpose(1, 2)


def _counted(bias: torch.Tensor) -> torch.Tensor:
    """[B, n], counted from the greatest of its picture."""
    return bias - bias.amax(1, keepdim=True)


def plain_forward(
    query: torch.Tensor, key_value: torch.Tensor, bias: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The operation in plain PyTorch.

    Args:
        query: [B, N, heads, d], any floating dtype.
        key_value: [B, n, 2, heads, d].
        bias: [B, n].

    Returns:
        Output [B, N, heads, d] in the dtype of query; log Σ exp of the scores [B, heads, N] float32, the bias counted
        from its greatest.
    """
    key, value = key_value.unbind(2)
    with torch.autocast(query.device.type, enabled=False):
        scores = _exact(query) @ _exact(key).transpose(2, 3) * query.shape[-1] ** -0.5
        scores = scores + _counted(bias.to(scores.dtype))[:, None, None]
        out = scores.softmax(-1) @ _exact(value)
        return out.transpose(1, 2).to(query.dtype).contiguous(), scores.logsumexp(-1).float()


def plain_backward(
    grad: torch.Tensor, query: torch.Tensor, key_value: torch.Tensor, bias: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """(dquery, dkey_value), by the formulas at the head of this module; arguments as in the forward pass."""
    key, value = key_value.unbind(2)
    with torch.autocast(query.device.type, enabled=False):
        q, k, v, g = _exact(query), _exact(key), _exact(value), _exact(grad)
        scale = query.shape[-1] ** -0.5
        p = (q @ k.transpose(2, 3) * scale + _counted(bias.to(q.dtype))[:, None, None]).softmax(-1)
        dp = g @ v.transpose(2, 3)
        ds = p * (dp - (dp * p).sum(-1, keepdim=True)) * scale
        parts = torch.stack([ds.transpose(2, 3) @ q, p.transpose(2, 3) @ g], dim=2)  # [B, heads, 2, n, d]
        dquery = (ds @ k).transpose(1, 2)
        return dquery.to(query.dtype).contiguous(), parts.permute(0, 3, 2, 1, 4).to(key_value.dtype).contiguous()


def _bias_for(query: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """[B, n] → [B, heads, N, n] in the dtype of query, one row of memory for each picture, rows aligned."""
    count = bias.shape[1]
    padded = F.pad(_counted(bias.float()).to(query.dtype), (0, -count % ALIGNMENT))[:, None, None, :count]
    return padded.expand(len(query), query.shape[2], query.shape[1], count)


def library_forward(
    query: torch.Tensor, key_value: torch.Tensor, bias: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """As ``plain_forward``, by PyTorch's memory-efficient kernel."""
    key, value = key_value.unbind(2)
    out, lse, _, _ = torch.ops.aten._scaled_dot_product_efficient_attention(
        *(x.transpose(1, 2) for x in (query, key, value)), _bias_for(query, bias), True
    )
    return out.transpose(1, 2).contiguous(), lse[:, :, : query.shape[1]].contiguous()


def library_backward(
    grad: torch.Tensor,
    query: torch.Tensor,
    key_value: torch.Tensor,
    bias: torch.Tensor,
    out: torch.Tensor,
    lse: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """As ``plain_backward``, by the same kernel; `out` and `lse` are what the forward pass returned."""
    key, value = key_value.unbind(2)
    padded = F.pad(lse, (0, -lse.shape[2] % LSE_ALIGNMENT), value=float("inf"))
    seed = torch.empty((), dtype=torch.int64, device=query.device)  # of a dropout that there is not
    dq, dk, dv, _ = torch.ops.aten._scaled_dot_product_efficient_attention_backward(
        *(x.transpose(1, 2) for x in (grad.contiguous(), query, key, value)),
        *(_bias_for(query, bias), out.transpose(1, 2), padded, seed, seed, 0.0, [True, True, True, False]),
    )
    return dq.transpose(1, 2).contiguous(), torch.stack([dk.transpose(1, 2), dv.transpose(1, 2)], dim=2)


def _library_takes(query: torch.Tensor) -> bool:
    """Whether PyTorch has its kernel for this tensor; float64 and other devices take the plain way."""
    return query.is_cuda and query.dtype in (torch.float32, torch.bfloat16, torch.float16) and query.shape[-1] % 8 == 0


def _check(query: torch.Tensor, key_value: torch.Tensor, bias: torch.Tensor) -> None:
    """Raise ValueError where the shapes do not belong together."""
    batch, _, heads, width = query.shape
    if key_value.shape[:1] + key_value.shape[2:] != (batch, 2, heads, width) or bias.shape != key_value.shape[:2]:
        raise ValueError(
            f"for a query {list(query.shape)} key and value must be [{batch}, n, 2, {heads}, {width}] and the bias "
            f"[{batch}, n]; found {list(key_value.shape)} and {list(bias.shape)}"
        )


@torch.library.custom_op("simpletuner::cross_attention", mutates_args=())
def cross_attention_with_sums(
    query: torch.Tensor, key_value: torch.Tensor, bias: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """(output, log sums): see ``plain_forward``.

    Raises:
        ValueError: the shapes do not belong together.
    """
    _check(query, key_value, bias)
    if runs_in_triton(query):
        from simpletuner.models.sana.kernels import cross_attention_triton

        if cross_attention_triton.takes(query, key_value):
            return cross_attention_triton.forward(query, key_value, bias)
    if not _library_takes(query):
        return plain_forward(query, key_value, bias)
    return library_forward(query, key_value, bias)


@cross_attention_with_sums.register_fake
def _(query: torch.Tensor, key_value: torch.Tensor, bias: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    batch, tokens, heads, _ = query.shape
    return query.new_empty(query.shape), query.new_empty(batch, heads, tokens, dtype=torch.float32)


@torch.library.custom_op("simpletuner::cross_attention_backward", mutates_args=())
def cross_attention_backward(
    grad: torch.Tensor,
    query: torch.Tensor,
    key_value: torch.Tensor,
    bias: torch.Tensor,
    out: torch.Tensor,
    lse: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(dquery, dkey_value); an operator of its own, so that the compiler keeps it whole too."""
    if runs_in_triton(query):
        from simpletuner.models.sana.kernels import cross_attention_triton

        if cross_attention_triton.takes(query, key_value):
            return cross_attention_triton.backward(grad, query, key_value, bias, out, lse)
    if not _library_takes(query):
        return plain_backward(grad, query, key_value, bias)
    return library_backward(grad, query, key_value, bias, out, lse)


@cross_attention_backward.register_fake
def _(
    grad: torch.Tensor,
    query: torch.Tensor,
    key_value: torch.Tensor,
    bias: torch.Tensor,
    out: torch.Tensor,
    lse: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    return query.new_empty(query.shape), key_value.new_empty(key_value.shape)


def _keep(ctx: Any, inputs: tuple[torch.Tensor, ...], output: tuple[torch.Tensor, torch.Tensor]) -> None:
    ctx.save_for_backward(*inputs, *output)
    ctx.mark_non_differentiable(output[1])


def _gradients(ctx: Any, grad: torch.Tensor, _: torch.Tensor | None) -> tuple[torch.Tensor | None, ...]:
    return (*cross_attention_backward(grad, *ctx.saved_tensors), None)


cross_attention_with_sums.register_autograd(_gradients, setup_context=_keep)


def cross_attention(query: torch.Tensor, key_value: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """Softmax attention of every head, [B, N, heads, d] over [B, n, 2, heads, d] → [B, N, heads, d].

    Args:
        query: [B, N, heads, d].
        key_value: [B, n, 2, heads, d]: keys, then values.
        bias: [B, n], added to the scores; it gets no gradient.

    Raises:
        ValueError: the shapes do not belong together.
    """
    return cross_attention_with_sums(query, key_value, bias)[0]
