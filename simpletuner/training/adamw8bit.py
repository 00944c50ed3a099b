"""Room 8, Step: torchao's AdamW with states in 8 bits, with a step that the device itself takes or leaves.

Arguments, states and files are torchao's own. On a GPU with Triton one kernel makes its update of all tensors, on a CPU the
kernel's plain twin, and nothing is compiled for each of their shapes. Rounding is drawn here then; torchao's own step, which
is what is left on a GPU without Triton and with arguments that the kernel does not take, draws from torch's global generator,
which is seeded by the step: a resumed run rounds the same in each way.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torchao.optim import AdamW8bit
from torchao.optim.subclass_8bit import OptimState8bit

from simpletuner.training import eight_bits
from simpletuner.training.adamw_bf16 import drawn_bits, stochastic_round, update_at_random
from simpletuner.training.adamw_fused import Row, available
from simpletuner.training.guarded_adam import TensorCountedAdam, adam_where, with_gradient
from simpletuner.training.seeds import mixed_seed


def updated(row: Row, control: torch.Tensor, numbers: tuple[float, float]) -> tuple[torch.Tensor, ...]:
    """One update with states in 8 bits: the plain twin of ``adamw8bit_triton.adam8bit_kernel``, for blocks of any size.

    Args:
        row: Weight, gradient, codes of mean and square, their scales.
        control: From ``guarded_adam.control_of``.
        numbers: eps and weight decay.

    Returns:
        New weight in float32, codes of mean and square, their scales, as if the step were taken.
    """
    weight, grad, *codes, mean_scale, square_scale = row
    scales = mean_scale, square_scale
    states = [eight_bits.read(c, s, signed) for c, s, signed in zip(codes, scales, (True, False), strict=True)]
    change, *averages = adam_where((weight.float(), grad.float(), *states), control, *numbers)
    kept = [eight_bits.write(a, len(s), signed) for a, s, signed in zip(averages, scales, (True, False), strict=True)]
    new = weight.float() * (1.0 - control[0] * numbers[1]) + change
    return new, kept[0][0], kept[1][0], kept[0][1], kept[1][1]


class AoAdamW8bit(TensorCountedAdam, AdamW8bit):
    """torchao's AdamW8bit. Few numbers (below 4096, or no whole blocks) keep states of the weight's dtype."""

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        amsgrad: bool = False,
        *,
        block_size: int = eight_bits.BLOCK,
        bf16_stochastic_round: bool = False,
        seed: int = 0,
    ) -> None:
        """Hold ``params``; ``seed`` decides the rounding. All else is torchao's."""
        kept = {"block_size": block_size, "bf16_stochastic_round": bf16_stochastic_round}
        super().__init__(params, lr, betas, eps, weight_decay, amsgrad, **kept)
        self._seed = seed

    @property
    def guarded_step(self) -> Any:
        """As ``GuardedAdam`` has it; absent where it cannot be had (AttributeError, so that ``hasattr`` is False)."""
        group = self.param_groups[0]
        if len(self.param_groups) > 1 or group["amsgrad"] or self.block_size != eight_bits.BLOCK:
            raise AttributeError("guarded_step")
        if any(p.is_cuda and not available(p) for p in group["params"]):
            raise AttributeError("guarded_step")
        # The kernel rounds at random alone.
        if not self.bf16_stochastic_round and any(p.dtype is torch.bfloat16 for p in group["params"]):
            raise AttributeError("guarded_step")
        return self._guarded_step

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        """Update every parameter that has a gradient. ``closure`` is not supported."""
        self.count_steps()
        if hasattr(self, "guarded_step"):
            self._step_anyway()
            return
        torch.manual_seed(mixed_seed(self._seed, self._steps()))
        super().step()

    def _rows(self, group: dict[str, Any]) -> list[Row]:
        """(weight, gradient, codes of mean and square, their scales), or (weight, gradient, mean, square) of few numbers."""
        rows: list[Row] = []
        for parameter, gradient in with_gradient(group):
            state = self.state[parameter]
            if not state:
                state["step"] = torch.tensor(0.0)
            mean, square = (self._kept(parameter, state, name) for name in ("exp_avg", "exp_avg_sq"))
            if isinstance(mean, OptimState8bit):
                rows.append((parameter, gradient, mean.codes, square.codes, mean.scale, square.scale))
            else:
                rows.append((parameter, gradient, mean, square))
        return rows

    def _kept(self, parameter: torch.Tensor, state: dict[str, Any], name: str) -> Any:
        """A state, made where there is none, and made anew where it was saved with blocks of another size."""
        old = state.get(name)
        if old is None or (isinstance(old, OptimState8bit) and old.block_size != self.block_size):
            state[name] = self._new_buffer(parameter, signed=name == "exp_avg")
            if old is not None:
                state[name].copy_(old.dequantize())
        return state[name]

    def _update_row(self, number: int, row: Row, control: torch.Tensor, group: dict[str, Any]) -> None:
        numbers = group["eps"], group["weight_decay"]
        half = row[0].dtype is torch.bfloat16
        seed = mixed_seed(self._seed, number)
        if len(row) == 4:
            if half:
                update_at_random(row, control, numbers, seed)
            else:
                super()._update_row(number, row, control, group)
            return
        weight, *states = updated(row, control, numbers)
        if half:
            weight = stochastic_round(weight, drawn_bits(1, weight, control, seed)[0])
        for target, value in zip((row[0], *row[2:]), (weight, *states), strict=True):
            target.copy_(torch.where(control[7] > 0, value, target))
