"""Room 8, Step: each parameter is stepped inside backward, as soon as its gradient is there, and the gradient is freed.

So the gradients of a whole model are never in memory together. What needs all of them at once (a global norm, an
accumulation over micro-batches, a gradient scaler) cannot be had beside it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch


class PerParameter(torch.optim.Optimizer):
    """One optimizer object for each parameter, seen from outside as one: counters of a group advance for it alone."""

    def __init__(
        self,
        params: Sequence[torch.nn.Parameter],
        make: Callable[[int, torch.nn.Parameter], torch.optim.Optimizer],
    ) -> None:
        """Build with ``make(index, parameter)``."""
        self.parts = {parameter: make(index, parameter) for index, parameter in enumerate(params)}
        first = next(iter(self.parts.values()))
        super().__init__([{"params": [p]} for p in params], dict(first.defaults))
        # One list of groups and one table of states, shared with the parts: whoever saves or restores sees them all.
        self.param_groups = [group for part in self.parts.values() for group in part.param_groups]
        for part in self.parts.values():
            part.state = self.state
        if hasattr(first, "train"):
            self.train = lambda: [part.train() for part in self.parts.values()]  # type: ignore[attr-defined]
            self.eval = lambda: [part.eval() for part in self.parts.values()]  # type: ignore[attr-defined]

    @property
    def is_paged(self) -> bool:
        """Whether states live in pageable memory (bitsandbytes)."""
        return bool(getattr(next(iter(self.parts.values())), "is_paged", False))

    def get_state_buffer(self, parameter: torch.nn.Parameter, dtype: torch.dtype) -> torch.Tensor:
        """A pageable buffer for one parameter (bitsandbytes)."""
        part: Any = self.parts[parameter]
        return part.get_state_buffer(parameter, dtype=dtype)

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Step every parameter that has a gradient."""
        for parameter, part in self.parts.items():
            if parameter.grad is not None:
                part.step()


class GradientRelease:
    """Steps ``optimizer`` inside backward.

    A parameter whose gradient is not finite keeps its values and its state. Asking costs one wait for the device for
    each parameter.

    Attributes:
        held: Parameters of the last backward that were not stepped.
    """

    def __init__(self, optimizer: PerParameter, clip_value: float) -> None:
        """Hook every parameter. ``clip_value`` bounds each element of a gradient; 0 is off."""
        self._optimizer, self._clip_value = optimizer, clip_value
        self._squares = 0.0
        self.held = 0
        self._hooks = [p.register_post_accumulate_grad_hook(self._release) for p in optimizer.parts]

    @property
    def count(self) -> int:
        """How many parameters are trained."""
        return len(self._optimizer.parts)

    def backward(self, loss: torch.Tensor) -> None:
        """Backward and all updates; nothing at all when the loss (a scalar) is not finite."""
        self._squares, self.held = 0.0, 0
        if math.isfinite(loss.item()):
            loss.backward()

    def norm(self) -> float:
        """Global norm of the last backward's finite gradients, before clipping."""
        return math.sqrt(self._squares)

    @torch.no_grad()
    def _release(self, parameter: torch.Tensor) -> None:
        grad = parameter.grad
        if grad is None:
            return
        norm = torch.linalg.vector_norm(grad, dtype=torch.float32).item()
        if math.isfinite(norm):
            self._squares += norm * norm
            if self._clip_value:
                grad.clamp_(-self._clip_value, self._clip_value)
            self._optimizer.parts[parameter].step()  # type: ignore[index]
        else:
            self.held += 1
        parameter.grad = None
