"""Room 8, Step: an optimizer's states in 8 bits as torchao keeps them, read and written: pure functions of tensors.

A state is a code for each number and a float32 scale for each block of numbers: the largest magnitude in it. A code stands
for a number of one of two maps of 256, with signs (means) or without (squares): seven decades from 1e-7 to 1, each cut into
twice as many equal cells as the one below it, whose middles are the map's numbers; besides 0 and 1.
Source: Dettmers et al. 2021, "8-bit Optimizers via Block-wise Quantization" (arXiv 2110.02861), sections 2.1 and 2.2, as
torchao's ``optim/quant_utils.py`` has them.
"""

from __future__ import annotations

import functools

import torch

CODES = 256
BLOCK = 256  # numbers that share a scale, where nothing else is said
SMALLEST = 1e-12  # a block of zeros has this scale


def limits_of(numbers: torch.Tensor) -> torch.Tensor:
    """The smallest float32 that is written as the upper of two neighbours, for each pair of neighbours.

    torchao takes the upper code where ``x - lower >= (upper - lower) * 0.5`` in float32, which rounds: a middle computed
    more exactly would now and then decide otherwise. What decides grows with x, so one limit a pair says all.

    Args:
        numbers: [n] float32, a map in rising order.

    Returns:
        [n - 1] float32, rising.
    """
    lower, upper = numbers[:-1], numbers[1:]
    half = (upper - lower) * 0.5

    def taken(x: torch.Tensor) -> torch.Tensor:
        return x - lower >= half

    up, down = torch.tensor(torch.inf), torch.tensor(-torch.inf)
    limit = lower + half
    while not taken(limit).all():
        limit = torch.where(taken(limit), limit, torch.nextafter(limit, up))
    while (below := taken(torch.nextafter(limit, down))).any():
        limit = torch.where(below, torch.nextafter(limit, down), limit)
    return limit


@functools.cache
def tables(device: torch.device) -> torch.Tensor:
    """[4, 256] float32: the map with signs, the one without, and the limits of both.

    Limits lie where the kernel looks for them: that below code c at c with signs (nothing is below code 0), that above c
    at c without.
    """
    from torchao.optim.subclass_8bit import get_qmap_signed, get_qmap_unsigned

    signed, unsigned = (torch.tensor(numbers()) for numbers in (get_qmap_signed, get_qmap_unsigned))
    end = torch.tensor([torch.inf])
    rows = [signed, unsigned, torch.cat([-end, limits_of(signed)]), torch.cat([limits_of(unsigned), end])]
    return torch.stack(rows).to(device)


def read(codes: torch.Tensor, scale: torch.Tensor, signed: bool) -> torch.Tensor:
    """The numbers of a state, float32.

    Args:
        codes: Any shape, uint8.
        scale: [blocks] float32, of equally long runs of codes.
        signed: Which map.
    """
    numbers = tables(codes.device)[0 if signed else 1][codes.int()]
    return (numbers.reshape(len(scale), -1) * scale[:, None]).view(codes.shape)


def write(values: torch.Tensor, blocks: int, signed: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """(codes, scale) of numbers, each code the nearest.

    Args:
        values: Any shape, float32, finite.
        blocks: How many runs of equal length share a scale.
        signed: Which map.
    """
    rows = values.reshape(blocks, -1)
    scale = rows.abs().amax(1).clamp(min=SMALLEST)
    limits = tables(values.device)[2, 1:] if signed else tables(values.device)[3, :-1]
    codes = torch.bucketize(rows / scale[:, None], limits, right=True)
    return codes.to(torch.uint8).view(values.shape), scale
