"""The Triton kernels behind ``residual.py``: one launch forward, two backward (one without sums), every sum in float32.

Norms. A program walks along a run of tokens of one picture with a whole row of channels in registers: statistics and
their gradients never leave the chip, shift and scale are read once a run, sums over tokens are kept a channel a place. A
row is two pieces, the largest power of two below it and what is left (2240 = 2048 + 192 of 256): one power of two for
all would leave 45 % of the lanes idle. Loads of the next tokens are under way while one is worked on: by STAGES copies to
shared memory, and what is too small for those (two numbers a token) by hand.

Gates need no row: a program owns some columns of a run, and the columns are what lies across its threads.

Sums over tokens. A program writes those of its run to its own row of a float32 buffer [B, runs, sums, C], and one launch
adds the runs of every picture, and of all pictures for a bias: no atomics, the same bits every run.

Every load and store is masked where it can be outside; the start of a picture is a 64-bit offset, offsets inside one
picture are checked to fit 32 bits. What is compiled anew is a dtype and the number of channels. ``depthwise_programs.py``
tells what a loop may carry.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl

from simpletuner.models.sana.kernels import widest_dtype

LARGEST = 2**31 - 1
FINISH_ROWS, FINISH_COLUMNS, FINISH_WARPS = 128, 32, 8


class Plan(NamedTuple):
    """How a launch is cut into programs.

    Attributes:
        warps: of 32 threads.
        programs: as many are enough to fill a GPU, so runs are made this long.
        fewest: tokens of a run; for gates a power of two, which is also loaded at a time.
        stages: of the copies to shared memory: 1 none, 3 two tokens ahead (2 is one buffer, which hides nothing).
        registers: the most of a thread; 0 leaves it to the compiler.
    """

    warps: int
    programs: int
    fewest: int
    stages: int = 1
    registers: int = 0


NORM, NORM_BACKWARD = Plan(4, 792, 4, 3), Plan(4, 396, 4, 3)  # as many as an H100 holds at a time
GATE, GATE_BACKWARD = Plan(4, 4096, 32), Plan(4, 2112, 32)
GATE_COLUMNS = 64


@triton.jit
def load_row(pointer, C: tl.constexpr, MAIN: tl.constexpr, REST: tl.constexpr):
    """One row of C in its two pieces, as they lie in memory, zero past the end."""
    rest = MAIN + tl.arange(0, REST)
    return tl.load(pointer + tl.arange(0, MAIN)), tl.load(pointer + rest, mask=rest < C, other=0.0)


@triton.jit
def as_floats(row):
    """Both pieces of a row in float32."""
    return row[0].to(tl.float32), row[1].to(tl.float32)


@triton.jit
def store_row(pointer, a, b, C: tl.constexpr, MAIN: tl.constexpr, REST: tl.constexpr):
    """Write the two pieces of a row of C, in the dtype that lies there."""
    rest = MAIN + tl.arange(0, REST)
    tl.store(pointer + tl.arange(0, MAIN), a.to(pointer.dtype.element_ty))
    tl.store(pointer + rest, b.to(pointer.dtype.element_ty), mask=rest < C)


@triton.jit
def _add(a, b, c, d):
    return a + c, b + d


@triton.jit
def two_means(a, b, C: tl.constexpr):
    """The means of a row and of another one, each in two pieces, by two reductions instead of four."""
    first, second = tl.reduce((a[0], b[0]), 0, _add)
    third, fourth = tl.reduce((a[1], b[1]), 0, _add)
    return (first + third) * (1.0 / C), (second + fourth) * (1.0 / C)


@triton.jit(do_not_specialize=["tokens", "rows", "run", "epsilon"])
def norm_kernel(
    x, y, modulation, s, n, statistics, tokens, rows, run, epsilon,
    C: tl.constexpr, MAIN: tl.constexpr, REST: tl.constexpr, ADD: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """ADD: s = x + y; then n and the statistics of s. `rows` of C lie between the modulations of two pictures."""
    picture = tl.program_id(1).to(tl.int64)
    start = picture * tokens * C
    x += start
    y += start
    s += start
    n += start
    statistics += picture * tokens * 2
    modulation += picture * rows * C
    shift = as_floats(load_row(modulation, C, MAIN, REST))
    scale = as_floats(load_row(modulation + C, C, MAIN, REST))
    real = MAIN + tl.arange(0, REST) < C
    first = tl.program_id(0) * run
    for token in tl.range(first, tl.minimum(first + run, tokens), num_stages=STAGES):
        a, b = as_floats(load_row(x + token * C, C, MAIN, REST))
        if ADD:
            c, d = as_floats(load_row(y + token * C, C, MAIN, REST))
            # The norm is of what is stored: backward has nothing else.
            a, b = (a + c).to(s.dtype.element_ty), (b + d).to(s.dtype.element_ty)
            store_row(s + token * C, a, b, C, MAIN, REST)
            a, b = a.to(tl.float32), b.to(tl.float32)
        mean = (tl.sum(a, 0) + tl.sum(b, 0)) * (1.0 / C)
        a, b = a - mean, tl.where(real, b - mean, 0.0)
        r = tl.rsqrt((tl.sum(a * a, 0) + tl.sum(b * b, 0)) * (1.0 / C) + epsilon)
        a, b = tl.fma(a * r, 1.0 + scale[0], shift[0]), tl.fma(b * r, 1.0 + scale[1], shift[1])
        store_row(n + token * C, a, b, C, MAIN, REST)
        tl.store(statistics + 2 * token, mean)
        tl.store(statistics + 2 * token + 1, r)


@triton.jit(do_not_specialize=["tokens", "rows", "run"])
def norm_backward_kernel(
    ds, dn, s, statistics, modulation, d, sums, tokens, rows, run,
    C: tl.constexpr, MAIN: tl.constexpr, REST: tl.constexpr,
    PICTURE: tl.constexpr, TOTAL: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """The gradient d of s, and this run's sums: PICTURE those of shift and scale, TOTAL that of d."""
    picture = tl.program_id(1).to(tl.int64)
    start = picture * tokens * C
    ds += start
    dn += start
    s += start
    d += start
    statistics += picture * tokens * 2
    scale = as_floats(load_row(modulation + picture * rows * C + C, C, MAIN, REST))
    real = MAIN + tl.arange(0, REST) < C
    zero, little = tl.zeros((MAIN,), tl.float32), tl.zeros((REST,), tl.float32)
    shift0, shift1, scale0, scale1, total0, total1 = zero, little, zero, little, zero, little
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
        if TOTAL:
            total0 += e
            total1 += f
        store_row(d + token * C, e, f, C, MAIN, REST)
        mean, r = next_mean, next_r
    SUMS: tl.constexpr = 2 * PICTURE + TOTAL
    sums += (picture * tl.num_programs(0) + tl.program_id(0)) * SUMS * C
    if PICTURE:
        store_row(sums, shift0, shift1, C, MAIN, REST)
        store_row(sums + C, scale0, scale1, C, MAIN, REST)
    if TOTAL:
        store_row(sums + 2 * PICTURE * C, total0, total1, C, MAIN, REST)


@triton.jit
def _tile(token, tokens, C: tl.constexpr, COLUMNS: tl.constexpr):
    """Offsets and mask of some tokens and of the program's columns, [ROWS, COLUMNS]."""
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    mask = (token < tokens)[:, None] & (column < C)[None, :]
    return token[:, None] * C + column[None, :], mask


@triton.jit(do_not_specialize=["tokens", "rows", "run"])
def gate_kernel(
    x, y, gate, out, tokens, rows, run, C: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr
):  # fmt: skip
    """The sum x + gate · y. `rows` of C lie between the gates of two pictures."""
    picture = tl.program_id(2).to(tl.int64)
    start = picture * tokens * C
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    factor = tl.load(gate + picture * rows * C + column, mask=column < C, other=0.0).to(tl.float32)[None, :]
    first = tl.program_id(1) * run
    for block in tl.range(first, tl.minimum(first + run, tokens), ROWS):
        offset, mask = _tile(block + tl.arange(0, ROWS), tokens, C, COLUMNS)
        a = tl.load(x + start + offset, mask=mask, other=0.0).to(tl.float32)
        b = tl.load(y + start + offset, mask=mask, other=0.0).to(tl.float32)
        tl.store(out + start + offset, tl.fma(b, factor + tl.zeros_like(b), a).to(out.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["tokens", "rows", "run"])
def gate_backward_kernel(
    grad, other, y, gate, dx, dy, sums, tokens, rows, run,
    C: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    TWO: tl.constexpr, PICTURE: tl.constexpr, TOTAL: tl.constexpr,
):  # fmt: skip
    """The gradient of y, TWO: that of x as the sum of two; this run's sums, PICTURE for the gate, TOTAL that of dy."""
    picture = tl.program_id(2).to(tl.int64)
    start = picture * tokens * C
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    factor = tl.load(gate + picture * rows * C + column, mask=column < C, other=0.0).to(tl.float32)
    product, plain = tl.zeros((ROWS, COLUMNS), tl.float32), tl.zeros((ROWS, COLUMNS), tl.float32)
    first = tl.program_id(1) * run
    for block in tl.range(first, tl.minimum(first + run, tokens), ROWS):
        offset, mask = _tile(block + tl.arange(0, ROWS), tokens, C, COLUMNS)
        g = tl.load(grad + start + offset, mask=mask, other=0.0).to(tl.float32)
        if TWO:
            g += tl.load(other + start + offset, mask=mask, other=0.0).to(tl.float32)
        if PICTURE:
            product += g * tl.load(y + start + offset, mask=mask, other=0.0).to(tl.float32)
        if TOTAL:
            plain += g
        if TWO:
            tl.store(dx + start + offset, g.to(dx.dtype.element_ty), mask=mask)
        tl.store(dy + start + offset, (g * factor[None, :]).to(dy.dtype.element_ty), mask=mask)
    SUMS: tl.constexpr = PICTURE + TOTAL
    sums += (picture * tl.num_programs(1) + tl.program_id(1)) * SUMS * C + column
    if PICTURE:
        tl.store(sums, tl.sum(product, 0), mask=column < C)
    if TOTAL:
        tl.store(sums + PICTURE * C, tl.sum(plain, 0) * factor, mask=column < C)


@triton.jit(do_not_specialize=["runs", "pictures"])
def finish_kernel(
    sums, of_picture, total, runs, pictures,
    C: tl.constexpr, EACH: tl.constexpr, TOTAL: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Add runs up: EACH sums of every picture into [B, EACH, C], and, TOTAL, the last one of all pictures into [C]."""
    line = tl.program_id(1)
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    every = line == pictures * EACH
    begin, count, which = 0, runs * pictures, EACH
    if EACH > 0:
        begin = tl.where(every, 0, line // EACH * runs)
        count = tl.where(every, runs * pictures, runs)
        which = tl.where(every, EACH, line % EACH)
    found = tl.zeros((ROWS, COLUMNS), tl.float32)
    for block in tl.range(0, count, ROWS):
        row = block + tl.arange(0, ROWS)
        mask = (row < count)[:, None] & (column < C)[None, :]
        place = (begin + row).to(tl.int64) * (EACH + TOTAL) + which
        found += tl.load(sums + place[:, None] * C + column[None, :], mask=mask, other=0.0)
    result = tl.sum(found, 0)
    if EACH > 0:
        to = of_picture + line.to(tl.int64) * C + column
        tl.store(to, result.to(of_picture.dtype.element_ty), mask=(column < C) & (every == 0))
    if TOTAL:
        tl.store(total + column, result.to(total.dtype.element_ty), mask=(column < C) & every)


def row_pieces(channels: int) -> dict[str, int]:
    """MAIN, the largest power of two below C, and REST, the least that holds what is left."""
    main = max(triton.next_power_of_2(channels) // 2, 1)
    return {"C": channels, "MAIN": main, "REST": triton.next_power_of_2(max(channels - main, 1))}


def launch_options(plan: Plan) -> dict[str, int]:
    """What Triton's compiler is told of a plan."""
    registers = plan.registers if torch.version.hip is None else 0  # AMD's compiler has no such option
    return {"num_warps": plan.warps} | ({"maxnreg": registers} if registers else {})


def cut_into_runs(plan: Plan, tokens: torch.Tensor, columns: int = 1) -> tuple[int, int]:
    """(runs of a picture, tokens of a run), by the number of programs that is enough; `columns` of them share a run."""
    batch, count, _ = tokens.shape
    runs = max(1, plan.programs // (batch * columns))
    run = max(triton.cdiv(count, runs), plan.fewest)
    if columns > 1:
        run = triton.cdiv(run, plan.fewest) * plan.fewest
    return triton.cdiv(count, run), run


def table_rows(table: torch.Tensor) -> tuple[torch.Tensor, int]:
    """Rows of a larger table as they lie there, and how many lie between two pictures."""
    channels = table.shape[2]
    if table.stride(2) != 1 or table.stride(1) != channels or table.stride(0) % channels:
        table = table.contiguous()
    return table, table.stride(0) // channels


def all_contiguous(*tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """The tensors, contiguous; the first is [B, N, C]. Raises ValueError where 32-bit offsets do not reach."""
    if tensors[0].shape[1] * tensors[0].shape[2] > LARGEST:
        raise ValueError(f"one picture has {tensors[0][0].numel()} values, more than 32-bit offsets reach")
    return tuple(tensor.contiguous() for tensor in tensors)


def finish_sums(
    sums: torch.Tensor, table: torch.Tensor, bias: torch.Tensor | None, summed: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """From sums [B, runs, sums, C]: the gradient of the table's rows and that of the bias, each empty if not wanted."""
    batch, runs, _, channels = sums.shape
    of_table = torch.empty(table.shape if summed else (0,), dtype=table.dtype, device=table.device)
    of_bias = sums.new_empty(0) if bias is None else torch.empty_like(bias)
    each = table.shape[1] if summed else 0
    lines = batch * each + (bias is not None)
    if lines and sums.numel():
        columns = triton.cdiv(channels, FINISH_COLUMNS)
        constants = {"C": channels, "EACH": each, "TOTAL": bias is not None}
        finish_kernel[(columns, lines)](
            *(sums, of_table, of_bias, runs, batch),
            **constants, ROWS=FINISH_ROWS, COLUMNS=FINISH_COLUMNS, num_warps=FINISH_WARPS,
        )  # fmt: skip
        return of_table, of_bias
    return of_table.zero_(), of_bias.zero_()


def empty_sums(x: torch.Tensor, runs: int, each: int, bias: torch.Tensor | None) -> torch.Tensor:
    """What programs write the sums of their runs to: [B, runs, sums, C] float32, `each` of every picture and one for a bias."""
    count = each + (bias is not None)
    return x.new_empty(len(x), runs if count else 0, count, x.shape[2], dtype=torch.float32)


def gated(x: torch.Tensor, y: torch.Tensor, gate: torch.Tensor) -> torch.Tensor:
    """As ``residual.plain_gated``, on the device of x."""
    (x, y), (gate, rows) = all_contiguous(x, y), table_rows(gate)
    out = torch.empty_like(x, dtype=widest_dtype(x, y, gate))
    if out.numel():
        constants = {"C": x.shape[2], "ROWS": GATE.fewest, "COLUMNS": GATE_COLUMNS}
        columns = triton.cdiv(x.shape[2], GATE_COLUMNS)
        runs, run = cut_into_runs(GATE, x, columns)
        gate_kernel[(columns, runs, len(x))](
            x, y, gate, out, x.shape[1], rows, run, **constants, **launch_options(GATE)
        )
    return out


def gated_backward(
    grad: torch.Tensor,
    other: torch.Tensor | None,
    y: torch.Tensor | None,
    gate: torch.Tensor,
    bias: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """As ``residual.plain_gated_backward``, on the device of the gradient."""
    grad, second, factor = all_contiguous(grad, grad if other is None else other, grad if y is None else y)
    gate, rows = table_rows(gate)
    dx, dy = grad.new_empty(0 if other is None else grad.shape), torch.empty_like(factor)
    columns, plan = triton.cdiv(grad.shape[2], GATE_COLUMNS), GATE_BACKWARD
    runs, run = cut_into_runs(plan, grad, columns)
    sums = empty_sums(grad, runs, int(y is not None), bias)
    if grad.numel():
        constants: dict[str, Any] = {"C": grad.shape[2], "ROWS": plan.fewest, "COLUMNS": GATE_COLUMNS}
        constants |= {"TWO": other is not None, "PICTURE": y is not None, "TOTAL": bias is not None}
        gate_backward_kernel[(columns, runs, len(grad))](
            *(grad, second, factor, gate, dx, dy, sums, grad.shape[1], rows, run), **constants, **launch_options(plan)
        )
    return dx, dy, *finish_sums(sums, gate, bias, y is not None)


def norm(
    x: torch.Tensor, y: torch.Tensor | None, modulation: torch.Tensor, epsilon: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """As ``residual.norm_forward``, on the device of x."""
    (x, second), (modulation, rows) = all_contiguous(x, x if y is None else y), table_rows(modulation)
    s = x.new_empty(0) if y is None else torch.empty_like(x, dtype=widest_dtype(x, y))
    n = torch.empty_like(x, dtype=x.dtype if y is None else widest_dtype(s, modulation))
    statistics = x.new_empty(*x.shape[:2], 2, dtype=torch.float32)
    if x.numel():
        runs, run = cut_into_runs(NORM, x)
        constants = {"ADD": y is not None, "STAGES": NORM.stages} | row_pieces(x.shape[2]) | launch_options(NORM)
        norm_kernel[(runs, len(x))](
            *(x, second, modulation, s, n, statistics, x.shape[1], rows, run, epsilon), **constants
        )
    return s, n, statistics


def norm_backward(
    grads: tuple[torch.Tensor, torch.Tensor],
    s: torch.Tensor,
    statistics: torch.Tensor,
    modulation: torch.Tensor,
    bias: torch.Tensor | None,
    summed: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """As ``residual.plain_norm_backward``, on the device of s."""
    (ds, dn, s, statistics), (modulation, rows) = all_contiguous(*grads, s, statistics), table_rows(modulation)
    d = torch.empty_like(s)
    runs, run = cut_into_runs(NORM_BACKWARD, s)
    sums = empty_sums(s, runs, 2 * summed, bias)
    if s.numel():
        constants: dict[str, Any] = {"PICTURE": summed, "TOTAL": bias is not None, "STAGES": NORM_BACKWARD.stages}
        constants |= row_pieces(s.shape[2]) | launch_options(NORM_BACKWARD)
        norm_backward_kernel[(runs, len(s))](
            *(ds, dn, s, statistics, modulation, d, sums, s.shape[1], rows, run), **constants
        )
    return d, *finish_sums(sums, modulation, bias, summed)
