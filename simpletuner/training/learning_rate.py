"""Room 8, Step: the learning rate as a pure function of the step. Nothing to save, nothing to resume."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

ScheduleName = Literal["constant", "constant_with_warmup", "linear", "cosine", "polynomial"]


@dataclass(frozen=True, slots=True)
class Schedule:
    """A learning-rate schedule.

    Attributes:
        name: ``constant`` ignores warm-up; the others start with it.
        peak: Learning rate after warm-up, > 0.
        end: Learning rate at ``total_steps`` (cosine and polynomial; linear ends at 0).
        warmup_steps: Optimizer steps from near 0 to ``peak``.
        total_steps: Optimizer steps of the whole run.
        power: Exponent of the polynomial.
    """

    name: ScheduleName
    peak: float
    end: float
    warmup_steps: int
    total_steps: int
    power: float = 1.0

    def at(self, step: int) -> float:
        """Learning rate of optimizer step ``step`` (from 0).

        Returns:
            Warm-up: peak * (step + 1) / warmup_steps, so that the first step already learns. Then, with p the share
            of the remaining steps already done: linear peak (1 - p); cosine end + (peak - end)(1 + cos(pi p)) / 2;
            polynomial end + (peak - end)(1 - p)^power. Never below min(end, peak) once past the end.

        Source: the schedules of transformers' ``get_scheduler``; cosine with a floor as in Loshchilov & Hutter 2017.
        """
        if self.name == "constant":
            return self.peak
        if step < self.warmup_steps:
            return self.peak * (step + 1) / self.warmup_steps
        if self.name == "constant_with_warmup":
            return self.peak
        done = min(1.0, (step - self.warmup_steps) / max(1, self.total_steps - self.warmup_steps))
        if self.name == "linear":
            return self.peak * (1.0 - done)
        if self.name == "cosine":
            return self.end + (self.peak - self.end) * (1.0 + math.cos(math.pi * done)) / 2.0
        return self.end + (self.peak - self.end) * (1.0 - done) ** self.power
