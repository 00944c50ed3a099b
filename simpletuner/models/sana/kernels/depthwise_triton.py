"""The Triton kernels behind ``depthwise.py``: three launches of the programs in ``depthwise_programs.py``.

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

from simpletuner.models.sana.kernels.depthwise_programs import ROWS, SUMS, gate_kernel, spread_kernel

LARGEST = 2**31 - 1
ENOUGH_WARPS, FEWEST_COLUMNS = 4096, 8


class Plan(NamedTuple):
    """The shape of one program.

    Attributes:
        channels: BLOCK, a power of two.
        warps: of 32 threads.
        columns: the most it walks along.
        ahead: a step loads what the next one uses.
        registers: the most of a thread; 0 leaves it to the compiler.
    """

    channels: int = 256
    warps: int = 4
    columns: int = 64
    ahead: bool = True
    registers: int = 128


FORWARD, GATE, SPREAD = Plan(), Plan(), Plan()


@functools.cache
def _has_tanh(device: torch.device) -> bool:
    """Whether the kernels are compiled for a chip with tanh.approx: not AMD's, not before 7.5, not the interpreter."""
    compiled = isinstance(gate_kernel, triton.runtime.JITFunction) and torch.version.hip is None
    return compiled and torch.cuda.get_device_capability(device) >= (7, 5)


def _launch(plan: Plan, read: Sequence[torch.Tensor], height: int, width: int, channels: int) -> tuple[Any, ...]:
    """The grid, the numbers after the tensors, and the kernel's constants; `read` is what its loop loads.

    Programs of few tokens are cut shorter, so that every multiprocessor gets some.
    """
    x = read[0]
    blocks, strips = triton.cdiv(channels, plan.channels), triton.cdiv(height, ROWS.value)
    columns = min(plan.columns, width)
    while (
        columns > FEWEST_COLUMNS and blocks * strips * triton.cdiv(width, columns) * len(x) * plan.warps < ENOUGH_WARPS
    ):
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
    inner, dx = torch.empty_like(x), torch.empty_like(x)
    grid, numbers, constants = _launch(GATE, [x, grad], height, width, both // 2)
    gate_kernel[grid](x, weight, bias, grad, inner, *numbers, BACKWARD=True, **constants)
    grid, numbers, constants = _launch(SPREAD, [x, inner], height, width, both)
    sums = x.new_empty(len(x) * grid[1], SUMS.value, both, dtype=torch.float32)
    spread_kernel[grid](x, weight, inner, dx, sums, *numbers, **constants)
    total = sums.sum(0)
    dweight = total[:9].t().contiguous().view(weight.shape)
    return dx, dweight.to(weight.dtype), *(row.to(bias.dtype, copy=True) for row in total[9:])
