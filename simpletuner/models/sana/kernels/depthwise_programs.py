"""The Triton programs of ``depthwise_triton.py``: the walk of one program, every sum in float32.

A program takes BLOCK channels of a strip of four rows and walks along its columns, so that six rows are loaded and six
SiLU computed for four rows of results; its programs beside it find the shared rows in the cache. Two channels a thread
(BLOCK = 64 · warps) leave the nine taps, running sums and the column at work in registers; no shared memory is needed.

What time goes into is instructions, not bytes: a logistic function in full precision is about twelve of them. For 16-bit
tensors it is made of one hardware tanh, with h = x/2: σ(x) = (1 + tanh h) / 2 and SiLU(x) = h + h · tanh h. The error of
tanh.approx, 2^-11, is below what rounding to bfloat16 loses. float32 tensors keep the full form.
Source: NVIDIA, "PTX ISA", section tanh.

What time then went into was waiting for memory (77 % of it in backward, by NVIDIA's profiler on an H100), for two reasons.
A store may be to the place of a later load for all that the compiler knows, so a load after a store waits for it: all
loads of a column stand before its first store. And a column was loaded when it was needed: now a step issues the loads
that the next one uses (AHEAD), whose arithmetic hides them; Triton's own pipeline through shared memory, and half of the
loads ahead, were never faster. What is carried like that stays 16-bit, two neighbouring channels in one 32-bit register
(PAIRS), and results are stored so; a limit of the registers keeps four programs on a multiprocessor, and is one that needs
no spills. float32, channels that 16 does not divide and tensors that begin between two words go without. What the profiler
calls uncoalesced here are the taps, read once a program; neighbouring rows are found in the L2 already.

What is left is mostly arithmetic: of 372, 471 and 369 instructions of a warp's step (forward, gate, spread; bf16 on sm_90)
about 250, 290 and 220 are sums, tanh and SiLU, the rest places, masks, unpacking and moves between registers. A mask is one
comparison: whether a row is inside the picture is a number made before the loop, and a column outside it moves the channel
past all of these.

What a loop carries. Triton (3.6 and 3.9 were looked at) decides what a run-time loop carries by comparing a name's value
before the loop with its value after one trial pass of the body. A prototype of ours kept the last columns in shift
registers, ``p = q; q = new``, both starting from one tensor of zeros: after ``p = q`` that was q's start, the very same
zeros, so p was taken for a constant and stayed zero, silently; the interpreter, which runs plain Python, was right. So a
name here either gets a computed value in every pass, or starts from a load of its own; a test counts what the compiled
loops carry.

Every load and store is masked; the start of a picture is a 64-bit offset. Sizes are run-time numbers: what is compiled
anew is a dtype, and channels that 16 does not divide.
"""

from __future__ import annotations

import triton
import triton.language as tl

ROWS = tl.constexpr(4)
SUMS = tl.constexpr(11)
SIZES = ["height", "width", "groups", "columns"]


@triton.jit
def _tanh(x):
    return tl.inline_asm_elementwise(
        "tanh.approx.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1
    )  # fmt: skip


@triton.jit
def logistic(x, FAST: tl.constexpr):
    """σ(x): FAST by the hardware's tanh."""
    if FAST:
        return tl.fma(_tanh(x * 0.5), 0.5, 0.5)
    else:
        return 1.0 / (1.0 + tl.exp(-x))


@triton.jit
def silu_of(x, FAST: tl.constexpr):
    """SiLU(x) = x σ(x): FAST likewise."""
    if FAST:
        half = x * 0.5
        return tl.fma(half, _tanh(half), half)
    else:
        return x / (1.0 + tl.exp(-x))


@triton.jit
def row_limit(row, height, words):
    """As many words as a token has, none in a row outside the picture: what masks compare with, made before the loop."""
    return tl.where((row >= 0) & (row < height), words, 0)


@triton.jit
def row_limits(row, height, words):
    """Those of the four rows of the strip and of their neighbours above and below."""
    return (
        row_limit(row - 1, height, words), row_limit(row, height, words), row_limit(row + 1, height, words),
        row_limit(row + 2, height, words), row_limit(row + 3, height, words), row_limit(row + 4, height, words),
    )  # fmt: skip


@triton.jit
def column_at(pointer, column, width, stride, word, words):
    """A column's places, and their words as masks take them: past every limit in a column outside the picture."""
    return pointer + (column * stride + word), tl.where((column >= 0) & (column < width), word, words)


@triton.jit
def load_six(pointer, column, width, line, stride, word, words, limits):
    """Words of the four rows of the strip and their neighbours, zero outside the picture.

    `pointer` is to the row above the strip, `line` from one row to the next.
    """
    at, here = column_at(pointer, column, width, stride, word, words)
    return (
        tl.load(at, mask=here < limits[0], other=0),
        tl.load(at + line, mask=here < limits[1], other=0),
        tl.load(at + 2 * line, mask=here < limits[2], other=0),
        tl.load(at + 3 * line, mask=here < limits[3], other=0),
        tl.load(at + 4 * line, mask=here < limits[4], other=0),
        tl.load(at + 5 * line, mask=here < limits[5], other=0),
    )


@triton.jit
def load_four(pointer, column, width, line, stride, word, words, limits):
    """The four rows of the strip alone; `pointer` is to the first of them, `limits` those of six."""
    at, here = column_at(pointer, column, width, stride, word, words)
    return (
        tl.load(at, mask=here < limits[1], other=0),
        tl.load(at + line, mask=here < limits[2], other=0),
        tl.load(at + 2 * line, mask=here < limits[3], other=0),
        tl.load(at + 3 * line, mask=here < limits[4], other=0),
    )


@triton.jit
def as_words(pointer, PAIRS: tl.constexpr):
    """PAIRS: two neighbouring 16-bit channels as one number, so that what is loaded ahead takes half the registers."""
    if PAIRS:
        return pointer.to(tl.pointer_type(tl.int32))
    else:
        return pointer


@triton.jit
def floats_of(raw, TYPE: tl.constexpr, PAIRS: tl.constexpr):
    """[BLOCK] float32 of what was loaded."""
    if PAIRS and tl.bfloat16 == TYPE:  # which is the upper half of a float32: one instruction each
        low, high = (raw << 16).to(tl.float32, bitcast=True), (raw & -65536).to(tl.float32, bitcast=True)
        return tl.reshape(tl.join(low, high), [2 * raw.shape[0]])
    elif PAIRS:
        low = raw.to(tl.int16).to(TYPE, bitcast=True).to(tl.float32)
        high = (raw >> 16).to(tl.int16).to(TYPE, bitcast=True).to(tl.float32)
        return tl.reshape(tl.join(low, high), [2 * raw.shape[0]])
    else:
        return raw.to(tl.float32)


@triton.jit
def _pair(low, high, TYPE: tl.constexpr):
    """Two float32 numbers rounded to 16 bits, in one word: one instruction instead of nine."""
    CODE: tl.constexpr = "bf16x2" if tl.bfloat16 == TYPE else "f16x2"
    return tl.inline_asm_elementwise(
        "cvt.rn." + CODE + ".f32 $0, $2, $1;", "=r,f,f", [low, high], dtype=tl.int32, is_pure=True, pack=1
    )


@triton.jit
def packed(x, TYPE: tl.constexpr, PAIRS: tl.constexpr, FAST: tl.constexpr):
    """[BLOCK] float32 as they go to memory: the opposite of ``floats_of``."""
    if PAIRS:
        low, high = tl.split(tl.reshape(x, [x.shape[0] // 2, 2]))
        if FAST:
            return _pair(low, high, TYPE)
        low = low.to(TYPE).to(tl.int16, bitcast=True).to(tl.int32) & 0xFFFF
        return low | (high.to(TYPE).to(tl.int16, bitcast=True).to(tl.int32) << 16)
    else:
        return x.to(TYPE)


@triton.jit
def six_floats(x, TYPE: tl.constexpr, PAIRS: tl.constexpr):
    """[BLOCK] float32 of six that were loaded."""
    return (
        floats_of(x[0], TYPE, PAIRS), floats_of(x[1], TYPE, PAIRS), floats_of(x[2], TYPE, PAIRS),
        floats_of(x[3], TYPE, PAIRS), floats_of(x[4], TYPE, PAIRS), floats_of(x[5], TYPE, PAIRS),
    )  # fmt: skip


@triton.jit
def _six_silu(raw, TYPE: tl.constexpr, PAIRS: tl.constexpr, FAST: tl.constexpr):
    """SiLU of them in float32; SiLU(0) = 0, so the zeros around the picture stay zeros."""
    x = six_floats(raw, TYPE, PAIRS)
    return (
        silu_of(x[0], FAST), silu_of(x[1], FAST), silu_of(x[2], FAST),
        silu_of(x[3], FAST), silu_of(x[4], FAST), silu_of(x[5], FAST),
    )  # fmt: skip


@triton.jit
def load_taps(weight, channel, valid):
    """The nine taps of each channel, row by row, each [BLOCK] float32."""
    at = weight + channel * 9
    return (
        tl.load(at, mask=valid, other=0.0).to(tl.float32),
        tl.load(at + 1, mask=valid, other=0.0).to(tl.float32),
        tl.load(at + 2, mask=valid, other=0.0).to(tl.float32),
        tl.load(at + 3, mask=valid, other=0.0).to(tl.float32),
        tl.load(at + 4, mask=valid, other=0.0).to(tl.float32),
        tl.load(at + 5, mask=valid, other=0.0).to(tl.float32),
        tl.load(at + 6, mask=valid, other=0.0).to(tl.float32),
        tl.load(at + 7, mask=valid, other=0.0).to(tl.float32),
        tl.load(at + 8, mask=valid, other=0.0).to(tl.float32),
    )


@triton.jit
def three_taps(start, s0, s1, s2, w0, w1, w2):
    """Start + s0 w0 + s1 w1 + s2 w2, rounded once a tap."""
    return tl.fma(s2, w2, tl.fma(s1, w1, tl.fma(s0, w0, start)))


@triton.jit
def add_column(sums, s, w0, w1, w2):
    """Add to the four rows' sums what one column of six gives through one column of taps."""
    return (
        three_taps(sums[0], s[0], s[1], s[2], w0, w1, w2),
        three_taps(sums[1], s[1], s[2], s[3], w0, w1, w2),
        three_taps(sums[2], s[2], s[3], s[4], w0, w1, w2),
        three_taps(sums[3], s[3], s[4], s[5], w0, w1, w2),
    )


@triton.jit
def _write_gate(
    a, g, d, at, mask, words, TYPE: tl.constexpr, PAIRS: tl.constexpr, BACKWARD: tl.constexpr, FAST: tl.constexpr
):
    """Write a · SiLU(g), or in backward the gradients of a and g side by side; d is that of the result."""
    if BACKWARD:
        sigma = logistic(g, FAST)
        silu = g * sigma
        tl.store(at, packed(d * silu, TYPE, PAIRS, FAST), mask=mask)
        dg = d * a * tl.fma(silu, 1.0 - sigma, sigma)
        tl.store(at + words, packed(dg, TYPE, PAIRS, FAST), mask=mask)
    else:
        tl.store(at, packed(a * silu_of(g, FAST), TYPE, PAIRS, FAST), mask=mask)


@triton.jit(do_not_specialize=SIZES)
def gate_kernel(
    x, weight, bias, grad, out, height, width, groups, columns,
    UNIT: tl.constexpr, BLOCK: tl.constexpr, BACKWARD: tl.constexpr, FAST: tl.constexpr,
    PAIRS: tl.constexpr, AHEAD: tl.constexpr,
):  # fmt: skip
    """Forward: out [B, N, C]. BACKWARD: the same up to a and g, then out [B, N, 2C] = their gradients.

    A column enters three results: it completes its left neighbour's sums (al, gl), goes into its own (am, gm) and opens
    its right neighbour's (ar, gr). C = groups · UNIT tells the compiler what divides it.
    """
    channels = groups * UNIT
    channel = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    valid = channel < channels
    across = tl.cdiv(width, columns)
    row = tl.program_id(1) // across * ROWS
    first = tl.program_id(1) % across * columns
    start = tl.program_id(2).to(tl.int64) * height * width * channels
    x += 2 * start
    grad += start
    out += 2 * start if BACKWARD else start
    word, words = channel, channels
    if PAIRS:
        word, words = tl.program_id(0) * (BLOCK // 2) + tl.arange(0, BLOCK // 2), groups * (UNIT // 2)
    TYPE: tl.constexpr = x.dtype.element_ty
    x, grad, out = as_words(x, PAIRS), as_words(grad, PAIRS), as_words(out, PAIRS)
    wa, wg = load_taps(weight, channel, valid), load_taps(weight + 9 * channels, channel, valid)
    a = tl.load(bias + channel, mask=valid, other=0.0).to(tl.float32)
    g = tl.load(bias + channels + channel, mask=valid, other=0.0).to(tl.float32)
    ba, bg = (a, a, a, a), (g, g, g, g)
    am, ar, gm, gr = ba, ba, bg, bg
    here, there, rows = row_limits(row, height, words), 2 * words, (width * words).to(tl.int64)
    stride, below = (there, 2 * rows) if BACKWARD else (words, rows)
    x += (row - 1) * 2 * rows
    grad += row * rows
    out += row * below
    # The first column has no results to complete, or another program's; these are not written.
    begin = tl.maximum(first - 1, 0)
    if AHEAD:
        xa = load_six(x, begin, width, 2 * rows, there, word, words, here)
        xg = load_six(x + words, begin, width, 2 * rows, there, word, words, here)
        if BACKWARD:
            d = load_four(grad, begin - 1, width, rows, words, word, words, here)
    for column in range(begin, tl.minimum(first + columns, width) + 1):
        # All loads before the first store; the last step loads nothing ahead, being masked there.
        if AHEAD:
            na = load_six(x, column + 1, width, 2 * rows, there, word, words, here)
            ng = load_six(x + words, column + 1, width, 2 * rows, there, word, words, here)
            if BACKWARD:
                nd = load_four(grad, column, width, rows, words, word, words, here)
        else:
            xa = load_six(x, column, width, 2 * rows, there, word, words, here)
            xg = load_six(x + words, column, width, 2 * rows, there, word, words, here)
            if BACKWARD:
                d = load_four(grad, column - 1, width, rows, words, word, words, here)
        s = _six_silu(xa, TYPE, PAIRS, FAST)
        al = add_column(am, s, wa[2], wa[5], wa[8])
        am = add_column(ar, s, wa[1], wa[4], wa[7])
        ar = add_column(ba, s, wa[0], wa[3], wa[6])
        s = _six_silu(xg, TYPE, PAIRS, FAST)
        gl = add_column(gm, s, wg[2], wg[5], wg[8])
        gm = add_column(gr, s, wg[1], wg[4], wg[7])
        gr = add_column(bg, s, wg[0], wg[3], wg[6])
        at = out + ((column - 1) * stride + word)
        mine = tl.where(column > first, word, words)
        for i in tl.static_range(ROWS):
            di = floats_of(d[i], TYPE, PAIRS) if BACKWARD else al[i]
            mask = mine < here[i + 1]
            _write_gate(al[i], gl[i], di, at + i * below, mask, words, TYPE, PAIRS, BACKWARD, FAST)
        if AHEAD:
            xa, xg = na, ng
            if BACKWARD:
                d = nd


@triton.jit
def through_silu(x, ds, FAST: tl.constexpr):
    """SiLU(x), and ds through it: dx."""
    sigma = logistic(x, FAST)
    silu = x * sigma
    return silu, ds * tl.fma(silu, 1.0 - sigma, sigma)


@triton.jit(do_not_specialize=SIZES)
def spread_kernel(
    x, weight, inner, dx, sums, height, width, groups, columns,
    UNIT: tl.constexpr, BLOCK: tl.constexpr, FAST: tl.constexpr,
    PAIRS: tl.constexpr, AHEAD: tl.constexpr,
):  # fmt: skip
    """From `inner`, the gradient of [a, g]: dx, and this program's sums for the nine taps, the bias and all of dx.

    channels = groups · UNIT counts both halves here; l, m, r are the columns of `inner` to the left, here, and to the
    right. SiLU(x) is zero outside the picture, so it masks the sums of the taps; the sum of the bias is over columns
    that this program owns, and zero outside the picture by the load. dx is not zero in rows below the picture (SiLU's
    slope at 0 is 1/2), so they are taken zero times.
    """
    channels = groups * UNIT
    channel = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    valid = channel < channels
    across = tl.cdiv(width, columns)
    row = tl.program_id(1) // across * ROWS
    first = tl.program_id(1) % across * columns
    start = tl.program_id(2).to(tl.int64) * height * width * channels
    x += start
    inner += start
    dx += start
    word, words = channel, channels
    if PAIRS:
        word, words = tl.program_id(0) * (BLOCK // 2) + tl.arange(0, BLOCK // 2), groups * (UNIT // 2)
    TYPE: tl.constexpr = x.dtype.element_ty
    x, inner, dx = as_words(x, PAIRS), as_words(inner, PAIRS), as_words(dx, PAIRS)
    k = load_taps(weight, channel, valid)
    zero = tl.zeros((BLOCK,), tl.float32)
    nothing = (zero, zero, zero, zero)
    w0, w1, w2, w3, w4, w5, w6, w7, w8, b, all_dx = zero, zero, zero, zero, zero, zero, zero, zero, zero, zero, zero
    here, rows = row_limits(row, height, words), (width * words).to(tl.int64)
    x += row * rows
    inner += (row - 1) * rows
    dx += row * rows
    # l and m must start from two loads: see the head of this module.
    l = six_floats(load_six(inner, first - 1, width, rows, words, word, words, here), TYPE, PAIRS)  # noqa: E741
    m = six_floats(load_six(inner, first, width, rows, words, word, words, here), TYPE, PAIRS)
    if AHEAD:
        xr = load_six(inner, first + 1, width, rows, words, word, words, here)
        v = load_four(x, first, width, rows, words, word, words, here)
    for column in range(first, tl.minimum(first + columns, width)):
        if AHEAD:
            nr = load_six(inner, column + 2, width, rows, words, word, words, here)
            nv = load_four(x, column + 1, width, rows, words, word, words, here)
        else:
            xr = load_six(inner, column + 1, width, rows, words, word, words, here)
            v = load_four(x, column, width, rows, words, word, words, here)
        r = six_floats(xr, TYPE, PAIRS)
        ds = add_column(nothing, l, k[8], k[5], k[2])
        ds = add_column(ds, m, k[7], k[4], k[1])
        ds = add_column(ds, r, k[6], k[3], k[0])
        at = dx + (column * words + word)
        for i in tl.static_range(ROWS):
            xi = floats_of(v[i], TYPE, PAIRS)
            s, di = through_silu(xi, ds[i], FAST)
            tl.store(at + i * rows, packed(di, TYPE, PAIRS, FAST), mask=word < here[i + 1])
            w0 = tl.fma(s, r[i + 2], w0)
            w1 = tl.fma(s, m[i + 2], w1)
            w2 = tl.fma(s, l[i + 2], w2)
            w3 = tl.fma(s, r[i + 1], w3)
            w4 = tl.fma(s, m[i + 1], w4)
            w5 = tl.fma(s, l[i + 1], w5)
            w6 = tl.fma(s, r[i], w6)
            w7 = tl.fma(s, m[i], w7)
            w8 = tl.fma(s, l[i], w8)
            b += m[i + 1]
            all_dx += di * tl.where(here[i + 1] > 0, 1.0, 0.0)
        l, m = m, r  # noqa: E741
        if AHEAD:
            xr, v = nr, nv
    program = tl.program_id(2) * tl.num_programs(1) + tl.program_id(1)
    at = sums + program.to(tl.int64) * SUMS * channels + channel
    total = (w0, w1, w2, w3, w4, w5, w6, w7, w8, b, all_dx)
    for i in tl.static_range(SUMS):
        tl.store(at + i * channels, total[i], mask=valid)
