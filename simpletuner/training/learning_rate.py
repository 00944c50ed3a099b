"""Room 8, Step: the learning rate as a pure function of the step. Nothing to save, nothing to resume."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

ScheduleName = Literal[
    "constant", "constant_with_warmup", "linear", "cosine", "cosine_with_restarts", "sine", "polynomial", "wsd"
]


@dataclass(frozen=True, slots=True)
class Schedule:
    """A learning-rate schedule.

    Attributes:
        name: ``constant`` ignores warm-up; the others start with it.
        peak: Highest learning rate, > 0.
        end: Lowest learning rate after warm-up, in [0, peak]; the constant ones have none.
        warmup_steps: Optimizer steps from near 0 to the course's first value.
        total_steps: Optimizer steps of the whole run.
        power: Exponent of the polynomial.
        cycles: Courses of ``cosine_with_restarts``, waves of ``sine``, from 1.
        decay_share: Share of the whole run in which ``wsd`` decays, in (0, 1].
    """

    name: ScheduleName
    peak: float
    end: float
    warmup_steps: int
    total_steps: int
    power: float = 1.0
    cycles: int = 1
    decay_share: float = 0.2

    def at(self, step: int) -> float:
        """Learning rate of optimizer step ``step`` (from 0).

        Returns:
            end + (peak - end) * height, where height is ``course`` of the share of the steps after warm-up that are
            done. In warm-up it rises by equal steps to the course's first value; the first step already learns. Past
            the end it stays.
        """
        if self.name == "constant":
            return self.peak
        if step < self.warmup_steps:
            return self._rate(0.0) * (step + 1) / self.warmup_steps
        remaining = max(1, self.total_steps - self.warmup_steps)
        return self._rate(min(1.0, (step - self.warmup_steps) / remaining))

    def _rate(self, done: float) -> float:
        if self.name == "constant_with_warmup":
            return self.peak
        if self.name == "wsd":
            remaining = max(1, self.total_steps - self.warmup_steps)
            length = min(1.0, self.decay_share * self.total_steps / remaining)
            done = max(0.0, 1.0 - (1.0 - done) / length)
        return self.end + (self.peak - self.end) * course(self.name, done, self.power, self.cycles)


def course(name: ScheduleName, done: float, power: float = 1.0, cycles: int = 1) -> float:
    """Height in [0, 1] of a schedule after the share ``done`` in [0, 1] of its steps.

    Returns:
        linear 1 - p; cosine (1 + cos(pi p)) / 2; cosine_with_restarts the same of the fraction of n p, and 0 at the
        end; sine (1 + sin(2 pi n p)) / 2, which starts and ends half-way up; polynomial (1 - p)^power;
        wsd 1 - sqrt(p), p being the share of its decay.

    Source: the schedules of transformers' ``get_scheduler``; restarts from Loshchilov & Hutter 2017, eq. 5, with equal
        cycles; warm-up, stable, decay with the "1-sqrt" cooldown from Hägele et al. 2024, "Scaling laws and
        compute-optimal training beyond fixed training durations".
    """
    if name == "linear":
        return 1.0 - done
    if name == "cosine":
        return (1.0 + math.cos(math.pi * done)) / 2.0
    if name == "cosine_with_restarts":
        return 0.0 if done >= 1.0 else (1.0 + math.cos(math.pi * ((done * cycles) % 1.0))) / 2.0
    if name == "sine":
        return (1.0 + math.sin(2.0 * math.pi * cycles * done)) / 2.0
    if name == "polynomial":
        return (1.0 - done) ** power
    if name == "wsd":
        return 1.0 - math.sqrt(done)
    return 1.0
