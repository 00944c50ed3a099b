"""Norms, gates and residual sums of a block for ``operations.py``: their ordinary chains, and other shapes of programs.

Each has the bias of the layer before it, whose gradient the kernels sum on the way; the chains add zero for it.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from simpletuner.models.sana.kernels import gated_norm, residual

EPSILON = 1e-6
# Warps, programs that are enough, fewest tokens of a run, stages, most registers; of one launch at a time. None spills.
PLANS = {
    "NORM": ((4, 792, 4, 1), (4, 1584, 4, 3), (8, 528, 4, 3), (4, 4096, 1, 1)),
    "NORM_BACKWARD": (
        (4, 396, 4, 1), (4, 396, 8, 3), (4, 264, 4, 3), (8, 264, 4, 3), (8, 264, 4, 1), (4, 792, 4, 3),
    ),
    "GATE": ((4, 2048, 32), (8, 4096, 64), (4, 8192, 32), (4, 4096, 16)),
    "GATE_BACKWARD": ((4, 1320, 32), (4, 4224, 32), (8, 2112, 64), (4, 2112, 16)),
    "FORWARD": ((4, 660, 4, 1), (8, 528, 4, 3), (4, 1320, 4, 3)),
    "BACKWARD": ((8, 264, 4, 1), (8, 264, 4, 3), (4, 264, 4, 3), (4, 396, 8, 3, 168), (4, 792, 4, 3, 168)),
}  # fmt: skip
LAUNCHES = {"gate": ("GATE", "GATE_BACKWARD"), "gate_norm": ("FORWARD", "BACKWARD")}  # others: NORM and NORM_BACKWARD
Results = tuple[torch.Tensor, ...]


def credited(y: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """The tokens, as if the bias were in them."""
    return y + (bias - bias.detach())


def modulated(s: torch.Tensor, modulation: torch.Tensor) -> torch.Tensor:
    shift, scale = modulation.chunk(2, dim=1)
    return torch.addcmul(shift, F.layer_norm(s, s.shape[-1:], eps=EPSILON), 1 + scale)


def chain_gate(x: torch.Tensor, y: torch.Tensor, gate: torch.Tensor, bias: torch.Tensor) -> Results:
    total = torch.addcmul(x, gate, credited(y, bias))
    return total, total.view_as(total)


def chain_norm(x: torch.Tensor, modulation: torch.Tensor) -> Results:
    return x.view_as(x), modulated(x, modulation)


def chain_add_norm(x: torch.Tensor, y: torch.Tensor, modulation: torch.Tensor, bias: torch.Tensor) -> Results:
    s = x + credited(y, bias)
    return s, modulated(s, modulation)


def our_norm(x: torch.Tensor, modulation: torch.Tensor) -> Results:
    return residual.norm(x, modulation, EPSILON)


def our_add_norm(x: torch.Tensor, y: torch.Tensor, modulation: torch.Tensor, bias: torch.Tensor) -> Results:
    return residual.add_norm(x, y, modulation, EPSILON, bias)


def chain_gate_norm(x: torch.Tensor, y: torch.Tensor, table: torch.Tensor) -> Results:
    s = torch.addcmul(x, table[:, 2:], y)
    return s, modulated(s, table[:, :2])


def our_gate_norm(x: torch.Tensor, y: torch.Tensor, table: torch.Tensor) -> Results:
    modulation, gate = table.split((2, 1), dim=1)
    return gated_norm.gated_norm(x, y, gate, modulation, EPSILON)


def gate_then_norm(x: torch.Tensor, y: torch.Tensor, table: torch.Tensor) -> Results:
    """By two operations, as where the second block is recomputed."""
    modulation, gate = table.split((2, 1), dim=1)
    return residual.norm(residual.gated_add(x, y, gate), modulation, EPSILON)


# Name: rows of the table, summands, whether there is a bias; chain and operation; tokens' tensors moved: forward, and both.
OPERATIONS = {
    "gate": (1, 2, True, chain_gate, residual.gated_add_twice, (3, 8)),
    "norm": (2, 1, False, chain_norm, our_norm, (2, 6)),
    "add_norm": (2, 2, True, chain_add_norm, our_add_norm, (4, 8)),
    "gate_norm": (3, 2, False, chain_gate_norm, our_gate_norm, (4, 10)),
}
OTHER_WAYS = {"gate_norm": {"two operations": gate_then_norm}}
