"""The Triton kernels behind ``depthwise.py``: launches of the programs in ``depthwise_programs.py``.

Backward is one launch of ``depthwise_fused.py`` where it can be (IN_ONE): it moves half the bytes with about a tenth more
instructions, and half as many warps fit a multiprocessor; 0.41 against 0.45 ms at batch 8 on an H100. Else it is two.

There are no atomics and no autotuning: a program writes only what it alone owns, and its sums go to its own row of a
float32 buffer [programs, 11, 2C] that ``torch.sum`` adds up: the same bits every run. Offsets inside one picture are
checked to fit 32 bits; incoming tensors are made contiguous.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import triton

from simpletuner.models.sana.kernels.depthwise_fused import whole_kernel
from simpletuner.models.sana.kernels.depthwise_programs import ROWS, SUMS, gate_kernel, spread_kernel

LARGEST = 2**31 - 1
FEWEST_COLUMNS = 8


class Plan(NamedTuple):
    """The shape of one program.

    Attributes:
        channels: BLOCK, a power of two.
        warps: of 32 threads.
        columns: the most it walks along.
        ahead: a step loads what the next one uses.
        registers: the most of a thread; 0 leaves it to the compiler.
        enough: warps of a launch; programs of fewer are cut shorter, which costs columns that two of them load.
    """

    channels: int = 256
    warps: int = 4
    columns: int = 64
    ahead: bool = True
    registers: int = 128
    enough: int = 4096


FORWARD, GATE, SPREAD = Plan(), Plan(), Plan()
WHOLE = Plan(channels=128, warps=2, registers=0, enough=1056)  # of an H100 as many warps run at once
IN_ONE = True  # backward is one launch (WHOLE) where channels can be taken in pairs, else two (GATE, SPREAD)


@functools.cache
def _has_tanh(device: torch.device) -> bool:
    """Whether the chip has tanh.approx and rounds two numbers at once: not AMD's, not before 8.0, not the interpreter."""
    compiled = isinstance(gate_kernel, triton.runtime.JITFunction) and torch.version.hip is None
    return compiled and torch.cuda.get_device_capability(device) >= (8, 0)


def _launch(plan: Plan, read: Sequence[torch.Tensor], height: int, width: int, channels: int) -> tuple[Any, ...]:
    """The grid, the numbers after the tensors, and the kernel's constants; `read` is what its loop loads.

    Programs of few tokens are cut shorter, so that every multiprocessor gets some.
    """
    x = read[0]
    blocks, strips = triton.cdiv(channels, plan.channels), triton.cdiv(height, ROWS.value)
    columns = min(plan.columns, width)
    warps = blocks * strips * len(x) * plan.warps
    while columns > FEWEST_COLUMNS and warps * triton.cdiv(width, columns) < plan.enough:
        columns = triton.cdiv(columns, 2)
    unit = 16 if channels % 16 == 0 else 1
    fast = x.dtype != torch.float32 and _has_tanh(x.device)
    pairs = unit == 16 and x.dtype.itemsize == 2
    pairs &= all(tensor.dtype == x.dtype and tensor.data_ptr() % 4 == 0 for tensor in read)
    constants = {
        "UNIT": unit,
        "BLOCK": plan.channels,
        "FAST": fast,
        "PAIRS": pairs,
        "AHEAD": plan.ahead and pairs,
    }
    options = {"num_warps": plan.warps}
    if pairs and fast and plan.registers:  # what float32 needs was not looked at, and AMD's compiler has no such option
        options["maxnreg"] = plan.registers
    grid = (blocks, strips * triton.cdiv(width, columns), len(x))
    return grid, (height, width, channels // unit, columns), constants | options


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
        grid, numbers, constants = _launch(FORWARD, [x], height, width, out.shape[2])
        gate_kernel[grid](x, weight, bias, out, out, *numbers, BACKWARD=False, **constants)
    return out


def backward(
    grad: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, height: int, width: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """As ``depthwise.plain_backward``; the gradient of [a, g] passes through memory in the dtype of x."""
    _check_size(x)
    grad, x, weight, bias = _contiguous(grad, x, weight, bias)
    both = x.shape[2]
    if not x.numel():
        return torch.empty_like(x), torch.zeros_like(weight), torch.zeros_like(bias), torch.zeros_like(bias)
    dx = torch.empty_like(x)
    grid, numbers, constants = _launch(WHOLE, [x, grad, dx], height, width, both // 2)
    if IN_ONE and constants["PAIRS"] and constants["FAST"]:
        sums = x.new_empty(len(x) * grid[1], SUMS.value, both, dtype=torch.float32)
        for name in ("PAIRS", "FAST", "AHEAD"):  # it has no other way
            del constants[name]
        whole_kernel[grid](x, weight, bias, grad, dx, sums, *numbers, **constants)
    else:
        inner = torch.empty_like(x)
        grid, numbers, constants = _launch(GATE, [x, grad], height, width, both // 2)
        gate_kernel[grid](x, weight, bias, grad, inner, *numbers, BACKWARD=True, **constants)
        grid, numbers, constants = _launch(SPREAD, [x, inner], height, width, both)
        sums = x.new_empty(len(x) * grid[1], SUMS.value, both, dtype=torch.float32)
        spread_kernel[grid](x, weight, inner, dx, sums, *numbers, **constants)
    total = sums.sum(0)
    dweight = total[:9].t().contiguous().view(weight.shape)
    return dx, dweight.to(weight.dtype), *(row.to(bias.dtype, copy=True) for row in total[9:])
