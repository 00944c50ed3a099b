"""The Triton kernels behind ``depthwise.py``: three launches, every sum in float32.

Why they are written the way they are. Our first prototype marched along a picture's columns in a run-time loop and kept
the last columns in shift registers, ``p = q; q = new``, both starting from one tensor of zeros. Triton (3.6 and 3.9
were looked at) decides what a loop carries by comparing a name's value before the loop with its value after one trial
pass of the body. After ``p = q`` that is q's start, the very same zeros, so p was taken for a constant: in the compiled
loop it is not carried and stays zero, silently; the interpreter, which runs plain Python, is right. With p held at zero
the gradients of x and of the bias before SiLU are wrong by half and those of the weight's right-hand taps are zero; the
bias after the convolution keeps a right gradient. The prototype was revised between its measurement on a GPU and this
reading, so another fault may have been there beside this one; a race was not found. Hence, here:

- no run-time loop at all: columns are unrolled (``tl.static_range``), where shift registers are ordinary values;
- no atomics and no autotuning: a program writes only what it alone owns, and its sums go to its own row of a float32
  buffer [programs, 10, 2C] that ``torch.sum`` adds up: the same bits every run;
- every load and store is masked; the start of a picture is a 64-bit offset, and offsets inside one picture are checked
  to fit 32 bits; incoming tensors are made contiguous.

A program covers STRIPS strips of two rows, COLUMNS columns and BLOCK channels. Two rows share the SiLU of four.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl

LARGEST = 2**31 - 1
SUMS = tl.constexpr(10)


class Plan(NamedTuple):
    """The shape of one program; strips and channels are powers of two."""

    strips: int = 4
    columns: int = 8
    channels: int = 64
    warps: int = 4


FORWARD, GATE, SPREAD = Plan(), Plan(), Plan()


@triton.jit
def _sigmoid(x):
    return 1.0 / (1.0 + tl.exp(-x))


@triton.jit
def _inside(row, column, height, width, valid):
    """Which of [STRIPS, BLOCK] are in the picture."""
    # The column becomes a vector: Triton 3.9's interpreter makes an integer of "vector and scalar".
    column += tl.zeros_like(row)
    return ((row >= 0) & (row < height) & (column >= 0) & (column < width))[:, None] & valid[None, :]


@triton.jit
def _load(pointer, row, column, height, width, stride, channel, valid):
    """Rows `row` of one column, [STRIPS, BLOCK] float32, zero outside the picture."""
    offset = (row * width + column)[:, None] * stride + channel[None, :]
    return tl.load(pointer + offset, mask=_inside(row, column, height, width, valid), other=0.0).to(tl.float32)


@triton.jit
def _store(pointer, value, row, column, height, width, stride, channel, valid):
    offset = (row * width + column)[:, None] * stride + channel[None, :]
    mask = _inside(row, column, height, width, valid)
    tl.store(pointer + offset, value.to(pointer.dtype.element_ty), mask=mask)


@triton.jit
def _four(pointer, row, column, height, width, stride, channel, valid):
    """The two rows of every strip and their neighbours above and below."""
    return (
        _load(pointer, row - 1, column, height, width, stride, channel, valid),
        _load(pointer, row, column, height, width, stride, channel, valid),
        _load(pointer, row + 1, column, height, width, stride, channel, valid),
        _load(pointer, row + 2, column, height, width, stride, channel, valid),
    )


@triton.jit
def _four_silu(pointer, row, column, height, width, stride, channel, valid):
    """SiLU of them; SiLU(0) = 0, so the zeros around the picture stay zeros."""
    a, b, c, d = _four(pointer, row, column, height, width, stride, channel, valid)
    return (a * _sigmoid(a), b * _sigmoid(b), c * _sigmoid(c), d * _sigmoid(d))


@triton.jit
def _nine(weight, channel, valid):
    """The nine taps of each channel, row by row, each [1, BLOCK] float32."""
    at = weight + channel * 9
    return (
        tl.load(at, mask=valid, other=0.0).to(tl.float32)[None, :],
        tl.load(at + 1, mask=valid, other=0.0).to(tl.float32)[None, :],
        tl.load(at + 2, mask=valid, other=0.0).to(tl.float32)[None, :],
        tl.load(at + 3, mask=valid, other=0.0).to(tl.float32)[None, :],
        tl.load(at + 4, mask=valid, other=0.0).to(tl.float32)[None, :],
        tl.load(at + 5, mask=valid, other=0.0).to(tl.float32)[None, :],
        tl.load(at + 6, mask=valid, other=0.0).to(tl.float32)[None, :],
        tl.load(at + 7, mask=valid, other=0.0).to(tl.float32)[None, :],
        tl.load(at + 8, mask=valid, other=0.0).to(tl.float32)[None, :],
    )


@triton.jit
def _weighted(l0, m0, r0, l1, m1, r1, l2, m2, r2, w):
    """Σ over a 3x3 neighbourhood, given row by row as left, middle, right."""
    return (
        (l0 * w[0] + m0 * w[1] + r0 * w[2]) + (l1 * w[3] + m1 * w[4] + r1 * w[5]) + (l2 * w[6] + m2 * w[7] + r2 * w[8])
    )


@triton.jit
def _write_gate(a, g, grad, out, row, column, height, width, channels, channel, valid, BACKWARD: tl.constexpr):
    """Write a · SiLU(g), or in backward the gradients of a and g side by side."""
    sigma = _sigmoid(g)
    if BACKWARD:
        d = _load(grad, row, column, height, width, channels, channel, valid)
        _store(out, d * g * sigma, row, column, height, width, 2 * channels, channel, valid)
        dg = d * a * sigma * (1.0 + g * (1.0 - sigma))
        _store(out + channels, dg, row, column, height, width, 2 * channels, channel, valid)
    else:
        _store(out, a * g * sigma, row, column, height, width, channels, channel, valid)


@triton.jit
def gate_kernel(
    x, weight, bias, grad, out, height, width, channels, tiles_across,
    STRIPS: tl.constexpr, COLUMNS: tl.constexpr, BLOCK: tl.constexpr, BACKWARD: tl.constexpr,
):  # fmt: skip
    """Forward: out [B, N, C]. BACKWARD: the same up to a and g, then out [B, N, 2C] = their gradients."""
    channel = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    valid = channel < channels
    row = (tl.program_id(1) // tiles_across * STRIPS + tl.arange(0, STRIPS)) * 2
    first = tl.program_id(1) % tiles_across * COLUMNS
    start = tl.program_id(2).to(tl.int64) * height * width * channels
    x += 2 * start
    grad += start
    out += 2 * start if BACKWARD else start
    stride = 2 * channels
    wa, wg = _nine(weight, channel, valid), _nine(weight + 9 * channels, channel, valid)
    ba = tl.load(bias + channel, mask=valid, other=0.0).to(tl.float32)[None, :]
    bg = tl.load(bias + channels + channel, mask=valid, other=0.0).to(tl.float32)[None, :]
    al = _four_silu(x, row, first - 1, height, width, stride, channel, valid)
    gl = _four_silu(x + channels, row, first - 1, height, width, stride, channel, valid)
    am = _four_silu(x, row, first, height, width, stride, channel, valid)
    gm = _four_silu(x + channels, row, first, height, width, stride, channel, valid)
    for step in tl.static_range(COLUMNS):
        column = first + step
        ar = _four_silu(x, row, column + 1, height, width, stride, channel, valid)
        gr = _four_silu(x + channels, row, column + 1, height, width, stride, channel, valid)
        a = _weighted(al[0], am[0], ar[0], al[1], am[1], ar[1], al[2], am[2], ar[2], wa) + ba
        g = _weighted(gl[0], gm[0], gr[0], gl[1], gm[1], gr[1], gl[2], gm[2], gr[2], wg) + bg
        _write_gate(a, g, grad, out, row, column, height, width, channels, channel, valid, BACKWARD)
        a = _weighted(al[1], am[1], ar[1], al[2], am[2], ar[2], al[3], am[3], ar[3], wa) + ba
        g = _weighted(gl[1], gm[1], gr[1], gl[2], gm[2], gr[2], gl[3], gm[3], gr[3], wg) + bg
        _write_gate(a, g, grad, out, row + 1, column, height, width, channels, channel, valid, BACKWARD)
        al, am = am, ar
        gl, gm = gm, gr


@triton.jit
def _spread(x, dx, ds, row, column, height, width, stride, channel, valid):
    """Take ds through SiLU into dx; return SiLU(x)."""
    v = _load(x, row, column, height, width, stride, channel, valid)
    sigma = _sigmoid(v)
    _store(dx, ds * sigma * (1.0 + v * (1.0 - sigma)), row, column, height, width, stride, channel, valid)
    return v * sigma


@triton.jit
def spread_kernel(
    x, weight, inner, dx, sums, height, width, channels, tiles_across,
    STRIPS: tl.constexpr, COLUMNS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """From `inner`, the gradient of [a, g]: dx, and this program's sums for the nine taps and the bias.

    `channels` counts both halves here. SiLU(x) is zero outside the picture, so it masks the sums of the taps; the
    sums of the bias are over columns that this program owns, and zero outside the picture by the load.
    """
    channel = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    valid = channel < channels
    row = (tl.program_id(1) // tiles_across * STRIPS + tl.arange(0, STRIPS)) * 2
    first = tl.program_id(1) % tiles_across * COLUMNS
    start = tl.program_id(2).to(tl.int64) * height * width * channels
    x += start
    inner += start
    dx += start
    k = _nine(weight, channel, valid)
    flipped = (k[8], k[7], k[6], k[5], k[4], k[3], k[2], k[1], k[0])
    l = _four(inner, row, first - 1, height, width, channels, channel, valid)  # noqa: E741
    m = _four(inner, row, first, height, width, channels, channel, valid)
    z = tl.zeros((STRIPS, BLOCK), tl.float32)
    w0, w1, w2, w3, w4, w5, w6, w7, w8, b = z, z, z, z, z, z, z, z, z, z
    for step in tl.static_range(COLUMNS):
        column = first + step
        r = _four(inner, row, column + 1, height, width, channels, channel, valid)
        ds = _weighted(l[0], m[0], r[0], l[1], m[1], r[1], l[2], m[2], r[2], flipped)
        s = _spread(x, dx, ds, row, column, height, width, channels, channel, valid)
        ds = _weighted(l[1], m[1], r[1], l[2], m[2], r[2], l[3], m[3], r[3], flipped)
        t = _spread(x, dx, ds, row + 1, column, height, width, channels, channel, valid)
        w0 += s * r[2] + t * r[3]
        w1 += s * m[2] + t * m[3]
        w2 += s * l[2] + t * l[3]
        w3 += s * r[1] + t * r[2]
        w4 += s * m[1] + t * m[2]
        w5 += s * l[1] + t * l[2]
        w6 += s * r[0] + t * r[1]
        w7 += s * m[0] + t * m[1]
        w8 += s * l[0] + t * l[1]
        b += m[1] + m[2]
        l, m = m, r  # noqa: E741
    program = tl.program_id(2) * tl.num_programs(1) + tl.program_id(1)
    at = sums + program.to(tl.int64) * SUMS * channels + channel
    total = (w0, w1, w2, w3, w4, w5, w6, w7, w8, b)
    for i in tl.static_range(SUMS):
        tl.store(at + i * channels, tl.sum(total[i], 0), mask=valid)


def _launch(plan: Plan, batch: int, height: int, width: int, channels: int) -> tuple[Any, int, dict[str, int]]:
    """The grid, tiles across a picture, and the kernel's constants."""
    columns = min(plan.columns, triton.next_power_of_2(width))
    across = triton.cdiv(width, columns)
    grid = (triton.cdiv(channels, plan.channels), triton.cdiv(height, 2 * plan.strips) * across, batch)
    constants = {"STRIPS": plan.strips, "COLUMNS": columns, "BLOCK": plan.channels, "num_warps": plan.warps}
    return grid, across, constants


def _contiguous(*tensors: torch.Tensor) -> list[torch.Tensor]:
    return [tensor.contiguous() for tensor in tensors]


def _check_size(x: torch.Tensor) -> None:
    if x.shape[1] * x.shape[2] > LARGEST:
        raise ValueError(f"one picture has {x.shape[1]}·{x.shape[2]} values, more than 32-bit offsets reach")


def forward(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """As ``depthwise.plain_forward``, on the device of x."""
    _check_size(x)
    x, weight, bias = _contiguous(x, weight, bias)
    out = x.new_empty(x.shape[0], x.shape[1], x.shape[2] // 2)
    if out.numel():
        grid, across, constants = _launch(FORWARD, len(x), height, width, out.shape[2])
        gate_kernel[grid](
            x, weight, bias, out, out, height, width, out.shape[2], across, BACKWARD=False, **constants
        )  # fmt: skip
    return out


def backward(
    grad: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, height: int, width: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """As ``depthwise.plain_backward``; the gradient of [a, g] passes through memory in the dtype of x."""
    _check_size(x)
    grad, x, weight, bias = _contiguous(grad, x, weight, bias)
    both = x.shape[2]
    if not x.numel():
        return torch.empty_like(x), torch.zeros_like(weight), torch.zeros_like(bias)
    inner, dx = torch.empty_like(x), torch.empty_like(x)
    grid, across, constants = _launch(GATE, len(x), height, width, both // 2)
    gate_kernel[grid](x, weight, bias, grad, inner, height, width, both // 2, across, BACKWARD=True, **constants)
    grid, across, constants = _launch(SPREAD, len(x), height, width, both)
    sums = x.new_empty(len(x) * grid[1], SUMS.value, both, dtype=torch.float32)
    spread_kernel[grid](x, weight, inner, dx, sums, height, width, both, across, **constants)
    total = sums.sum(0)
    dweight = total[:9].t().contiguous().view(weight.shape)
    return dx, dweight.to(weight.dtype), total[9].to(bias.dtype)
