"""Room 8, Step: sums of gradients in float32 for bf16 weights, over the micro-batches of one step.

Autograd adds each micro-batch's gradient in the weight's dtype, and bf16 keeps 8 bits of the growing sum.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch


class Float32Sums:
    """Collects after each micro-batch and delivers once: one rounding instead of one for each micro-batch.

    Costs 4 bytes for each trained parameter while a step runs.
    """

    def __init__(self, parameters: Sequence[torch.nn.Parameter]) -> None:
        """For these parameters; their ``.grad`` is taken and given back."""
        self._parameters = list(parameters)
        self._sums: dict[int, torch.Tensor] = {}

    @torch.no_grad()
    def collect(self) -> None:
        """Take every ``.grad`` into its sum."""
        for index, parameter in enumerate(self._parameters):
            if parameter.grad is None:
                continue
            if index in self._sums:
                self._sums[index].add_(parameter.grad)
            else:
                self._sums[index] = parameter.grad.to(torch.float32)
            parameter.grad = None

    def totals(self) -> list[torch.Tensor]:
        """The sums themselves, in the order of the parameters."""
        return [self._sums[index] for index in sorted(self._sums)]

    @torch.no_grad()
    def deliver(self) -> None:
        """Put the sums into ``.grad``, in the parameter's dtype."""
        for index, total in self._sums.items():
            self._parameters[index].grad = total.to(self._parameters[index].dtype)
        self._sums.clear()
