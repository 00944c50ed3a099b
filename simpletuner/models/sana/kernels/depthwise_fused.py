"""The backward pass of ``depthwise.py`` as one Triton program for 16-bit channels in pairs, see ``depthwise_programs.py``.

The gradient of [a, g] does not pass through memory: a program makes it for the six rows and, walking, three columns that
its four rows of dx need, from eight rows of x. About half the bytes of the two launches are moved. What it costs: a and g
of the shared rows are made once more, so a warp's step is 1265 instructions where gate and spread take 1209 (bf16 on
sm_90), two more columns are walked, and with 255 registers a thread eight warps fit a multiprocessor instead of sixteen.

Column t of x completes column t − 1 of a, g and their gradients (r), whose neighbours m = t − 2 and l = t − 3 are kept as
pairs of 16-bit numbers, rounded as they would be in memory; that completes column t − 2 of dx.
"""

from __future__ import annotations

import triton
import triton.language as tl

from simpletuner.models.sana.kernels.depthwise_programs import (
    ROWS,
    SIZES,
    SUMS,
    add_column,
    as_words,
    column_at,
    floats_of,
    load_four,
    load_six,
    load_taps,
    logistic,
    packed,
    row_limit,
    row_limits,
    silu_of,
    six_floats,
    three_taps,
    through_silu,
)


@triton.jit
def _eight(pointer, column, width, line, stride, word, words, limits):
    """The four rows of the strip and two more above and below; `line` is from one row to the next."""
    at, here = column_at(pointer, column, width, stride, word, words)
    above = tl.load(at, mask=here < limits[0], other=0)
    six = load_six(pointer + line, column, width, line, stride, word, words, limits[1])
    below = tl.load(at + 7 * line, mask=here < limits[2], other=0)
    return above, six[0], six[1], six[2], six[3], six[4], six[5], below


@triton.jit
def _eight_silu(raw, TYPE: tl.constexpr):
    return (
        silu_of(floats_of(raw[0], TYPE, True), True), silu_of(floats_of(raw[1], TYPE, True), True),
        silu_of(floats_of(raw[2], TYPE, True), True), silu_of(floats_of(raw[3], TYPE, True), True),
        silu_of(floats_of(raw[4], TYPE, True), True), silu_of(floats_of(raw[5], TYPE, True), True),
        silu_of(floats_of(raw[6], TYPE, True), True), silu_of(floats_of(raw[7], TYPE, True), True),
    )  # fmt: skip


@triton.jit
def _add_to_six(sums, s, w0, w1, w2):
    """Add to six rows' sums what one column of eight gives through one column of taps."""
    return (
        three_taps(sums[0], s[0], s[1], s[2], w0, w1, w2),
        three_taps(sums[1], s[1], s[2], s[3], w0, w1, w2),
        three_taps(sums[2], s[2], s[3], s[4], w0, w1, w2),
        three_taps(sums[3], s[3], s[4], s[5], w0, w1, w2),
        three_taps(sums[4], s[4], s[5], s[6], w0, w1, w2),
        three_taps(sums[5], s[5], s[6], s[7], w0, w1, w2),
    )


@triton.jit
def _through_gate(a, g, raw, TYPE: tl.constexpr):
    """The gradients of a and g, packed, from that of the result."""
    d = floats_of(raw, TYPE, True)
    sigma = logistic(g, True)
    silu = g * sigma
    return packed(d * silu, TYPE, True, True), packed(d * a * tl.fma(silu, 1.0 - sigma, sigma), TYPE, True, True)


@triton.jit
def _spread(
    total, left, m, right, v, k, at, line, here, owned, limits, TYPE: tl.constexpr
):  # fmt: skip
    """Write one column of dx of one half, and add to the eleven sums; `v` is x there, zero in columns not owned."""
    l = six_floats(left, TYPE, True)  # noqa: E741
    m = six_floats(m, TYPE, True)
    r = six_floats(right, TYPE, True)
    zero = tl.zeros_like(k[0])
    ds = (zero, zero, zero, zero)
    ds = add_column(ds, l, k[8], k[5], k[2])
    ds = add_column(ds, m, k[7], k[4], k[1])
    ds = add_column(ds, r, k[6], k[3], k[0])
    w0, w1, w2, w3, w4, w5, w6, w7, w8, b, all_dx = total
    for i in tl.static_range(ROWS):
        x = floats_of(v[i], TYPE, True)
        s, through = through_silu(x, ds[i], True)
        tl.store(at + i * line, packed(through, TYPE, True, True), mask=here < limits[i + 1])
        w0 = tl.fma(s, r[i + 2], w0)
        w1 = tl.fma(s, m[i + 2], w1)
        w2 = tl.fma(s, l[i + 2], w2)
        w3 = tl.fma(s, r[i + 1], w3)
        w4 = tl.fma(s, m[i + 1], w4)
        w5 = tl.fma(s, l[i + 1], w5)
        w6 = tl.fma(s, r[i], w6)
        w7 = tl.fma(s, m[i], w7)
        w8 = tl.fma(s, l[i], w8)
        b += m[i + 1] * owned
        all_dx += through * tl.where(limits[i + 1] > 0, owned, 0.0)
    return w0, w1, w2, w3, w4, w5, w6, w7, w8, b, all_dx


@triton.jit
def _owned(v, owned):
    return tl.where(owned, v[0], 0), tl.where(owned, v[1], 0), tl.where(owned, v[2], 0), tl.where(owned, v[3], 0)


@triton.jit
def _nothing(like):
    """Six new zeros: what a loop carries must not start from one and the same tensor."""
    return (
        tl.zeros_like(like), tl.zeros_like(like), tl.zeros_like(like),
        tl.zeros_like(like), tl.zeros_like(like), tl.zeros_like(like),
    )  # fmt: skip


@triton.jit(do_not_specialize=SIZES)
def whole_kernel(
    x, weight, bias, grad, dx, sums, height, width, groups, columns,
    UNIT: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """All of backward: dx, and this program's sums for the nine taps, the bias and all of dx."""
    channels = groups * UNIT
    channel = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    valid = channel < channels
    across = tl.cdiv(width, columns)
    row = tl.program_id(1) // across * ROWS
    first = tl.program_id(1) % across * columns
    start = tl.program_id(2).to(tl.int64) * height * width * channels
    x += 2 * start
    grad += start
    dx += 2 * start
    TYPE: tl.constexpr = x.dtype.element_ty
    word, words = tl.program_id(0) * (BLOCK // 2) + tl.arange(0, BLOCK // 2), groups * (UNIT // 2)
    x, grad, dx = as_words(x, True), as_words(grad, True), as_words(dx, True)
    wa, wg = load_taps(weight, channel, valid), load_taps(weight + 9 * channels, channel, valid)
    a = tl.load(bias + channel, mask=valid, other=0.0).to(tl.float32)
    g = tl.load(bias + channels + channel, mask=valid, other=0.0).to(tl.float32)
    ba, bg = (a, a, a, a, a, a), (g, g, g, g, g, g)
    am, ar, gm, gr = ba, ba, bg, bg
    zero = tl.zeros((BLOCK,), tl.float32)
    ta = (zero, zero, zero, zero, zero, zero, zero, zero, zero, zero, zero)
    tg = ta
    la, lg, ma, mg = _nothing(word), _nothing(word), _nothing(word), _nothing(word)
    limits = row_limits(row, height, words)
    eight = row_limit(row - 2, height, words), limits, row_limit(row + 5, height, words)
    stride = 2 * words
    line, half = (width * stride).to(tl.int64), (width * words).to(tl.int64)
    x += (row - 2) * line
    dx += row * line
    grad += (row - 1) * half
    # What is not owned yet is not written: the gradients that these columns give are not complete.
    begin = tl.maximum(first - 2, 0)
    end = tl.minimum(first + columns, width)
    va = load_four(x + 2 * line, begin - 2, width, line, stride, word, words, limits)
    vg = load_four(x + 2 * line + words, begin - 2, width, line, stride, word, words, limits)
    ua = load_four(x + 2 * line, begin - 1, width, line, stride, word, words, limits)
    ug = load_four(x + 2 * line + words, begin - 1, width, line, stride, word, words, limits)
    xa = _eight(x, begin, width, line, stride, word, words, eight)
    xg = _eight(x + words, begin, width, line, stride, word, words, eight)
    d = load_six(grad, begin - 1, width, half, words, word, words, limits)
    for column in range(begin, end + 2):
        na = _eight(x, column + 1, width, line, stride, word, words, eight)
        ng = _eight(x + words, column + 1, width, line, stride, word, words, eight)
        nd = load_six(grad, column, width, half, words, word, words, limits)
        s = _eight_silu(xa, TYPE)
        al = _add_to_six(am, s, wa[2], wa[5], wa[8])
        am = _add_to_six(ar, s, wa[1], wa[4], wa[7])
        ar = _add_to_six(ba, s, wa[0], wa[3], wa[6])
        s = _eight_silu(xg, TYPE)
        gl = _add_to_six(gm, s, wg[2], wg[5], wg[8])
        gm = _add_to_six(gr, s, wg[1], wg[4], wg[7])
        gr = _add_to_six(bg, s, wg[0], wg[3], wg[6])
        da0, dg0 = _through_gate(al[0], gl[0], d[0], TYPE)
        da1, dg1 = _through_gate(al[1], gl[1], d[1], TYPE)
        da2, dg2 = _through_gate(al[2], gl[2], d[2], TYPE)
        da3, dg3 = _through_gate(al[3], gl[3], d[3], TYPE)
        da4, dg4 = _through_gate(al[4], gl[4], d[4], TYPE)
        da5, dg5 = _through_gate(al[5], gl[5], d[5], TYPE)
        ra, rg = (da0, da1, da2, da3, da4, da5), (dg0, dg1, dg2, dg3, dg4, dg5)
        mine = column - 2 >= first
        owned, here = tl.where(mine, 1.0, 0.0), tl.where(mine, word, words)
        at = dx + ((column - 2) * stride + word)
        va, vg = _owned(va, mine), _owned(vg, mine)
        ta = _spread(ta, la, ma, ra, va, wa, at, line, here, owned, limits, TYPE)
        tg = _spread(tg, lg, mg, rg, vg, wg, at + words, line, here, owned, limits, TYPE)
        va, vg = ua, ug
        ua, ug = (xa[2], xa[3], xa[4], xa[5]), (xg[2], xg[3], xg[4], xg[5])
        la, lg, ma, mg = ma, mg, ra, rg
        xa, xg, d = na, ng, nd
    program = tl.program_id(2) * tl.num_programs(1) + tl.program_id(1)
    to = sums + program.to(tl.int64) * SUMS * 2 * channels + channel
    for i in tl.static_range(SUMS):
        tl.store(to + i * 2 * channels, ta[i], mask=valid)
        tl.store(to + (i * 2 + 1) * channels, tg[i], mask=valid)
