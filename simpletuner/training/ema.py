"""Room 8, Step: an exponential moving average of the weights, always in float32."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch

BATCH = 2**25


def effective_decay(decay: float, step: int) -> float:
    """Decay with warm-up.

    Args:
        decay: Upper bound in (0, 1).
        step: Optimizer steps already averaged, from 0.

    Returns:
        min(decay, (1 + step) / (10 + step)), and 0 at step 0: the average starts as a copy.

    Source: diffusers' ``EMAModel.get_decay``.
    """
    return 0.0 if step <= 0 else min(decay, (1.0 + step) / (10.0 + step))


class Ema:
    """The averaged copy of some parameters.

    It is float32 whatever the model's dtype: at decay 0.995 an update is below bf16's resolution.
    """

    def __init__(
        self,
        parameters: Sequence[torch.nn.Parameter],
        decay: float,
        interval: int = 1,
        device: torch.device | None = None,
        warmup_steps: int = 0,
    ) -> None:
        """Start as a copy.

        Args:
            parameters: The live parameters, in a fixed order.
            decay: Upper bound of the decay.
            interval: Update every this many optimizer steps.
            device: Where the average lives; beside each parameter by default. On the CPU it costs no GPU memory, and
                each update copies the weights there.
            warmup_steps: Until this optimizer step the average is a copy of the weights.
        """
        self._parameters = list(parameters)
        self._decay = decay
        self._interval = interval
        self._warmup_steps = warmup_steps
        self.updates = 0
        self.shadow = [p.detach().to(device or p.device, torch.float32, copy=True) for p in self._parameters]

    @torch.no_grad()
    def update(self, step: int, good: torch.Tensor | None = None) -> None:
        """Average in the weights after optimizer step ``step`` (from 1).

        ``good`` is a [] bool on the device of a step that the device took or left: False leaves the average as it is.
        """
        if step <= self._warmup_steps:
            torch._foreach_copy_(self.shadow, [p.detach() for p in self._parameters])
            return
        if step % self._interval:
            return
        decay = effective_decay(self._decay, self.updates)
        for shadow, parameters in self._batches():
            live = [p.detach().to(s.device, torch.float32) for p, s in zip(parameters, shadow, strict=True)]
            # Three roundings, one after the other, are the same on every device; a fused lerp is not.
            change = torch._foreach_sub(live, shadow)
            torch._foreach_mul_(change, 1.0 - decay)
            if good is not None:
                torch._foreach_mul_(change, good.to(shadow[0].device, torch.float32))
            torch._foreach_add_(shadow, change)
        self.updates += 1

    def waits(self, step: int) -> bool:
        """Whether the host waits for the device in the update after this step (from 1): weights are copied to the CPU."""
        apart = self.shadow[0].device.type != self._parameters[0].device.type
        return apart and (step <= self._warmup_steps or step % self._interval == 0)

    def _batches(self) -> Iterator[tuple[list[torch.Tensor], list[torch.nn.Parameter]]]:
        """(averages, parameters) of about ``BATCH`` elements: float32 copies of all at once would not fit."""
        first, size = 0, 0
        for index, shadow in enumerate(self.shadow):
            size += math.prod(shadow.shape)
            if size >= BATCH or index == len(self.shadow) - 1:
                yield self.shadow[first : index + 1], self._parameters[first : index + 1]
                first, size = index + 1, 0

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Inside, the model has the averaged weights; after, the live ones again, bit for bit."""
        kept = [p.detach().clone() for p in self._parameters]
        try:
            self.copy_to_model()
            yield
        finally:
            with torch.no_grad():
                torch._foreach_copy_([p.data for p in self._parameters], kept)

    @torch.no_grad()
    def copy_to_model(self) -> None:
        """Overwrite the live weights with the average."""
        torch._foreach_copy_([p.data for p in self._parameters], self.shadow)

    def state(self, names: Sequence[str]) -> dict[str, torch.Tensor]:
        """The average as tensors by parameter name."""
        return {name: tensor.cpu().contiguous() for name, tensor in zip(names, self.shadow, strict=True)}

    @torch.no_grad()
    def load(self, names: Sequence[str], state: Mapping[str, torch.Tensor], updates: int) -> None:
        """Put ``state`` back."""
        for name, tensor in zip(names, self.shadow, strict=True):
            tensor.copy_(state[name])
        self.updates = updates
