"""Room 8, Step: weights of 1x1 convolutions shown to an optimizer as the matrices that they are.

Half of Sana's weights are such convolutions. An optimizer that keeps rows and columns of a matrix (Adafactor, CAME)
would take their last two dimensions, 1 by 1, and save nothing; one for matrices (Muon) would refuse them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch


def is_pointwise(parameter: torch.Tensor) -> bool:
    """Whether it is the weight of a 1x1 convolution, [out, in, 1, 1]."""
    return parameter.ndim == 4 and tuple(parameter.shape[2:]) == (1, 1)


def view_of(parameter: torch.Tensor) -> torch.nn.Parameter:
    """A parameter [out, in] on the same memory."""
    return torch.nn.Parameter(parameter.detach().view(parameter.shape[:2]))


@torch.no_grad()
def lend(views: Mapping[torch.Tensor, torch.nn.Parameter], owner: Any, inner: torch.optim.Optimizer) -> None:
    """Give views the memory, gradients and states that their parameters have now."""
    for parameter, view in views.items():
        view.data = parameter.detach().view(parameter.shape[:2])
        view.grad = None if parameter.grad is None else parameter.grad.reshape(parameter.shape[:2])
        inner.state[view] = owner.state[parameter]


class MatrixViews(torch.optim.Optimizer):
    """Another optimizer, with 1x1 convolutions as matrices; groups and states are those of the real parameters."""

    def __init__(self, params: Iterable[torch.Tensor], make: Callable[[list[torch.Tensor]], Any]) -> None:
        """Build the other one with ``make(parameters)``."""
        parameters = list(params)
        self._views = {p: view_of(p) for p in parameters if is_pointwise(p)}
        self._inner: torch.optim.Optimizer = make([self._views.get(p, p) for p in parameters])
        super().__init__(parameters, dict(self._inner.defaults))
        self._copy_fields(self._inner, self)

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient. ``closure`` is not supported."""
        self._copy_fields(self, self._inner)
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter not in self._views:
                    self._inner.state[parameter] = self.state[parameter]
        lend(self._views, self, self._inner)
        self._inner.step()
        for view in self._views.values():
            view.grad = None
        self._copy_fields(self._inner, self)

    @staticmethod
    def _copy_fields(source: torch.optim.Optimizer, target: torch.optim.Optimizer) -> None:
        for given, taken in zip(source.param_groups, target.param_groups, strict=True):
            taken.update({key: value for key, value in given.items() if key != "params"})
