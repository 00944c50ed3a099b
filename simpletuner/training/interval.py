"""When something is done: every n steps, every n epochs or parts of one, not before a step or epoch. Pure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction


def _no_epochs(step: int) -> Fraction:
    return Fraction(0)


@dataclass(frozen=True, slots=True)
class Interval:
    """Moments on the way; start and end are the hook's own matter.

    Attributes:
        steps: Every n optimizer steps; None or 0 is never.
        epochs: Every n epochs, parts of one too; None or 0 is never. It is the step in which the epoch's last micro-batch
            was used.
        after_step: Never before this step.
        after_epoch: Never before so many epochs are done.
        epochs_done: Epochs done after a step.
    """

    steps: int | None = None
    epochs: Fraction | None = None
    after_step: int = 0
    after_epoch: int = 0
    epochs_done: Callable[[int], Fraction] = _no_epochs

    def due(self, step: int) -> bool:
        """Whether it is to be done after this step (from 1)."""
        if step < self.after_step or (self.after_epoch and self.epochs_done(step) < self.after_epoch):
            return False
        if self.steps and step % self.steps == 0:
            return True
        if not self.epochs:
            return False
        return self.epochs_done(step) // self.epochs > self.epochs_done(step - 1) // self.epochs
