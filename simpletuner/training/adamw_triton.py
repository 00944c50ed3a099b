"""AdamW in one pass over memory, for bf16 or float32: 14 or 28 bytes a weight instead of two to four times as many.

In: tables of addresses, so that one launch serves all tensors of a model; numbers that change from step to step lie on
the device, so that a step can be captured in a CUDA graph and nothing waits. Out: weights and states, written in place,
or left as they are where the step is not to be taken. Rounding to bf16 is stochastic, as in ``adamw_bf16.stochastic_round``.

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
ALIGNMENT = 16  # bytes; what the loads of eight numbers need of every address
WIDTH = 8  # numbers a load, where eight divide the tensor's length; else one


@triton.jit
def _rounded(value, bits):
    """Float32 to bf16 by 16 random bits: added below the last kept bit, and cut."""
    whole = value.to(tl.int32, bitcast=True) + (bits & 0xFFFF).to(tl.int32)
    return (whole & -65536).to(tl.float32, bitcast=True).to(tl.bfloat16)


@triton.jit
def _one(
    weight, grad, mean, square, at, length, rate, decay, scale, correction1, correction2, beta1, beta2, eps, b0, b1, b2
):
    """The update of the elements at these places."""
    mask = at < length
    w = tl.load(weight + at, mask=mask, other=0.0).to(tl.float32)
    g = tl.load(grad + at, mask=mask, other=0.0).to(tl.float32) * scale
    m = tl.load(mean + at, mask=mask, other=0.0).to(tl.float32)
    v = tl.load(square + at, mask=mask, other=0.0).to(tl.float32)
    m += (1.0 - beta1) * (g - m)
    v = beta2 * v + (1.0 - beta2) * g * g
    w = w * decay - rate / correction1 * m / (tl.sqrt(v / correction2) + eps)
    if weight.dtype.element_ty == tl.bfloat16:
        tl.store(weight + at, _rounded(w, b0), mask=mask)
        tl.store(mean + at, _rounded(m, b1), mask=mask)
        tl.store(square + at, _rounded(v, b2), mask=mask)
    else:
        tl.store(weight + at, w, mask=mask)
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
def adamw_kernel(
    table,
    chunks,
    control,
    seed,
    beta1,
    beta2,
    eps,
    weight_decay,
    tensors,
    BLOCK: tl.constexpr,
    WIDTH: tl.constexpr,
    HALF: tl.constexpr,
):
    """One program updates BLOCK elements of one tensor, in two halves that share their random bits.

    table: [5, tensors] int64: addresses of weights, gradients, means and squares, then lengths. chunks: [programs, 2]
    int32: tensor, and which block of it. control: [6] float32: rate, scale of the gradients, 1 - beta1^t, 1 - beta2^t,
    t, and 1 where the step is taken.
    """
    program = tl.program_id(0)
    if tl.load(control + 5) > 0:
        tensor = tl.load(chunks + 2 * program)
        start = tl.load(chunks + 2 * program + 1).to(tl.int64) * BLOCK
        weight, grad = _address(table, tensor, WIDTH, HALF), _address(table, tensors + tensor, WIDTH, HALF)
        mean, square = (
            _address(table, 2 * tensors + tensor, WIDTH, HALF),
            _address(table, 3 * tensors + tensor, WIDTH, HALF),
        )
        length = tl.multiple_of(tl.load(table + 4 * tensors + tensor), WIDTH)
        rate, scale = tl.load(control), tl.load(control + 1)
        correction1, correction2 = tl.load(control + 2), tl.load(control + 3)
        decay = 1.0 - rate * weight_decay
        place = tl.arange(0, BLOCK // 2)
        draw = program.to(tl.uint32) * (BLOCK // 2) + place.to(tl.uint32)
        none = tl.zeros_like(draw)
        r0, r1, r2, r3 = tl.philox(seed, draw, none + tl.load(control + 4).to(tl.uint32), none, none, 7)
        at = start + place
        _one(
            weight,
            grad,
            mean,
            square,
            at,
            length,
            rate,
            decay,
            scale,
            correction1,
            correction2,
            beta1,
            beta2,
            eps,
            r0,
            r0 >> 16,
            r1,
        )
        _one(
            weight,
            grad,
            mean,
            square,
            at + BLOCK // 2,
            length,
            rate,
            decay,
            scale,
            correction1,
            correction2,
            beta1,
            beta2,
            eps,
            r2,
            r2 >> 16,
            r3,
        )


class Kind(NamedTuple):
    """How the kernel can read a parameter: numbers a load, and whether they are bf16 or float32."""

    width: int
    half: bool


def kind(tensors: tuple[torch.Tensor, ...]) -> Kind | None:
    """Of a parameter's (weight, gradient, mean, square): dense bf16 or float32, or None where the kernel cannot read it."""
    dtype = tensors[0].dtype
    if dtype not in (torch.bfloat16, torch.float32) or not tensors[0].numel():
        return None
    if not all(t.dtype is dtype and t.is_contiguous() for t in tensors):
        return None
    aligned = all(t.data_ptr() % ALIGNMENT == 0 for t in tensors) and tensors[0].numel() % WIDTH == 0
    return Kind(WIDTH if aligned else 1, dtype is torch.bfloat16)


def chunks_of(lengths: Sequence[int]) -> torch.Tensor:
    """[programs, 2] int32 on the CPU: (tensor, block) for every block of every tensor."""
    rows = [(tensor, block) for tensor, length in enumerate(lengths) for block in range(-(-length // BLOCK))]
    return torch.tensor(rows, dtype=torch.int32)


def launch(
    table: torch.Tensor, chunks: torch.Tensor, control: torch.Tensor, seed: int, numbers: tuple[float, ...], kind: Kind
) -> None:
    """Update all tensors of a table.

    Args:
        table: [5, tensors] int64 on the device, see ``adamw_kernel``.
        chunks: [programs, 2] int32 on the device.
        control: [6] float32 on the device, from ``adamw_bf16.control_of``.
        seed: Key of the random bits, below 2^63.
        numbers: beta1, beta2, eps and weight decay.
        kind: Of all tensors of the table.
    """
    grid = (len(chunks),)
    adamw_kernel[grid](
        table,
        chunks,
        control,
        seed,
        *numbers,
        table.shape[1],
        BLOCK=BLOCK,
        WIDTH=kind.width,
        HALF=kind.half,
        num_warps=WARPS,
    )
