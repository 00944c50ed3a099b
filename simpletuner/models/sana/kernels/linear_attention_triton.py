"""The Triton kernels behind ``linear_attention.py``: two launches forward, two backward, every sum in float32.

The tokens are split into runs of BLOCK · RUN. A program sums over its own run and writes the sum to its own place of a
float32 buffer [B, runs, heads, d + 1, d]; ``torch.sum`` adds the runs up. So there are no atomics, nothing depends on
the order of programs, and the result is the same bits every run. As in ``depthwise_programs.py`` (which tells why) no
run-time loop carries a tensor: the RUN blocks of a run are unrolled, and their number is the same for every N.

Products with sums in float32. q, k, v and the incoming gradient are factors as they are: the product of two bfloat16 is
exact in float32. What is float32 itself (the state, its gradient, the gradient over its divisor) enters a product with
bfloat16 as the sum of two bfloat16 numbers, PRECISION "split": 16 of its 24 digits at the speed of the product units.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from simpletuner.models.sana.attention import EPSILON

BLOCK, RUN, WARPS = 64, 1, 4
LARGEST = 2**31 - 1


@triton.jit
def _rows(pointer, token, tokens, stride, D: tl.constexpr):
    """Rows `token` of one head, [BLOCK, D] in their dtype, zero past the end."""
    offset = token[:, None] * stride + tl.arange(0, D)[None, :]
    return tl.load(pointer + offset, mask=(token < tokens)[:, None], other=0.0)


@triton.jit
def _relu(x):
    """In the dtype of x, which ``tl.maximum`` does not keep."""
    return tl.where(x > 0, x, 0.0).to(x.dtype)


@triton.jit
def _write(pointer, value, token, tokens, stride, D: tl.constexpr):
    offset = token[:, None] * stride + tl.arange(0, D)[None, :]
    tl.store(pointer + offset, value.to(pointer.dtype.element_ty), mask=(token < tokens)[:, None])


@triton.jit
def _state(pointer, D: tl.constexpr):
    """The matrix [D, D] and the vector [D] of one head's state."""
    line = tl.arange(0, D)
    return tl.load(pointer + line[:, None] * D + line[None, :]), tl.load(pointer + D * D + line)


@triton.jit
def _write_state(pointer, matrix, vector, D: tl.constexpr):
    line = tl.arange(0, D)
    tl.store(pointer + line[:, None] * D + line[None, :], matrix)
    tl.store(pointer + D * D + line, vector)


@triton.jit
def _times(a, b, PRECISION: tl.constexpr):
    """The matrix product of a in the dtype of qkv and b in float32, in float32."""
    if PRECISION == "split":
        high = b.to(a.dtype)
        low = (b - high.to(tl.float32)).to(a.dtype)
        return tl.dot(a, high, tl.dot(a, low))
    else:
        return tl.dot(a.to(tl.float32), b, input_precision=PRECISION)


@triton.jit
def _place(D: tl.constexpr):
    """Which (picture, run, head) this program owns in a buffer of sums, and which (picture, head) in a state."""
    picture = tl.program_id(2).to(tl.int64)
    run = (picture * tl.num_programs(1) + tl.program_id(1)) * tl.num_programs(0) + tl.program_id(0)
    head = picture * tl.num_programs(0) + tl.program_id(0)
    return picture, run * (D + 1) * D, head * (D + 1) * D


@triton.jit(do_not_specialize=["tokens"])
def state_kernel(qkv, sums, tokens, D: tl.constexpr, BLOCK: tl.constexpr, RUN: tl.constexpr, PRECISION: tl.constexpr):
    """Σ kᵀ v and Σ k over one run of tokens of one head."""
    heads = tl.num_programs(0)
    picture, own, _ = _place(D)
    stride = 3 * heads * D
    key = qkv + picture * tokens * stride + (heads + tl.program_id(0)) * D
    matrix = tl.zeros((D, D), tl.float32)
    every = tl.zeros((BLOCK, D), tl.float32)
    for block in tl.static_range(RUN):
        token = (tl.program_id(1) * RUN + block) * BLOCK + tl.arange(0, BLOCK)
        k = _relu(_rows(key, token, tokens, stride, D))
        v = _rows(key + heads * D, token, tokens, stride, D)
        if PRECISION == "split":
            matrix = tl.dot(tl.trans(k), v, matrix)
        else:
            matrix += _times(tl.trans(k), v.to(tl.float32), PRECISION)
        every += k.to(tl.float32)
    vector = tl.sum(every, 0)
    _write_state(sums + own, matrix, vector, D)


@triton.jit(do_not_specialize=["tokens"])
def output_kernel(
    qkv, state, out, tokens, epsilon,
    D: tl.constexpr, BLOCK: tl.constexpr, RUN: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Output y = q K / (q·z + ε) of one run of tokens of one head."""
    heads = tl.num_programs(0)
    picture, _, own = _place(D)
    stride = 3 * heads * D
    query = qkv + picture * tokens * stride + tl.program_id(0) * D
    out += picture * tokens * heads * D + tl.program_id(0) * D
    matrix, vector = _state(state + own, D)
    for block in tl.static_range(RUN):
        token = (tl.program_id(1) * RUN + block) * BLOCK + tl.arange(0, BLOCK)
        q = _relu(_rows(query, token, tokens, stride, D))
        divisor = tl.sum(q.to(tl.float32) * vector[None, :], 1) + epsilon
        y = _times(q, matrix, PRECISION) / divisor[:, None]
        _write(out, y, token, tokens, heads * D, D)


@triton.jit(do_not_specialize=["tokens"])
def query_backward_kernel(
    grad, qkv, state, dqkv, sums, tokens, epsilon,
    D: tl.constexpr, BLOCK: tl.constexpr, RUN: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Gradient dq of one run of tokens of one head, and the run's sums for the gradient of the state."""
    heads = tl.num_programs(0)
    picture, own, whole = _place(D)
    stride = 3 * heads * D
    start = picture * tokens * stride + tl.program_id(0) * D
    grad += picture * tokens * heads * D + tl.program_id(0) * D
    matrix, vector = _state(state + whole, D)
    dmatrix = tl.zeros((D, D), tl.float32)
    dvector = tl.zeros((BLOCK, D), tl.float32)
    for block in tl.static_range(RUN):
        token = (tl.program_id(1) * RUN + block) * BLOCK + tl.arange(0, BLOCK)
        q = _relu(_rows(qkv + start, token, tokens, stride, D))
        g = _rows(grad, token, tokens, heads * D, D)
        wide = q.to(tl.float32)
        r = 1.0 / (tl.sum(wide * vector[None, :], 1) + epsilon)[:, None]
        a = g.to(tl.float32) * r
        b = -r * tl.sum(a * _times(q, matrix, PRECISION), 1)[:, None]
        # Past the end q and g are 0 and r is 1/ε: a and b are 0 there, finite times zero.
        dq = r * _times(g, tl.trans(matrix), PRECISION) + b * vector[None, :]
        _write(dqkv + start, tl.where(q > 0, dq, 0.0), token, tokens, stride, D)
        dmatrix += _times(tl.trans(q), a, PRECISION)
        dvector += b * wide
    _write_state(sums + own, dmatrix, tl.sum(dvector, 0), D)


@triton.jit(do_not_specialize=["tokens"])
def key_backward_kernel(
    qkv, dstate, dqkv, tokens,
    D: tl.constexpr, BLOCK: tl.constexpr, RUN: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Gradients dk and dv of one run of tokens of one head."""
    heads = tl.num_programs(0)
    picture, _, whole = _place(D)
    stride = 3 * heads * D
    start = picture * tokens * stride + (heads + tl.program_id(0)) * D
    dmatrix, dvector = _state(dstate + whole, D)
    for block in tl.static_range(RUN):
        token = (tl.program_id(1) * RUN + block) * BLOCK + tl.arange(0, BLOCK)
        k = _relu(_rows(qkv + start, token, tokens, stride, D))
        v = _rows(qkv + start + heads * D, token, tokens, stride, D)
        dk = _times(v, tl.trans(dmatrix), PRECISION) + dvector[None, :]
        _write(dqkv + start, tl.where(k > 0, dk, 0.0), token, tokens, stride, D)
        _write(dqkv + start + heads * D, _times(k, dmatrix, PRECISION), token, tokens, stride, D)


def takes(width: int) -> bool:
    """Whether the kernels know heads of this many channels: the product units want a power of two from 16 on."""
    return 16 <= width <= 128 and width & (width - 1) == 0


def _products(dtype: torch.dtype, width: int) -> tuple[str, int]:
    """How products are computed, and the blocks of a run.

    Unrolled float32 products of wide heads take minutes to compile and spill: they get one block a run. Three tf32
    products give nearly float32's digits; float16 has no range for the parts of a sum.
    """
    if dtype == torch.bfloat16:
        return "split", RUN if width <= 32 else 1
    return "ieee" if dtype == torch.float32 and width <= 32 else "tf32x3", 1


def _launch(qkv: torch.Tensor) -> tuple[Any, torch.Tensor, dict[str, Any]]:
    """The grid, an empty buffer [B, runs, heads, d + 1, d] for sums, and the kernels' constants.

    Raises:
        ValueError: one picture's qkv has more values than 32-bit offsets reach.
    """
    batch, tokens, _, heads, width = qkv.shape
    if tokens * 3 * heads * width > LARGEST:
        raise ValueError(f"one picture has {tokens}·3·{heads}·{width} values, more than 32-bit offsets reach")
    precision, run = _products(qkv.dtype, width)
    runs = triton.cdiv(tokens, BLOCK * run)
    sums = qkv.new_empty(batch, runs, heads, width + 1, width, dtype=torch.float32)
    constants = {"D": width, "BLOCK": BLOCK, "RUN": run, "PRECISION": precision, "num_warps": WARPS}
    return (heads, runs, batch), sums, constants


def forward(qkv: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """As ``linear_attention.plain_forward``, on the device of qkv; the state is float32."""
    qkv = qkv.contiguous()
    batch, tokens, _, heads, width = qkv.shape
    out = qkv.new_empty(batch, tokens, heads, width)
    grid, sums, constants = _launch(qkv)
    if not qkv.numel():
        return out, sums.sum(1)
    state_kernel[grid](qkv, sums, tokens, **constants)
    state = sums.sum(1)
    output_kernel[grid](qkv, state, out, tokens, EPSILON, **constants)
    return out, state


def backward(grad: torch.Tensor, qkv: torch.Tensor, state: torch.Tensor) -> torch.Tensor:
    """As ``linear_attention.plain_backward``."""
    grad, qkv, state = grad.contiguous(), qkv.contiguous(), state.contiguous()
    dqkv = torch.empty_like(qkv)
    grid, sums, constants = _launch(qkv)
    if qkv.numel():
        query_backward_kernel[grid](grad, qkv, state, dqkv, sums, qkv.shape[1], EPSILON, **constants)
        key_backward_kernel[grid](qkv, sums.sum(1), dqkv, qkv.shape[1], **constants)
    return dqkv
