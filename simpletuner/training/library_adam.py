"""Room 8, Step: the libraries' AdamW with a step that the device itself takes or leaves, on a GPU with Triton.

Arguments, states and files are the libraries' own, and so is the step everywhere else. On the GPU one kernel makes the
same update: Adam's averages in float32 arithmetic, and for bf16 weights Kahan's rest, where optimi keeps one.
"""

from __future__ import annotations

from typing import Any

import optimi
import torch

from simpletuner.training.adamw_fused import Row, available
from simpletuner.training.guarded_adam import GuardedAdam, Mix, TensorCountedAdam, debiased_mix, with_gradient


class OptimiAdamW(GuardedAdam, optimi.AdamW):
    """optimi's AdamW."""

    @property
    def guarded_step(self) -> Any:
        """As ``GuardedAdam`` has it; absent where it cannot be had (AttributeError, so that ``hasattr`` is False)."""
        group = self.param_groups[0]
        if len(self.param_groups) > 1 or group["decouple_lr"] or not _on_gpu(group):
            raise AttributeError("guarded_step")
        # Without rests the kernel would round at random, and the library rounds to the nearest.
        if group["kahan_sum"] is False and _in_bf16(group):
            raise AttributeError("guarded_step")
        return self._guarded_step

    def _rows(self, group: dict[str, Any]) -> list[Row]:
        """(weight, gradient, mean, square[, rest]) in the weight's dtype, as ``_init_group`` makes and keeps them."""
        lists: list[list[Any]] = [[], [], [], [], []]
        self._init_group(group, *lists)  # makes the states
        return [
            row if row[4] is not None and row[4].dtype is row[0].dtype else row[:4] for row in zip(*lists, strict=True)
        ]

    def _mix(self, group: dict[str, Any], taken: torch.Tensor) -> Mix:
        return debiased_mix((group["beta1"], group["beta2"]), taken)

    def _steps(self) -> int:
        return int(self.param_groups[0]["step"])

    def _write_steps(self, taken: int) -> None:
        self.param_groups[0]["step"].fill_(taken)


class TorchAdamW(TensorCountedAdam, torch.optim.AdamW):
    """torch's AdamW, fused."""

    @property
    def guarded_step(self) -> Any:
        """As ``GuardedAdam`` has it; absent where it cannot be had (AttributeError, so that ``hasattr`` is False)."""
        group = self.param_groups[0]
        if len(self.param_groups) > 1 or group["amsgrad"] or group["maximize"] or _in_bf16(group) or not _on_gpu(group):
            raise AttributeError("guarded_step")
        return self._guarded_step

    def _rows(self, group: dict[str, Any]) -> list[Row]:
        rows: list[Row] = []
        for parameter, gradient in with_gradient(group):
            state = self.state[parameter]
            if not state:
                state["step"] = torch.zeros((), dtype=torch.float32, device=parameter.device)
                state["exp_avg"] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
                state["exp_avg_sq"] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
            rows.append((parameter, gradient, state["exp_avg"], state["exp_avg_sq"]))
        return rows


def _in_bf16(group: dict[str, Any]) -> bool:
    return any(parameter.dtype is torch.bfloat16 for parameter in group["params"])


def _on_gpu(group: dict[str, Any]) -> bool:
    return all(available(parameter) for parameter in group["params"])
