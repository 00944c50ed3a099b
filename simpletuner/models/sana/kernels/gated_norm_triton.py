"""The Triton kernels behind ``gated_norm.py``, in the manner of ``residual_triton.py``: a row of channels in registers.

Forward moves four tensors of tokens where the gated sum and the norm one after the other move five; backward six where
they move seven. Sums over tokens: every run's own row of a float32 buffer [B, runs, 3, C], and one launch that adds them.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from simpletuner.models.sana.kernels import widest_dtype
from simpletuner.models.sana.kernels.residual_triton import (
    Plan,
    all_contiguous,
    as_floats,
    cut_into_runs,
    empty_sums,
    finish_sums,
    launch_options,
    load_row,
    row_pieces,
    store_row,
    table_rows,
    two_means,
)

# As many as an H100 holds at a time: backward three on a multiprocessor, with twelve registers a thread too few. With eight
# warps none would be, but the rest of a row is then too little a thread to be copied ahead.
FORWARD, BACKWARD = Plan(4, 660, 4, 3), Plan(4, 396, 4, 3, 168)
NUMBERS = ["tokens", "gate_rows", "rows", "run"]


@triton.jit(do_not_specialize=[*NUMBERS, "epsilon"])
def forward_kernel(
    x, y, gate, modulation, s, n, statistics, tokens, gate_rows, rows, run, epsilon,
    C: tl.constexpr, MAIN: tl.constexpr, REST: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """The sum s = x + gate · y, its statistics and norm n. `rows` of C lie between the modulations of two pictures."""
    picture = tl.program_id(1).to(tl.int64)
    start = picture * tokens * C
    x += start
    y += start
    s += start
    n += start
    statistics += picture * tokens * 2
    modulation += picture * rows * C
    factor = as_floats(load_row(gate + picture * gate_rows * C, C, MAIN, REST))
    shift = as_floats(load_row(modulation, C, MAIN, REST))
    scale = as_floats(load_row(modulation + C, C, MAIN, REST))
    real = MAIN + tl.arange(0, REST) < C
    first = tl.program_id(0) * run
    for token in tl.range(first, tl.minimum(first + run, tokens), num_stages=STAGES):
        a, b = as_floats(load_row(x + token * C, C, MAIN, REST))
        c, d = as_floats(load_row(y + token * C, C, MAIN, REST))
        # The norm is of what is stored: backward has nothing else.
        a = tl.fma(c, factor[0], a).to(s.dtype.element_ty)
        b = tl.fma(d, factor[1], b).to(s.dtype.element_ty)
        store_row(s + token * C, a, b, C, MAIN, REST)
        a, b = a.to(tl.float32), b.to(tl.float32)
        mean = (tl.sum(a, 0) + tl.sum(b, 0)) * (1.0 / C)
        a, b = a - mean, tl.where(real, b - mean, 0.0)
        r = tl.rsqrt((tl.sum(a * a, 0) + tl.sum(b * b, 0)) * (1.0 / C) + epsilon)
        a, b = tl.fma(a * r, 1.0 + scale[0], shift[0]), tl.fma(b * r, 1.0 + scale[1], shift[1])
        store_row(n + token * C, a, b, C, MAIN, REST)
        tl.store(statistics + 2 * token, mean)
        tl.store(statistics + 2 * token + 1, r)


@triton.jit(do_not_specialize=NUMBERS)
def backward_kernel(
    ds, dn, s, y, statistics, gate, modulation, d, dy, sums, tokens, gate_rows, rows, run,
    C: tl.constexpr, MAIN: tl.constexpr, REST: tl.constexpr, PICTURE: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """The gradients d of x and dy of y; PICTURE: this run's sums for shift, scale and gate."""
    picture = tl.program_id(1).to(tl.int64)
    start = picture * tokens * C
    ds += start
    dn += start
    s += start
    y += start
    d += start
    dy += start
    statistics += picture * tokens * 2
    factor = as_floats(load_row(gate + picture * gate_rows * C, C, MAIN, REST))
    scale = as_floats(load_row(modulation + picture * rows * C + C, C, MAIN, REST))
    real = MAIN + tl.arange(0, REST) < C
    zero, little = tl.zeros((MAIN,), tl.float32), tl.zeros((REST,), tl.float32)
    shift0, shift1, scale0, scale1, gate0, gate1 = zero, little, zero, little, zero, little
    first = tl.program_id(0) * run
    last = tl.minimum(first + run, tokens)
    mean = tl.load(statistics + 2 * first, mask=first < last, other=0.0)
    r = tl.load(statistics + 2 * first + 1, mask=first < last, other=0.0)
    for token in tl.range(first, last, num_stages=STAGES):
        following = statistics + 2 * (token + 1)
        next_mean = tl.load(following, mask=token + 1 < last, other=0.0)
        next_r = tl.load(following + 1, mask=token + 1 < last, other=0.0)
        a, b = as_floats(load_row(s + token * C, C, MAIN, REST))
        g, h = as_floats(load_row(dn + token * C, C, MAIN, REST))
        e, f = as_floats(load_row(ds + token * C, C, MAIN, REST))
        a, b = (a - mean) * r, tl.where(real, (b - mean) * r, 0.0)
        if PICTURE:
            shift0 += g
            shift1 += h
            scale0 = tl.fma(g, a, scale0)
            scale1 = tl.fma(h, b, scale1)
        g, h = tl.fma(g, scale[0], g), tl.fma(h, scale[1], h)
        plain, along = two_means((g, h), (g * a, h * b), C)
        e, f = tl.fma(r, g - plain - a * along, e), tl.where(real, tl.fma(r, h - plain - b * along, f), 0.0)
        if PICTURE:
            k, m = as_floats(load_row(y + token * C, C, MAIN, REST))
            gate0 = tl.fma(e, k, gate0)
            gate1 = tl.fma(f, m, gate1)
        store_row(d + token * C, e, f, C, MAIN, REST)
        store_row(dy + token * C, e * factor[0], f * factor[1], C, MAIN, REST)
        mean, r = next_mean, next_r
    if PICTURE:
        sums += (picture * tl.num_programs(0) + tl.program_id(0)) * 3 * C
        store_row(sums, shift0, shift1, C, MAIN, REST)
        store_row(sums + C, scale0, scale1, C, MAIN, REST)
        store_row(sums + 2 * C, gate0, gate1, C, MAIN, REST)


def _rows_of(gate: torch.Tensor, modulation: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, int, int]:
    (gate, gate_rows), (modulation, rows) = table_rows(gate), table_rows(modulation)
    return gate, modulation, gate_rows, rows


def forward(
    x: torch.Tensor, y: torch.Tensor, gate: torch.Tensor, modulation: torch.Tensor, epsilon: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """As ``gated_norm.plain_forward``, on the device of x."""
    s = torch.empty_like(x, dtype=widest_dtype(x, y, gate), memory_format=torch.contiguous_format)
    n, statistics = torch.empty_like(s), x.new_empty(*x.shape[:2], 2, dtype=torch.float32)
    x, y = all_contiguous(x, y)
    gate, modulation, *lines = _rows_of(gate, modulation)
    if x.numel():
        runs, run = cut_into_runs(FORWARD, x)
        constants: dict[str, Any] = {"STAGES": FORWARD.stages} | row_pieces(x.shape[2]) | launch_options(FORWARD)
        forward_kernel[(runs, len(x))](
            *(x, y, gate, modulation, s, n, statistics, x.shape[1], *lines, run, epsilon), **constants
        )
    return s, n, statistics


def backward(
    grads: tuple[torch.Tensor, torch.Tensor],
    kept: tuple[torch.Tensor, torch.Tensor],
    y: torch.Tensor | None,
    gate: torch.Tensor,
    modulation: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """As ``gated_norm.plain_backward``, on the device of s."""
    summed = y is not None
    ds, dn, s, statistics, factor = all_contiguous(*grads, *kept, kept[0] if y is None else y)
    gate, modulation, *lines = _rows_of(gate, modulation)
    d, dy = torch.empty_like(s), torch.empty_like(factor)
    runs, run = cut_into_runs(BACKWARD, s)
    sums = empty_sums(s, runs, 3 * summed, None)
    if s.numel():
        constants: dict[str, Any] = {"PICTURE": summed, "STAGES": BACKWARD.stages}
        constants |= row_pieces(s.shape[2]) | launch_options(BACKWARD)
        backward_kernel[(runs, len(s))](
            *(ds, dn, s, factor, statistics, gate, modulation, d, dy, sums, s.shape[1], *lines, run), **constants
        )
    table = gate.new_empty(1, dtype=widest_dtype(gate, modulation) if summed else s.dtype)
    return d, dy, finish_sums(sums, table.expand(len(s), 3, s.shape[2]), None, summed)[0]  # of whose shape and dtype
