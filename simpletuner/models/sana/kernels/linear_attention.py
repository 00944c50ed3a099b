"""ReLU linear attention on tokens, with float32 sums and its gradients, in two phases.

In: qkv [B, N, 3, heads, d], as one linear for query, key and value leaves it. Out: [B, N, heads, d]. For each picture
and head, with q = relu(query), k = relu(key), v = value of token n as rows:

    state:   K = Σ_n kₙᵀ vₙ  [d, d];   z = Σ_n kₙ  [d]
    output:  yₙ = (qₙ K) / (qₙ·z + ε)

Only qkv and the state ([B, heads, d + 1, d] float32: K, and z as the last row) are kept for backward. With gₙ the
incoming gradient, rₙ = 1 / (qₙ·z + ε), aₙ = rₙ gₙ and bₙ = −rₙ (gₙ·yₙ), the quotient rule gives

    dqₙ = aₙ Kᵀ + bₙ z;     dK = Σ_n qₙᵀ aₙ;     dz = Σ_n bₙ qₙ
    dkₙ = vₙ dKᵀ + dz;      dvₙ = kₙ dK

and dq, dk pass the ReLU where query and key are above zero. All sums are float32 (float64 for float64 tensors).
Source: Xie et al. 2024, "SANA", section 2.2; Katharopoulos et al. 2020, equations 5 and 6; ε as in diffusers.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from simpletuner.models.sana.attention import EPSILON
from simpletuner.models.sana.kernels import runs_in_triton


def _parts(qkv: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Query, key and value out of qkv → query, key, value, each [B, heads, N, d] in the dtype of the sums, before ReLU."""
    exact = qkv if qkv.dtype == torch.float64 else qkv.float()
    query, key, value = exact.permute(2, 0, 3, 1, 4)
    return query, key, value


def plain_forward(qkv: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The operation in plain PyTorch.

    Args:
        qkv: [B, N, 3, heads, d], any floating dtype.

    Returns:
        The output [B, N, heads, d] in the dtype of qkv, and the state [B, heads, d + 1, d] in the dtype of the sums.
    """
    with torch.autocast(qkv.device.type, enabled=False):
        query, key, value = _parts(qkv)
        key, query = F.relu(key), F.relu(query)
        state = torch.cat([key.transpose(2, 3) @ value, key.sum(2, keepdim=True)], dim=2)
        out = (query @ state[:, :, :-1]) / (query @ state[:, :, -1:].transpose(2, 3) + EPSILON)
        return out.transpose(1, 2).to(qkv.dtype).contiguous(), state


def plain_backward(grad: torch.Tensor, qkv: torch.Tensor, state: torch.Tensor) -> torch.Tensor:
    """The gradient of qkv in plain PyTorch, by the formulas at the head of this module.

    Args:
        grad: [B, N, heads, d], the gradient of the output.
        qkv: as in the forward pass.
        state: [B, heads, d + 1, d], as the forward pass returned it.

    Returns:
        [B, N, 3, heads, d] in the dtype of qkv.
    """
    with torch.autocast(qkv.device.type, enabled=False):
        query, key, value = _parts(qkv)
        q, k, g = F.relu(query), F.relu(key), grad.transpose(1, 2).to(state.dtype)
        matrix, z = state[:, :, :-1], state[:, :, -1:]
        r = 1 / (q @ z.transpose(2, 3) + EPSILON)
        a = g * r
        b = -r * (g * (q @ matrix) * r).sum(3, keepdim=True)
        dq = a @ matrix.transpose(2, 3) + b * z
        dmatrix, dz = q.transpose(2, 3) @ a, (b * q).sum(2, keepdim=True)
        dk = value @ dmatrix.transpose(2, 3) + dz
        gradient = torch.stack([dq * (query > 0), dk * (key > 0), k @ dmatrix])
        return gradient.permute(1, 3, 0, 2, 4).to(qkv.dtype).contiguous()


def _check(qkv: torch.Tensor) -> None:
    if qkv.dim() != 5 or qkv.shape[2] != 3:
        raise ValueError(f"qkv must be [B, N, 3, heads, d]; found {list(qkv.shape)}")


@torch.library.custom_op("simpletuner::linear_attention", mutates_args=())
def linear_attention_with_state(qkv: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(output, state): see ``plain_forward``; Triton for CUDA tensors with d a power of two from 16 to 128.

    Raises:
        ValueError: qkv is not [B, N, 3, heads, d].
    """
    _check(qkv)
    if runs_in_triton(qkv):
        from simpletuner.models.sana.kernels import linear_attention_triton

        if linear_attention_triton.takes(qkv.shape[4]):
            return linear_attention_triton.forward(qkv)
    return plain_forward(qkv)


@linear_attention_with_state.register_fake
def _(qkv: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    batch, tokens, _, heads, width = qkv.shape
    exact = torch.float64 if qkv.dtype == torch.float64 else torch.float32
    return qkv.new_empty(batch, tokens, heads, width), qkv.new_empty(batch, heads, width + 1, width, dtype=exact)


@torch.library.custom_op("simpletuner::linear_attention_backward", mutates_args=())
def linear_attention_backward(grad: torch.Tensor, qkv: torch.Tensor, state: torch.Tensor) -> torch.Tensor:
    """The gradient of qkv; an operator of its own, so that the compiler keeps it whole too."""
    if runs_in_triton(qkv):
        from simpletuner.models.sana.kernels import linear_attention_triton

        if linear_attention_triton.takes(qkv.shape[4]):
            return linear_attention_triton.backward(grad, qkv, state)
    return plain_backward(grad, qkv, state)


@linear_attention_backward.register_fake
def _(grad: torch.Tensor, qkv: torch.Tensor, state: torch.Tensor) -> torch.Tensor:
    return qkv.new_empty(qkv.shape)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, torch.Tensor]) -> None:
    ctx.save_for_backward(inputs[0], output[1])
    ctx.mark_non_differentiable(output[1])


def _gradients(ctx: Any, grad: torch.Tensor, _: torch.Tensor | None) -> torch.Tensor:
    return linear_attention_backward(grad, *ctx.saved_tensors)


linear_attention_with_state.register_autograd(_gradients, setup_context=_keep)


def linear_attention(qkv: torch.Tensor) -> torch.Tensor:
    """ReLU linear attention of every head, [B, N, 3, heads, d] → [B, N, heads, d] in the dtype of qkv.

    Where query and key come apart (they are normed first), join them: ``torch.stack((query, key, value), 2)``.

    Raises:
        ValueError: qkv is not [B, N, 3, heads, d].
    """
    return linear_attention_with_state(qkv)[0]
