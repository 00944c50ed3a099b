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
from simpletuner.training.device import CONTEXT, memory
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


def fit(session: Session, found: Sequence[prepare.Found]) -> None:
    """Say what the run will take; by ``memory`` choose how, and bound it.

    Raises:
        ConfigError: It fits in no way, or the budget is more than the card has.
    """
    wanted, say = session.config.options.precision.memory, session.reporter.say
    on_gpu = session.device.type == "cuda"
    if not on_gpu:
        if wanted != "as_set":
            say(f"memory {as_written(wanted)}: it acts on NVIDIA GPUs alone, and there is none here")
        return
    card = memory(session.device)
    here = min(card.free + torch.cuda.memory_reserved(session.device) + CONTEXT, float(card.total))
    available = session.ranks.least(here)  # all choose the same
    budget = _budget(session, available, torch.cuda.get_device_properties(session.device).total_memory)
    try:
        subject = subject_of(session, found)
        if wanted != "as_set":
            choose(session, subject, budget)
            subject = subject_of(session, found)
        estimated = translate_memory.estimate(subject, budget)
    except ModelError as error:
        say(f"Memory is not estimated: {error}")
        return
    say(f"Memory: {memory_estimate.describe(estimated)}")
    session.aside = estimated.aside
    if session.aside:
        say("Memory: the transformer leaves the GPU while a validation picture is decoded")
    if estimated.peak > budget:
        say(memory_remedies.warning(subject, estimated, budget))


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
    torch.cuda.set_per_process_memory_fraction(max(0.0, bound - CONTEXT) / total, session.device)
    return min(bound, available)


def choose(session: Session, subject: Subject, budget: float) -> None:
    """Put the quickest choice that fits into the session.

    Raises:
        ConfigError: None does.
    """
    way = quickest(subject, budget)
    if way.choice is None:
        raise ConfigError([_nothing_fits(subject, way.smallest, way.estimate(way.smallest), budget)])
    _put(session, subject, way.choice)
    session.reporter.say(memory_choice.told(way.choice, way.estimate(way.choice), budget, way.kept))


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


def _put(session: Session, subject: Subject, choice: Choice) -> None:
    """The choice, into the session's options, its source and its datasets."""
    options = session.config.options
    precision = options.precision.model_copy(
        update={
            "gradient_checkpointing": choice.interval > 0,
            "gradient_checkpointing_interval": choice.interval or 1,
            "vae_enable_tiling": choice.tiling,
        }
    )
    data = options.data.model_copy(update={"vae_batch_size": choice.vae_batch})
    changed = options.model_copy(update={"precision": precision, "data": data})
    session.config = replace(session.config, options=changed)
    session.source = replace(session.source, vae_tiling=choice.tiling)
    for item in subject.found:
        if item.source.encode_batch > choice.vae_batch:
            item.source = replace(item.source, encode_batch=choice.vae_batch)


def _nothing_fits(subject: Subject, smallest: Choice, estimated: Estimate, budget: float) -> Problem:
    """The problem of a budget that no choice meets."""
    options = subject.options
    precision = options.precision.model_copy(
        update={
            "gradient_checkpointing": smallest.interval > 0,
            "gradient_checkpointing_interval": smallest.interval or 1,
        }
    )
    data = options.data.model_copy(update={"vae_batch_size": smallest.vae_batch})
    small = options.model_copy(update={"precision": precision, "data": data})
    for item in subject.found:
        item.source = replace(item.source, encode_batch=min(item.source.encode_batch, smallest.vae_batch))
    source = replace(subject.source, vae_tiling=smallest.tiling)
    subject = replace(subject, config=replace(subject.config, options=small), source=source)
    words, enough = memory_remedies.what_helps(subject, budget)
    remedy = (
        " or ".join(words) if enough else f"{words[0]} and a smaller resolution" if words else "a smaller resolution"
    )
    reason = f"{estimated.where} take{'' if estimated.where.endswith('s') else 's'} about {estimated.peak / GIB:.1f} GiB at least, and there are {budget / GIB:.1f}"
    return Problem(subject.config.place("memory"), "memory", options.precision.memory, reason, f"use {remedy}")
