"""Room 8, Step: whether the learning rate jumps where a run goes on, since a schedule spans the whole run. Pure functions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from simpletuner.training.learning_rate import Schedule
from simpletuner.wording import counted

TOLERATED = 0.05  # of the rate, beside what one step of the schedule changes anyway


def earlier(recorded: Mapping[str, Any]) -> Schedule | None:
    """The schedule that a checkpoint recorded; None of one that recorded none, or by other fields."""
    try:
        return Schedule(**recorded)
    except TypeError:
        return None


def note(now: Schedule, before: Schedule | None, logged: float | None, step: int, scale: float) -> str | None:
    """The sentence on a jump, or None where there is none.

    Args:
        now: The schedule that goes on.
        before: That of the steps done, if it is known.
        logged: The rate of the last of them as the metrics have it, where ``before`` is not known.
        step: Optimizer steps done, > 0.
        scale: What ``lr_scale`` multiplies ``learning_rate`` by.

    Returns:
        Both rates, why, and what to do; None as well where the last rate is not known.
    """
    last = before.at(step - 1) if before else logged
    coming = now.at(step)
    if last is None or abs(coming - last) <= TOLERATED * last + abs(coming - now.at(step - 1)):
        return None
    better = "lower" if coming > last else "higher"
    return (
        f"Note: the learning rate goes from {last:.2g} in step {step} to {coming:.2g} in step {step + 1}, because "
        f"{_why(now, before)}. What to do, if that is not meant: set lr_scheduler to constant and learning_rate to "
        f"{last / scale:.2g}, which goes on at the rate it had; or set a {better} learning_rate."
    )


def _why(now: Schedule, before: Schedule | None) -> str:
    """What of the schedule is another than it was."""
    if before is None:
        return f"its schedule ({now.name}) spans {counted(now.total_steps, 'step')} now"
    reasons = []
    if now.name != before.name:
        reasons.append(f"its schedule is {now.name} instead of {before.name}")
    if now.peak != before.peak:
        reasons.append(f"its highest rate is {now.peak:.2g} instead of {before.peak:.2g}")
    if now.total_steps != before.total_steps:
        reasons.append(
            f"its schedule ({now.name}) spans {counted(now.total_steps, 'step')} instead of {before.total_steps}"
        )
    return " and ".join(reasons) or f"the options of its schedule ({now.name}) are others"
