"""Room 8, Step: weights are stepped inside backward, as soon as their gradients are there, and these are freed.

So the gradients of a whole model are never in memory together. What needs all of them at once (a global norm, an
accumulation over micro-batches, a gradient scaler) cannot be had beside it.

Where the optimizer can guard itself, a part is a block of the model: one look at its gradients and one launch, and nothing
waits for the device. Every other optimizer steps parameter by parameter, and the host looks at each gradient.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch

from simpletuner.training.clipping import clip

Parameters = Sequence[torch.nn.Parameter]
_BLOCK = re.compile(r".*?[._]\d+(?=[._])")  # transformer_blocks.3 of transformer_blocks.3.attn1.to_q.weight


def by_block(named: Iterable[tuple[str, torch.nn.Parameter]]) -> list[list[torch.nn.Parameter]]:
    """Parameters in their order, cut where the block changes that their names tell: as far as the first number."""

    def block(item: tuple[str, torch.nn.Parameter]) -> str:
        found = _BLOCK.match(item[0])
        return found.group() if found else ""

    return [[parameter for _, parameter in some] for _, some in itertools.groupby(named, block)]


class InParts(torch.optim.Optimizer):
    """One optimizer object for each part of the parameters, seen from outside as one: each counts its own steps."""

    def __init__(
        self, parts: Sequence[Parameters], make: Callable[[int, list[torch.nn.Parameter]], torch.optim.Optimizer]
    ) -> None:
        """Build with ``make(index, parameters)``."""
        self.parts: list[Any] = [make(index, list(part)) for index, part in enumerate(parts)]
        self.members = [list(part) for part in parts]
        first = self.parts[0]
        super().__init__([{"params": members} for members in self.members], dict(first.defaults))
        # One list of groups and one table of states, shared with the parts: whoever saves or restores sees them all.
        self.param_groups = [group for part in self.parts for group in part.param_groups]
        for part in self.parts:
            part.state = self.state
        if hasattr(first, "train"):
            self.train = lambda: [part.train() for part in self.parts]
            self.eval = lambda: [part.eval() for part in self.parts]
        if self.guards_itself:
            self.register_state_dict_pre_hook(lambda _: self.count_steps())

    @property
    def guards_itself(self) -> bool:
        """Whether the device can decide if a part is stepped."""
        return all(hasattr(part, "guarded_step") for part in self.parts)

    @property
    def is_paged(self) -> bool:
        """Whether states live in pageable memory (bitsandbytes)."""
        return bool(getattr(self.parts[0], "is_paged", False))

    def get_state_buffer(self, parameter: torch.nn.Parameter, dtype: torch.dtype) -> torch.Tensor:
        """A pageable buffer for one parameter (bitsandbytes)."""
        buffer: torch.Tensor = self.parts[0].get_state_buffer(parameter, dtype=dtype)
        return buffer

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Step every part that has a gradient."""
        for members, part in zip(self.members, self.parts, strict=True):
            if any(parameter.grad is not None for parameter in members):
                part.step()

    def count_steps(self) -> None:
        """As ``GuardedAdam`` has it."""
        for part in self.parts:
            part.count_steps()

    def make_states(self) -> None:
        """As ``GuardedAdam`` has it."""
        for part in self.parts:
            part.make_states()

    def after_capture(self) -> list[torch.Tensor]:
        """As ``GuardedAdam`` has it."""
        return [tensor for part in self.parts for tensor in part.after_capture()]


class GradientRelease:
    """Steps ``optimizer`` inside backward.

    A part one of whose gradients is not finite keeps its values and its state. Where the host looks, that costs one wait for
    the device for each parameter.
    """

    def __init__(self, optimizer: InParts, clip_value: float) -> None:
        """Hook every parameter. ``clip_value`` bounds each element of a gradient; 0 is off."""
        self._optimizer, self._clip_value = optimizer, clip_value
        self.guards_itself = optimizer.guards_itself
        self._missing = [0 for _ in optimizer.parts]
        self._squares: Any = 0.0
        self._held: Any = 0
        self._good: Any = True
        self._rate = torch.zeros(())
        for index, members in enumerate(optimizer.members):
            for parameter in members:
                parameter.register_post_accumulate_grad_hook(lambda _, index=index: self._came(index))

    @property
    def held(self) -> int:
        """How many parameters the last backward did not step for their gradients; waits for the device."""
        return int(self._held)

    @property
    def count(self) -> int:
        """How many parameters are trained."""
        return sum(map(len, self._optimizer.members))

    def backward(self, loss: torch.Tensor, rate: torch.Tensor) -> None:
        """Backward and all updates; nothing is updated when the loss is not finite.

        Args:
            loss: [].
            rate: [] float32 learning rate on the device, for parts that guard themselves; others have it in their groups.
        """
        self._missing = [len(members) for members in self._optimizer.members]
        if self.guards_itself:
            self._squares, self._held = (torch.zeros((), device=loss.device) for _ in range(2))
            self._good, self._rate = torch.isfinite(loss.detach()), rate
        else:
            self._squares, self._held = 0.0, 0
            self._good = math.isfinite(loss.item())
            if not self._good:
                return
        loss.backward()
        for index, missing in enumerate(self._missing):
            if missing:  # some of its parameters took no part in this loss
                self._step(index)

    def outcome(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Of the last backward: how large the gradients were, and what became of them.

        Returns:
            Each []: the norm of all parts that were finite, before clipping; whether the loss was finite; how many parameters
            were not stepped for their gradients.
        """
        norm, held = (torch.as_tensor(number, dtype=torch.float32) for number in (self._squares, self._held))
        return norm.sqrt(), torch.as_tensor(self._good), held

    def _came(self, index: int) -> None:
        self._missing[index] -= 1
        if not self._missing[index]:
            self._step(index)

    @torch.no_grad()
    def _step(self, index: int) -> None:
        members, part = self._optimizer.members[index], self._optimizer.parts[index]
        if all(parameter.grad is None for parameter in members):
            return
        norm = clip(members, self._clip_value, by_value=True)
        if self.guards_itself:
            finite = torch.isfinite(norm) & self._good
            part.guarded_step(self._rate, torch.ones_like(norm), finite)
            self._squares = self._squares + torch.where(finite, norm * norm, 0.0)
            self._held = self._held + torch.where(finite, 0.0, float(len(members)))
        elif math.isfinite(found := norm.item()):
            part.step()
            self._squares += found**2
        else:
            self._held += len(members)
        for parameter in members:
            parameter.grad = None
