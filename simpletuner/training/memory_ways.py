"""Part of the composition root: which ways of a run fit a budget, and the words for what fits in none.

In: a ``Subject`` and bytes. Out: a ``Way``, or the ``Problem`` that training refuses with and `simpletuner check` tells of.
Loads nothing, changes nothing and asks no card.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

from simpletuner.config.read import RunConfig
from simpletuner.errors import Problem
from simpletuner.training import memory_choice, memory_remedies, translate_memory
from simpletuner.training.memory_choice import Choice
from simpletuner.training.memory_estimate import GIB, Estimate
from simpletuner.training.translate_memory import Subject

MARGIN = 0.93  # of the budget is planned with: estimates of steps are within 7 %
NOMINAL = 1.1  # a card of "24 GB" reports a little less


@dataclass(frozen=True, slots=True)
class Way:
    """What fits a budget.

    Attributes:
        choice: The quickest that fits, or None.
        smallest: What takes the least.
        estimate: Of a choice.
        kept: Keys that are set, and so not chosen.
    """

    choice: Choice | None
    smallest: Choice
    estimate: Callable[[Choice], Estimate]
    kept: list[str]


def quickest(subject: Subject, budget: float) -> Way:
    """The quickest way within a budget in bytes; loads nothing and changes nothing."""
    options, where = subject.options, subject.config.where
    precision = options.precision
    keys = {"gradient_checkpointing", "gradient_checkpointing_interval"} & where.keys()
    intervals = [translate_memory.interval(options)] if keys else list(memory_choice.INTERVALS)
    tilings = [precision.vae_enable_tiling]
    if "vae_enable_tiling" not in where and not precision.vae_enable_tiling:
        tilings.append(True)
    batch = options.data.vae_batch_size
    batches = [batch] if "vae_batch_size" in where else memory_choice.batches(batch)
    kept = sorted(keys | ({"vae_enable_tiling", "vae_batch_size"} & where.keys()))
    first = Choice(intervals[0], tilings[0], batch)
    estimate = estimator(subject, MARGIN * budget)
    vae = memory_choice.vae_ways(tilings, batches)
    choice = memory_choice.choose(estimate, first, intervals, vae, MARGIN * budget)
    smallest = Choice(intervals[-1], tilings[-1], batches[-1])
    if (
        choice is None
    ):  # there is nothing more cautious than the least, so that may come as near to the card as it likes
        estimate = estimator(subject, budget)
        choice = smallest if estimate(smallest).peak <= budget else None
    return Way(choice, smallest, estimate, kept)


def estimator(subject: Subject, budget: float) -> Callable[[Choice], Estimate]:
    """An estimate of a choice; what does not depend on it is metered once."""

    @lru_cache
    def plan(tiling: bool) -> Any:
        return translate_memory.plan_of(replace(subject, source=replace(subject.source, vae_tiling=tiling)))

    def estimate(choice: Choice) -> Estimate:
        base = plan(choice.tiling)
        caching = replace(base.caching, vae_batch=min(base.caching.vae_batch, choice.vae_batch))
        changed = replace(base, interval=choice.interval, caching=caching)
        return translate_memory.within(subject, changed, budget)

    return estimate


def with_choice(subject: Subject, choice: Choice) -> Subject:
    """The same run as a choice has it, in its options, its source and its datasets."""
    options = subject.options
    precision = options.precision.model_copy(
        update={
            "gradient_checkpointing": choice.interval > 0,
            "gradient_checkpointing_interval": choice.interval or 1,
            "vae_enable_tiling": choice.tiling,
        }
    )
    data = options.data.model_copy(update={"vae_batch_size": choice.vae_batch})
    changed = options.model_copy(update={"precision": precision, "data": data})
    found = [
        replace(item, source=replace(item.source, encode_batch=min(item.source.encode_batch, choice.vae_batch)))
        for item in subject.found
    ]
    return replace(
        subject,
        config=replace(subject.config, options=changed),
        source=replace(subject.source, vae_tiling=choice.tiling),
        found=found,
    )


def nothing_fits(subject: Subject, way: Way, budget: float) -> Problem:
    """The problem of a budget in bytes that no choice meets, by the one that takes the least."""
    smallest, estimated = with_choice(subject, way.smallest), way.estimate(way.smallest)
    words, enough = memory_remedies.what_helps(smallest, budget)
    remedy = (
        " or ".join(words) if enough else f"{words[0]} and a smaller resolution" if words else "a smaller resolution"
    )
    reason = f"{estimated.where} take{'' if estimated.where.endswith('s') else 's'} about {estimated.peak / GIB:.1f} GiB at least, and there are {budget / GIB:.1f}"
    wanted = smallest.options.precision.memory
    return Problem(smallest.config.place("memory"), "memory", wanted, reason, f"use {remedy}")


def more_than_there_is(config: RunConfig, total: int) -> Problem | None:
    """The problem of ``memory`` in GiB that is more than a card of ``total`` bytes has; None if it is not."""
    wanted = config.options.precision.memory
    if isinstance(wanted, str) or wanted * GIB <= NOMINAL * total:
        return None
    return Problem(config.place("memory"), "memory", wanted, f"this card has {total / GIB:.1f} GiB", "use auto")
