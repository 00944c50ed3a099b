"""Room 8, Step: Adam's step that the device itself takes or leaves, so that the host neither waits nor knows.

In: gradients, and on the device a learning rate, a factor and a verdict. Out: new weights and states, or the old ones. The
maths are pure functions; the mixin joins them to optimizers that keep their states in their own way.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch

from simpletuner.training.adamw_fused import FusedUpdate, Row, available

Mix = tuple[torch.Tensor | float, torch.Tensor | float, torch.Tensor | float, torch.Tensor | float]


def plain_mix(betas: tuple[float, float], taken: torch.Tensor) -> Mix:
    """Adam's averages with the correction outside: (1 - beta1, 1 - beta2, 1 / (1 - beta1^t), 1 / (1 - beta2^t)).

    Source: Kingma & Ba 2015, algorithm 1.
    """
    beta1, beta2 = betas
    return 1 - beta1, 1 - beta2, 1 / (1 - beta1**taken), 1 / (1 - beta2**taken)


def debiased_mix(betas: tuple[float, float], taken: torch.Tensor) -> Mix:
    """The same with the correction inside the averages: beta^ = (beta^t - beta) / (beta^t - 1), and no factors after it.

    Source: optimi's ``debias_beta``; equal to ``plain_mix`` in exact arithmetic.
    """
    inside = tuple(1 - (beta**taken - beta) / (beta**taken - 1) for beta in betas)
    return inside[0], inside[1], 1.0, 1.0


def control_of(
    mix: Mix, taken: torch.Tensor, rate: torch.Tensor, scale: torch.Tensor, good: torch.Tensor
) -> torch.Tensor:
    """What changes from step to step, for ``adam_where`` and the kernel.

    Args:
        mix: New parts of mean and square, and the factors of both, for step ``taken``.
        taken: [] float64, steps taken, this one included.
        rate: [] float32, the learning rate.
        scale: [] float32, factor on every gradient.
        good: [] bool, whether the step is taken.

    Returns:
        [8] float32: rate, scale, the four numbers of ``mix``, t, good.
    """
    exact: dict[str, Any] = {"dtype": torch.float64, "device": taken.device}
    # A number is filled in on the device: a copy from the host would break the capture of a CUDA graph.
    numbers = (n.to(**exact) if isinstance(n, torch.Tensor) else torch.full((), n, **exact) for n in
               (rate, scale, *mix, taken, good))  # fmt: skip
    return torch.stack(list(numbers)).float()


def adam_where(
    tensors: tuple[torch.Tensor, ...], control: torch.Tensor, eps: float, weight_decay: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """One AdamW update with its changing numbers on the device: the plain twin of ``adamw_triton.adam_kernel``.

    Args:
        tensors: Weight, gradient, mean and square, float32, of one shape.
        control: From ``control_of``.
        eps: Outside the square root.
        weight_decay: Times the rate.

    Returns:
        The change of the decayed weight, new mean and new square, as if the step were taken.

    Source: Loshchilov & Hutter 2019, algorithm 2.
    """
    _, grad, mean, square = tensors
    rate, scale, new_mean, new_square, of_mean, of_square = control[:6].unbind()
    grad = grad * scale
    mean = mean + new_mean * (grad - mean)
    square = square + new_square * (grad * grad - square)
    return -rate * of_mean * mean / ((square * of_square).sqrt() + eps), mean, square


def with_rest(
    decayed: torch.Tensor, change: torch.Tensor, rest: torch.Tensor, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    """Add a change to a weight of few digits, and keep what it could not hold: (weight in ``dtype``, rest in float32).

    Source: Kahan 1965, compensated summation.
    """
    rest = rest + change
    new = (decayed + rest).to(dtype)
    return new, rest + (decayed - new.float())


def with_gradient(group: dict[str, Any]) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """The parameters of an optimizer's group that have a gradient, each with it."""
    return [(parameter, parameter.grad) for parameter in group["params"] if parameter.grad is not None]


class GuardedAdam(ABC):
    """Gives an optimizer ``guarded_step``; it says where its numbers and states are."""

    param_groups: list[dict[str, Any]]
    state: Any
    _taken: torch.Tensor | None = None  # steps taken, where the device counts them
    _stale: bool = False  # the states do not know that count
    _in_graphs: bool = False  # steps are taken that the host does not hear of
    _fused: FusedUpdate | None = None
    _seed: int = 0

    @abstractmethod
    def _rows(self, group: dict[str, Any]) -> list[Row]:
        """Rows as ``FusedUpdate`` takes them, of every parameter that has a gradient, states made."""

    @abstractmethod
    def _mix(self, group: dict[str, Any], taken: torch.Tensor) -> Mix:
        """Of step ``taken``."""

    def _states(self) -> list[dict[str, Any]]:
        """Of this optimizer's own parameters: with gradient release several share one table."""
        return [self.state[p] for group in self.param_groups for p in group["params"] if self.state.get(p)]

    @abstractmethod
    def _steps(self) -> int:
        """Steps taken so far, by the states."""

    @abstractmethod
    def _write_steps(self, taken: int) -> None:
        """Put the steps taken into the states."""

    def _update_row(self, number: int, row: Row, control: torch.Tensor, group: dict[str, Any]) -> None:
        """Update one row that the kernel does not take; ``number`` counts these."""
        change, mean, square = adam_where(
            tuple(t.float() for t in row[:4]), control, group["eps"], group["weight_decay"]
        )
        decayed = row[0].float() * (1.0 - control[0] * group["weight_decay"])
        new = [decayed + change, mean, square]
        targets = [row[0], row[2], row[3]]
        if len(row) > 4:
            new[0], rest = with_rest(decayed, change, row[4].float(), row[0].dtype)
            new, targets = [*new, rest], [*targets, row[4]]
        for target, value in zip(targets, new, strict=True):
            target.copy_(torch.where(control[7] > 0, value.to(target.dtype), target))

    @torch.no_grad()
    def _guarded_step(self, rate: torch.Tensor, scale: torch.Tensor, good: torch.Tensor) -> None:
        """One step that the device itself takes or leaves.

        Args:
            rate: [] float32, the learning rate.
            scale: [] float32, factor on every gradient (clipping).
            good: [] bool; False leaves weights and states as they are, and the step uncounted.
        """
        (group,) = self.param_groups
        rows = self._rows(group)
        if not rows:
            return
        if self._taken is None:
            self._taken = torch.tensor(float(self._steps()), dtype=torch.float64, device=rows[0][0].device)
            self.register_state_dict_pre_hook(lambda _: self.count_steps())  # type: ignore[attr-defined]
        taken = self._taken + good
        count = taken.clamp(min=1)  # a first step that is not taken: no division by 0
        control = control_of(self._mix(group, count), taken, rate, scale, good)
        left: Sequence[Row] = rows
        if available(rows[0][0]):
            self._fused = self._fused or FusedUpdate(group["eps"], group["weight_decay"], self._seed)
            left = self._fused(rows, control)
        for number, row in enumerate(left):
            self._update_row(number, row, control, group)
        self._stale = True
        self._taken.copy_(taken)  # last, so that a step that ran out of memory can be made again

    @torch.no_grad()
    def _step_anyway(self) -> None:
        """One step that is taken in any case, at the group's rate: ``step`` of a class that makes all its steps this way."""
        (group,) = self.param_groups
        touched = with_gradient(group)
        if touched:
            rate, one = (torch.full((), n, device=touched[0][0].device) for n in (float(group["lr"]), 1.0))
            self._guarded_step(rate, one, one > 0)
            self._write_steps(self._steps() + 1)  # the host knows that it was taken, and need not ask
            self._stale = False

    @torch.no_grad()
    def make_states(self) -> None:
        """Make the states of all parameters that have none, before a first step.

        Made in that step they would lie between its activations, in pieces of memory that nothing else fits into later.
        """
        (group,) = self.param_groups
        without = [p for p in group["params"] if p.requires_grad and p.grad is None]
        for parameter in without:
            parameter.grad = parameter.detach()  # only parameters with a gradient get states
        try:
            self._rows(group)
        finally:
            for parameter in without:
                parameter.grad = None

    def after_capture(self) -> list[torch.Tensor]:
        """To be called when a guarded step was captured in a CUDA graph, before the graph runs.

        Returns:
            What the graph reads, to be kept as long as the graph is.
        """
        self._in_graphs = True
        return self._fused.after_capture() if self._fused else []

    def count_steps(self) -> None:
        """Write the device's count into the states."""
        if self._taken is not None and (self._stale or self._in_graphs):
            self._write_steps(int(self._taken.item()))
            self._stale = False


class TensorCountedAdam(GuardedAdam):
    """For optimizers that count the steps of each parameter in a tensor, and correct Adam's averages after them, as torch's do."""

    def _mix(self, group: dict[str, Any], taken: torch.Tensor) -> Mix:
        return plain_mix(group["betas"], taken)

    def _steps(self) -> int:
        return max((int(state["step"]) for state in self._states()), default=0)

    def _write_steps(self, taken: int) -> None:
        for state in self._states():
            state["step"].fill_(taken)
