"""The overfit alarm: a pure function of what was measured.

The rule. Held-out loss rises over ``patience`` evaluations when each of them is higher than the one before. Training loss
falls when its mean over the steps of that rise is lower than over as many steps before it (for a rise from the very start,
when the second half of the rise is lower than the first). Both together raise the alarm, once for each rise. It stands until
held-out loss is lower than where the rise began. This is the only rule there is: pages show what the run wrote down by it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

PATIENCE = 3
Figures = Sequence[tuple[int, float]]


@dataclass(frozen=True, slots=True)
class Alarm:
    """What raised it.

    Attributes:
        low: The step at which the rise began: the lowest figure of it.
        held_out: Held-out loss there and now.
        training: Mean training loss before the rise and in it.
        evaluations: How many have been higher than the one before.
    """

    low: int
    held_out: tuple[float, float]
    training: tuple[float, float]
    evaluations: int


def alarm(held_out: Figures, training: Figures, patience: int = PATIENCE) -> Alarm | None:
    """The alarm that the last evaluation raises, or None: also where the same rise has raised it before.

    Args:
        held_out: (step, loss) of every evaluation, in order.
        training: (step, loss) of every step, in order.
        patience: Evaluations that must have risen one after another, 1 or more.
    """
    rising = 0
    while rising + 1 < len(held_out) and held_out[-rising - 1][1] > held_out[-rising - 2][1]:
        rising += 1
    if rising < patience:
        return None
    low = len(held_out) - 1 - rising
    found = [_at(held_out, training, low, end) for end in range(low + patience, len(held_out))]
    return found[-1] if not any(found[:-1]) else None


def standing(before: Alarm | None, raised: Alarm | None, loss: float) -> Alarm | None:
    """The alarm that is in force after an evaluation.

    Args:
        before: The one in force until now.
        raised: The one that this evaluation raises.
        loss: Its held-out loss; NaN ends nothing.
    """
    if raised is not None:
        return raised
    return None if before is not None and loss < before.held_out[0] else before


def _at(held_out: Figures, training: Figures, low: int, end: int) -> Alarm | None:
    """The alarm at one evaluation of a rise, whatever was said before."""
    first, last = held_out[low][0], held_out[end][0]
    before = [loss for step, loss in training if 2 * first - last < step <= first]
    within = [loss for step, loss in training if first < step <= last]
    if not before:
        before, within = within[: len(within) // 2], within[len(within) // 2 :]
    if not before or not within:
        return None
    means = sum(before) / len(before), sum(within) / len(within)
    if means[1] >= means[0]:
        return None
    return Alarm(first, (held_out[low][1], held_out[end][1]), means, end - low)
