"""Room 8, Step: AdamW for bf16 weights, with bf16 states and stochastic rounding.

bf16 keeps 8 bits of a number: an update below 1/256 of a weight is lost when rounded to the nearest. Rounded up with
the probability of what would be lost, it is kept on average. Adam's own maths are in ``guarded_adam``.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from simpletuner.training.adamw_fused import available
from simpletuner.training.guarded_adam import GuardedAdam, Mix, adam_where, plain_mix, with_gradient
from simpletuner.training.seeds import mixed_seed

Piece = tuple[torch.Tensor, ...]


def stochastic_round(value: torch.Tensor, bits: torch.Tensor) -> torch.Tensor:
    """Float32 to bf16, up or down, so that the mean over ``bits`` is the value itself.

    Args:
        value: Any shape, float32, finite.
        bits: The same shape, int32, uniform in [0, 65536).

    Returns:
        bf16: one of the two neighbours of each value; numbers that bf16 can hold stay as they are.

    Source: adding noise below the last kept bit and cutting, as in Zamirai et al. 2021, "Revisiting BFloat16
        Training", section 3 (stochastic rounding).
    """
    whole = value.view(torch.int32) + bits
    return whole.bitwise_and_(-65536).view(torch.float32).to(torch.bfloat16)


def random_bits(rows: int, count: int, generator: torch.Generator) -> torch.Tensor:
    """[rows, count] int32, uniform in [0, 65536): four of each 64-bit draw, as drawing is what takes the time."""
    whole = torch.empty(-(-rows * count // 4), dtype=torch.int64, device=generator.device)
    whole.random_(-(2**63), None, generator=generator)
    return whole.view(torch.int16)[: rows * count].to(torch.int32).bitwise_and_(0xFFFF).view(rows, count)


def drawn_bits(rows: int, like: torch.Tensor, control: torch.Tensor, seed: int) -> torch.Tensor:
    """``random_bits`` in the shape of a tensor, of this seed and the control's step, which the host reads."""
    generator = torch.Generator(like.device).manual_seed(mixed_seed(seed, int(control[6])))
    return random_bits(rows, like.numel(), generator).view(rows, *like.shape)


def update_at_random(row: Piece, control: torch.Tensor, numbers: tuple[float, float], seed: int) -> None:
    """Update a row of (weight, gradient, mean, square) in bf16 in place, where the step is taken.

    Args:
        row: Tensors of one shape.
        control: From ``guarded_adam.control_of``.
        numbers: eps and weight decay.
        seed: With the step it decides the rounding.
    """
    change, mean, square = adam_where(tuple(t.float() for t in row), control, *numbers)
    decayed = row[0].float() * (1.0 - control[0] * numbers[1])
    bits = drawn_bits(3, row[0], control, seed)
    for target, value, draw in zip((row[0], row[2], row[3]), (decayed + change, mean, square), bits, strict=True):
        target.copy_(torch.where(control[7] > 0, stochastic_round(value, draw), target))


class AdamWBF16(GuardedAdam, torch.optim.Optimizer):
    """AdamW whose states have the weights' dtype.

    Rounding is drawn from a generator that is a function of seed, parameter and step, so a resumed run rounds the same.
    On a GPU one kernel updates all tensors, and its random bits are others.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-5,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.01,
        seed: int = 0,
    ) -> None:
        """Hold ``params``; ``seed`` decides the rounding."""
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})
        self._seed = seed

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient. ``closure`` is not supported."""
        self.count_steps()
        self._step_anyway()

    @property
    def guarded_step(self) -> Any:
        """As ``GuardedAdam`` has it; absent (AttributeError, so that ``hasattr`` is False) on a GPU without Triton."""
        devices = (p for group in self.param_groups for p in group["params"])
        if len(self.param_groups) > 1 or any(p.is_cuda and not available(p) for p in devices):
            raise AttributeError("guarded_step")
        return self._guarded_step

    def _rows(self, group: dict[str, Any]) -> list[Piece]:
        rows: list[Any] = []
        for parameter, gradient in with_gradient(group):
            state = self.state[parameter]
            if not state:
                state["step"] = 0
                state["exp_avg"] = torch.zeros_like(parameter, memory_format=torch.contiguous_format)
                state["exp_avg_sq"] = torch.zeros_like(parameter, memory_format=torch.contiguous_format)
            rows.append((parameter, gradient, state["exp_avg"], state["exp_avg_sq"]))
        return rows

    def _mix(self, group: dict[str, Any], taken: torch.Tensor) -> Mix:
        return plain_mix(group["betas"], taken)

    def _steps(self) -> int:
        return max((state["step"] for state in self._states()), default=0)

    def _write_steps(self, taken: int) -> None:
        for state in self._states():
            state["step"] = taken

    def _update_row(self, number: int, row: Piece, control: torch.Tensor, group: dict[str, Any]) -> None:
        if row[0].dtype is not torch.bfloat16:
            super()._update_row(number, row, control, group)
            return
        update_at_random(row, control, (group["eps"], group["weight_decay"]), mixed_seed(self._seed, number))
