"""Room 8, Step: Adam's update in one pass over memory: 14 (bf16), 18 (with rests) or 28 bytes (float32) a weight, not several times as many.

In: tables of addresses, so that one launch serves all tensors of a model; numbers that change from step to step lie on
the device, so that a step can be captured in a CUDA graph and nothing waits. Out: weights and states, written in place,
or left as they are where the step is not to be taken. What bf16 weights cannot hold is rounded at random, as in
``adamw_bf16.stochastic_round``, or kept as a rest beside them (Kahan's sum).

Random bits are Philox 4x32 with seven rounds over (place, step), keyed by the seed: two elements share a draw of 128 bits,
of which they need 96. Source: Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3", table 2 (seven rounds pass).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import triton
import triton.language as tl

BLOCK, WARPS = 4096, 8
COLUMNS = 5  # weight, gradient, mean, square and rest
ALIGNMENT = 16  # bytes; what the loads of eight numbers need of every address
WIDTH = 8  # numbers a load, where eight divide the tensor's length; else one


@triton.jit
def _rounded(value, bits):
    """Float32 to bf16 by 16 random bits: added below the last kept bit, and cut."""
    whole = value.to(tl.int32, bitcast=True) + (bits & 0xFFFF).to(tl.int32)
    return (whole & -65536).to(tl.float32, bitcast=True).to(tl.bfloat16)


@triton.jit
def _one(
    weight, grad, mean, square, rest, at, length, control, eps, weight_decay, b0, b1, b2,
    HALF: tl.constexpr, KAHAN: tl.constexpr,
):  # fmt: skip
    """The update of the elements at these places; formulas and names as in ``guarded_adam.adam_where``."""
    mask = at < length
    rate, scale = tl.load(control), tl.load(control + 1)
    w = tl.load(weight + at, mask=mask, other=0.0).to(tl.float32)
    g = tl.load(grad + at, mask=mask, other=0.0).to(tl.float32) * scale
    m = tl.load(mean + at, mask=mask, other=0.0).to(tl.float32)
    v = tl.load(square + at, mask=mask, other=0.0).to(tl.float32)
    m += tl.load(control + 2) * (g - m)
    v += tl.load(control + 3) * (g * g - v)
    change = -rate * tl.load(control + 4) * m / (tl.sqrt(v * tl.load(control + 5)) + eps)
    w *= 1.0 - rate * weight_decay
    if KAHAN:
        r = tl.load(rest + at, mask=mask, other=0.0).to(tl.float32) + change
        new = (w + r).to(tl.bfloat16)
        tl.store(weight + at, new, mask=mask)
        tl.store(rest + at, (r + (w - new.to(tl.float32))).to(tl.bfloat16), mask=mask)
        tl.store(mean + at, m.to(tl.bfloat16), mask=mask)
        tl.store(square + at, v.to(tl.bfloat16), mask=mask)
    elif HALF:
        tl.store(weight + at, _rounded(w + change, b0), mask=mask)
        tl.store(mean + at, _rounded(m, b1), mask=mask)
        tl.store(square + at, _rounded(v, b2), mask=mask)
    else:
        tl.store(weight + at, w + change, mask=mask)
        tl.store(mean + at, m, mask=mask)
        tl.store(square + at, v, mask=mask)


@triton.jit
def _address(table, index, WIDTH: tl.constexpr, HALF: tl.constexpr):
    """The pointer that the table holds; its alignment was checked by ``kind``."""
    if HALF:
        pointer = tl.load(table + index).to(tl.pointer_type(tl.bfloat16))
    else:
        pointer = tl.load(table + index).to(tl.pointer_type(tl.float32))
    return tl.multiple_of(pointer, 2 * WIDTH)


@triton.jit
def adam_kernel(
    table, chunks, control, seed, eps, weight_decay, tensors,
    BLOCK: tl.constexpr, WIDTH: tl.constexpr, HALF: tl.constexpr, KAHAN: tl.constexpr,
):  # fmt: skip
    """One program updates BLOCK elements of one tensor, in two halves that share their random bits.

    table: [6, tensors] int64: addresses of weights, gradients, means, squares and rests, then lengths. chunks:
    [programs, 2] int32: tensor, and which block of it. control: [8] float32, see ``guarded_adam.control_of``.
    """
    program = tl.program_id(0)
    if tl.load(control + 7) > 0:
        tensor = tl.load(chunks + 2 * program)
        start = tl.load(chunks + 2 * program + 1).to(tl.int64) * BLOCK
        weight = _address(table, tensor, WIDTH, HALF)
        grad = _address(table, tensors + tensor, WIDTH, HALF)
        mean = _address(table, 2 * tensors + tensor, WIDTH, HALF)
        square = _address(table, 3 * tensors + tensor, WIDTH, HALF)
        rest = _address(table, 4 * tensors + tensor, WIDTH, HALF)
        length = tl.multiple_of(tl.load(table + 5 * tensors + tensor), WIDTH)
        place = tl.arange(0, BLOCK // 2)
        draw = program.to(tl.uint32) * (BLOCK // 2) + place.to(tl.uint32)
        none = tl.zeros_like(draw)
        r0, r1, r2, r3 = tl.philox(seed, draw, none + tl.load(control + 6).to(tl.uint32), none, none, 7)
        at = start + place
        _one(weight, grad, mean, square, rest, at, length, control, eps, weight_decay, r0, r0 >> 16, r1, HALF, KAHAN)
        at += BLOCK // 2
        _one(weight, grad, mean, square, rest, at, length, control, eps, weight_decay, r2, r2 >> 16, r3, HALF, KAHAN)


class Kind(NamedTuple):
    """How the kernel can read a parameter: numbers a load, whether they are bf16 or float32, and whether rests are kept."""

    width: int
    half: bool
    kahan: bool

    @property
    def stream(self) -> int:
        """Added to the seed, so that two kinds of bf16 tensors share no random bits."""
        return self.width


def kind(tensors: tuple[torch.Tensor, ...]) -> Kind | None:
    """Of a parameter's (weight, gradient, mean, square[, rest]): dense bf16 or float32; None where it cannot be read."""
    dtype = tensors[0].dtype
    if dtype not in (torch.bfloat16, torch.float32) or not tensors[0].numel():
        return None
    if not all(t.dtype is dtype and t.is_contiguous() for t in tensors):
        return None
    aligned = all(t.data_ptr() % ALIGNMENT == 0 for t in tensors) and tensors[0].numel() % WIDTH == 0
    return Kind(WIDTH if aligned else 1, dtype is torch.bfloat16, len(tensors) == COLUMNS)


def chunks_of(lengths: Sequence[int]) -> torch.Tensor:
    """[programs, 2] int32 on the CPU: (tensor, block) for every block of every tensor."""
    rows = [(tensor, block) for tensor, length in enumerate(lengths) for block in range(-(-length // BLOCK))]
    return torch.tensor(rows, dtype=torch.int32)


def launch(
    table: torch.Tensor,
    chunks: torch.Tensor,
    control: torch.Tensor,
    seed: int,
    numbers: tuple[float, float],
    kind: Kind,
) -> None:
    """Update all tensors of a table.

    Args:
        table: [6, tensors] int64 on the device, see ``adam_kernel``.
        chunks: [programs, 2] int32 on the device.
        control: [8] float32 on the device, from ``guarded_adam.control_of``.
        seed: Key of the random bits, below 2^63.
        numbers: eps and weight decay.
        kind: Of all tensors of the table.
    """
    constants = {"BLOCK": BLOCK, "WIDTH": kind.width, "HALF": kind.half, "KAHAN": kind.kahan, "num_warps": WARPS}
    adam_kernel[(len(chunks),)](table, chunks, control, seed, *numbers, table.shape[1], **constants)
