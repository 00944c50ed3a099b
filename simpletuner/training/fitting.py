"""Part of the composition root: how much memory a run will take is said before anything is loaded, and fitted if asked.

In: a session and the pictures found. Out: the same session, with ``memory``'s choices in it, and a line or two. A budget in
GiB is also a bound for this process.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import torch

from simpletuner.errors import ConfigError, ModelError, Problem
from simpletuner.training import fast_path, memory_choice, memory_estimate, memory_remedies, prepare, translate_memory
from simpletuner.training.device import CONTEXT, bound_memory, memory
from simpletuner.training.memory_choice import Choice
from simpletuner.training.memory_estimate import GIB, Estimate
from simpletuner.training.memory_remedies import as_written
from simpletuner.training.session import Session
from simpletuner.training.translate_memory import Subject

MARGIN = 0.93  # of the budget is planned with: estimates of steps are within 7 %
NOMINAL = 1.1  # a card of "24 GB" reports a little less


def subject_of(session: Session, found: Sequence[prepare.Found]) -> Subject:
    """What is estimated."""
    return Subject(
        config=session.config,
        family=session.family,
        facts=session.facts,
        source=session.source,
        precision=session.precision,
        text=session.text,
        device=session.device,
        found=found,
        obstacle=fast_path.obstacle(session.device, session.precision) if session.device.type == "cuda" else None,
    )


def fit(
    session: Session, training: Sequence[prepare.Found], held_out: Sequence[prepare.Found]
) -> tuple[list[prepare.Found], list[prepare.Found]]:
    """Say what the run will take; by ``memory`` choose how, and bound it.

    Returns:
        Both kinds of datasets as they are to be encoded; those given stay as they are.

    Raises:
        ConfigError: It fits in no way, or the budget is more than the card has.
    """
    wanted, say = session.config.options.precision.memory, session.reporter.say
    given = list(training), list(held_out)
    on_gpu = session.device.type == "cuda"
    if not on_gpu:
        if wanted != "as_set":
            say(f"memory {as_written(wanted)}: it acts on NVIDIA GPUs alone, and there is none here")
        return given
    card = memory(session.device)
    here = min(card.free + torch.cuda.memory_reserved(session.device) + CONTEXT, float(card.total))
    available = session.ranks.least(here)  # all choose the same
    budget = _budget(session, available, torch.cuda.get_device_properties(session.device).total_memory)
    try:
        subject = subject_of(session, [*training, *held_out])
        if wanted != "as_set":
            subject = choose(session, subject, budget)
        estimated = translate_memory.estimate(subject, budget)
    except ModelError as error:
        say(f"Memory is not estimated: {error}")
        return given
    say(f"Memory: {memory_estimate.describe(estimated)}")
    session.aside = estimated.aside
    if session.aside:
        say("Memory: the transformer leaves the GPU while a validation picture is decoded")
    if estimated.peak > budget:
        say(memory_remedies.warning(subject, estimated, budget))
    return list(subject.found[: len(training)]), list(subject.found[len(training) :])


def _budget(session: Session, available: float, total: int) -> float:
    """Bytes that the run may take; a number becomes a bound for torch.

    Raises:
        ConfigError: More is asked for than the card has.
    """
    wanted = session.config.options.precision.memory
    if isinstance(wanted, str):
        return available
    if wanted * GIB > NOMINAL * total:
        reason = f"this card has {total / GIB:.1f} GiB"
        raise ConfigError([Problem(session.config.place("memory"), "memory", wanted, reason, "use auto")])
    bound = min(wanted * GIB, float(total))
    bound_memory(session.device, bound)
    return min(bound, available)


def choose(session: Session, subject: Subject, budget: float) -> Subject:
    """Put the quickest choice that fits into the session; returns the subject with it.

    Raises:
        ConfigError: None does.
    """
    way = quickest(subject, budget)
    if way.choice is None:
        smallest = with_choice(subject, way.smallest)
        raise ConfigError([_nothing_fits(smallest, way.estimate(way.smallest), budget)])
    chosen = with_choice(subject, way.choice)
    session.config, session.source = chosen.config, chosen.source
    session.reporter.say(memory_choice.told(way.choice, way.estimate(way.choice), budget, way.kept))
    return chosen


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
    return Way(choice, Choice(intervals[-1], tilings[-1], batches[-1]), estimate, kept)


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


def _nothing_fits(smallest: Subject, estimated: Estimate, budget: float) -> Problem:
    """The problem of a budget that no choice meets; ``smallest`` is the run with the choice that takes the least."""
    words, enough = memory_remedies.what_helps(smallest, budget)
    remedy = (
        " or ".join(words) if enough else f"{words[0]} and a smaller resolution" if words else "a smaller resolution"
    )
    reason = f"{estimated.where} take{'' if estimated.where.endswith('s') else 's'} about {estimated.peak / GIB:.1f} GiB at least, and there are {budget / GIB:.1f}"
    wanted = smallest.options.precision.memory
    return Problem(smallest.config.place("memory"), "memory", wanted, reason, f"use {remedy}")
