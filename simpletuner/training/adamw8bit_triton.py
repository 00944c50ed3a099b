"""Room 8, Step: Adam's update of weights whose states are kept in 8 bits, in one pass over memory: 10 bytes a bf16 weight.

As ``adamw_triton``: one launch for all tensors by tables of addresses, with all that changes from step to step on the device.
Every block of 256 numbers is read through its map and scale, updated in float32, scaled by its largest magnitude and written
as the nearest code, as ``eight_bits`` has it. bf16 weights are rounded at random.

The nearest code is not searched but computed. How many cells lie below a number is a piecewise linear function of it, with
one piece a decade, each flatter than the one before: so it is the least of seven lines, at whatever decade. A cell's middle
is its code's number, and the border of two cells of one decade is the limit between their codes; between two decades the
limit lies 0.2 cells above the border, next to 0 and 1 at 0.19 (0.14 without signs) and -0.25 cells from one. A quarter of a
cell is taken off, so the guess is the code or the one below it, whatever the rounding (0.05 cells are some thousand times
float32's), and one look at the exact limit between these two decides. ``tests/unit/test_adamw8bit.py`` has every limit.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import triton
import triton.language as tl

from simpletuner.training import eight_bits
from simpletuner.training.adamw_triton import ALIGNMENT, _rounded

BLOCK = eight_bits.BLOCK
ROWS, TURNS, WARPS = 8, 2, 8  # blocks a turn, one a warp; turns a program
COLUMNS = 6  # weight, gradient, codes of mean and square, scales of mean and square
_SMALLEST = tl.constexpr(eight_bits.SMALLEST)
_BLOCK = tl.constexpr(BLOCK)


@triton.jit
def cells(y, FIRST: tl.constexpr):
    """Cells below y in [0, 1], plus 0.75; ``FIRST`` is how many the lowest decade has."""
    found = y * (FIRST * 1e6 / 0.9) + (0.75 - FIRST / 9)
    for decade in tl.static_range(1, 7):
        count = FIRST * 2**decade
        found = tl.minimum(found, y * (count * 10.0 ** (6 - decade) / 0.9) + (0.75 + count - FIRST - count / 9))
    return found


@triton.jit
def _looked_up(table, index):
    """The table's numbers at these places, by way of shared memory."""
    flat = tl.gather(table, tl.reshape(index, [index.numel]), 0)
    return tl.reshape(flat, index.shape)


@triton.jit
def nearest(x, limits, SIGNED: tl.constexpr):
    """The code of x in [-1, 1]; ``limits`` as in ``eight_bits.tables``."""
    if SIGNED:
        below = cells(tl.abs(x), 1).to(tl.int32)
        place = tl.where(x < 0, 127 - below, 128 + below)
        code = place - 1 + (x >= _looked_up(limits, place)).to(tl.int32)
    else:
        place = cells(x, 2).to(tl.int32)
        code = place + (x >= _looked_up(limits, place)).to(tl.int32)
    return code.to(tl.uint8)


@triton.jit
def _written(value, codes, scales, at, row, mask, limits, SIGNED: tl.constexpr):
    """Write a state's rows in 8 bits."""
    scale = tl.maximum(tl.max(tl.abs(value), 1), _SMALLEST)
    x = value * (1.0 / scale)[:, None]
    tl.store(codes + at, nearest(x, limits, SIGNED), mask=mask[:, None])
    tl.store(scales + row, scale, mask=mask)


@triton.jit
def _read(codes, scales, at, row, mask, numbers):
    """A state's rows in float32."""
    code = tl.load(codes + at, mask=mask[:, None], other=0).to(tl.int32)
    return _looked_up(numbers, code) * tl.load(scales + row, mask=mask, other=0.0)[:, None]


@triton.jit
def _bits(seed, step, first, ROWS: tl.constexpr):
    """[ROWS, BLOCK] uint32, 16 random bits each: eight numbers share a draw of 128."""
    lanes: tl.constexpr = _BLOCK // 8
    draw = first + tl.arange(0, ROWS).to(tl.uint32)[:, None] * lanes + tl.arange(0, lanes).to(tl.uint32)[None, :]
    none = tl.zeros_like(draw)
    r0, r1, r2, r3 = tl.philox(seed, draw, none + step.to(tl.uint32), none, none, 7)
    whole = tl.join(tl.join(r0, r1), tl.join(r2, r3))
    return tl.reshape(tl.join(whole, whole >> 16), [ROWS, _BLOCK])


@triton.jit
def _address(table, index, TYPE: tl.constexpr, ALIGNED: tl.constexpr):
    """The pointer that the table holds; its alignment was checked by ``kind``."""
    pointer = tl.load(table + index).to(tl.pointer_type(TYPE))
    return tl.multiple_of(pointer, 16) if ALIGNED else pointer


@triton.jit(do_not_specialize=["seed", "tensors"])
def adam8bit_kernel(
    table, chunks, control, maps, seed, eps, weight_decay, tensors,
    ROWS: tl.constexpr, TURNS: tl.constexpr, ALIGNED: tl.constexpr, HALF: tl.constexpr,
):  # fmt: skip
    """One program updates TURNS times ROWS blocks of one tensor.

    table: [7, tensors] int64: addresses of weights, gradients, codes of means and squares, their scales, then lengths.
    chunks: [programs, 2] int32: tensor, and which piece of it. control: [8] float32, see ``guarded_adam.control_of``. maps:
    ``eight_bits.tables``. Formulas and names as in ``guarded_adam.adam_where``.
    """
    program = tl.program_id(0)
    if tl.load(control + 7) > 0:
        tensor = tl.load(chunks + 2 * program)
        start = tl.load(chunks + 2 * program + 1).to(tl.int64) * (ROWS * TURNS)
        TYPE: tl.constexpr = tl.bfloat16 if HALF else tl.float32
        weight = _address(table, tensor, TYPE, ALIGNED)
        grad = _address(table, tensors + tensor, TYPE, ALIGNED)
        mean_codes = _address(table, 2 * tensors + tensor, tl.uint8, ALIGNED)
        square_codes = _address(table, 3 * tensors + tensor, tl.uint8, ALIGNED)
        mean_scales = _address(table, 4 * tensors + tensor, tl.float32, False)
        square_scales = _address(table, 5 * tensors + tensor, tl.float32, False)
        rows = tl.load(table + 6 * tensors + tensor) // _BLOCK
        place = tl.arange(0, _BLOCK)
        signed, unsigned = tl.load(maps + place), tl.load(maps + 256 + place)
        signed_limits, unsigned_limits = tl.load(maps + 512 + place), tl.load(maps + 768 + place)
        rate, scale, step = tl.load(control), tl.load(control + 1), tl.load(control + 6)
        new_mean, new_square = tl.load(control + 2), tl.load(control + 3)
        of_mean, of_square = tl.load(control + 4), tl.load(control + 5)
        for turn in tl.static_range(TURNS):
            row = start + turn * ROWS + tl.arange(0, ROWS)
            mask = row < rows
            at = row[:, None] * _BLOCK + place[None, :]
            w = tl.load(weight + at, mask=mask[:, None], other=0.0).to(tl.float32)
            g = tl.load(grad + at, mask=mask[:, None], other=0.0).to(tl.float32) * scale
            m = _read(mean_codes, mean_scales, at, row, mask, signed)
            v = _read(square_codes, square_scales, at, row, mask, unsigned)
            m += new_mean * (g - m)
            v += new_square * (g * g - v)
            w = w * (1.0 - rate * weight_decay) - rate * of_mean * m / (tl.sqrt(v * of_square) + eps)
            if HALF:
                first = (program * TURNS + turn).to(tl.uint32) * (ROWS * _BLOCK // 8)
                tl.store(weight + at, _rounded(w, _bits(seed, step, first, ROWS)), mask=mask[:, None])
            else:
                tl.store(weight + at, w, mask=mask[:, None])
            _written(m, mean_codes, mean_scales, at, row, mask, signed_limits, True)
            _written(v, square_codes, square_scales, at, row, mask, unsigned_limits, False)


class Kind(NamedTuple):
    """How the kernel can read a parameter: in loads of several numbers or one by one; whether it is bf16 or float32."""

    aligned: bool
    half: bool

    @property
    def stream(self) -> int:
        """Added to the seed, so that kinds share no random bits; ``adamw_triton.Kind`` has other numbers."""
        return 16 + self.aligned


def kind(tensors: tuple[torch.Tensor, ...]) -> Kind | None:
    """Of a parameter's (weight, gradient, codes and codes, scales and scales): None where it cannot be read."""
    weight, grad, *states = tensors
    if weight.dtype not in (torch.bfloat16, torch.float32) or grad.dtype is not weight.dtype:
        return None
    if not all(t.is_contiguous() for t in tensors) or any(len(scale) * BLOCK != weight.numel() for scale in states[2:]):
        return None
    aligned = all(t.data_ptr() % ALIGNMENT == 0 for t in tensors[:4])
    return Kind(aligned, weight.dtype is torch.bfloat16)


def chunks_of(lengths: Sequence[int]) -> torch.Tensor:
    """[programs, 2] int32 on the CPU: (tensor, piece) for every piece of every tensor."""
    size = BLOCK * ROWS * TURNS
    rows = [(tensor, piece) for tensor, length in enumerate(lengths) for piece in range(-(-length // size))]
    return torch.tensor(rows, dtype=torch.int32)


def launch(
    table: torch.Tensor,
    chunks: torch.Tensor,
    control: torch.Tensor,
    seed: int,
    numbers: tuple[float, float],
    kind: Kind,
) -> None:
    """Update all tensors of a table; arguments as of ``adamw_triton.launch``, the table as of ``adam8bit_kernel``."""
    maps = eight_bits.tables(table.device)
    constants = {"ROWS": ROWS, "TURNS": TURNS, "ALIGNED": kind.aligned, "HALF": kind.half, "num_warps": WARPS}
    adam8bit_kernel[(len(chunks),)](table, chunks, control, maps, seed, *numbers, table.shape[1], **constants)
