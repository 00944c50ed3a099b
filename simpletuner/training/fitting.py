"""Part of the composition root: how much memory a run will take is said before anything is loaded, and fitted if asked.

In: a session and the pictures found. Out: the same session, with ``memory``'s choices in it, and a line or two. A budget in
GiB is also a bound for this process.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from simpletuner.errors import ConfigError, ModelError
from simpletuner.training import (
    fast_path,
    memory_choice,
    memory_estimate,
    memory_remedies,
    memory_ways,
    prepare,
    translate_memory,
)
from simpletuner.training.device import CONTEXT, bound_memory, memory
from simpletuner.training.memory_estimate import GIB
from simpletuner.training.session import Session
from simpletuner.training.translate_memory import Subject


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
    found = [*training, *held_out]
    on_gpu = session.device.type == "cuda"
    if not on_gpu:
        for sentence in memory_remedies.without_card(wanted):
            say(sentence)
        return found[: len(training)], found[len(training) :]
    card = memory(session.device)
    here = min(card.free + torch.cuda.memory_reserved(session.device) + CONTEXT, float(card.total))
    available = session.ranks.least(here)  # all choose the same
    budget = _budget(session, available, torch.cuda.get_device_properties(session.device).total_memory)
    try:
        subject = subject_of(session, found)
        if wanted != "as_set":
            subject = choose(session, subject, budget)
            found = list(subject.found)
        estimated = translate_memory.estimate(subject, budget)
    except ModelError as error:
        say(f"Memory is not estimated: {error}")
        return found[: len(training)], found[len(training) :]
    say(f"Memory: {memory_estimate.describe(estimated)}")
    session.aside = estimated.aside
    if session.aside:
        say("Memory: the transformer leaves the GPU while a validation picture is decoded")
    if estimated.peak > budget:
        say(memory_remedies.warning(subject, estimated, budget))
    return found[: len(training)], found[len(training) :]


def _budget(session: Session, available: float, total: int) -> float:
    """Bytes that the run may take; a number becomes a bound for torch.

    Raises:
        ConfigError: More is asked for than the card has.
    """
    wanted = session.config.options.precision.memory
    if isinstance(wanted, str):
        return available
    beyond = memory_ways.more_than_there_is(session.config, total)
    if beyond:
        raise ConfigError([beyond])
    bound = min(wanted * GIB, float(total))
    bound_memory(session.device, bound)
    return min(bound, available)


def choose(session: Session, subject: Subject, budget: float) -> Subject:
    """Put the quickest choice that fits into the session; returns the subject with it.

    Raises:
        ConfigError: None does.
    """
    way = memory_ways.quickest(subject, budget)
    if way.choice is None:
        raise ConfigError([memory_ways.nothing_fits(subject, way, budget)])
    chosen = memory_ways.with_choice(subject, way.choice)
    session.config, session.source = chosen.config, chosen.source
    session.reporter.say(memory_choice.told(way.choice, way.estimate(way.choice), budget, way.kept))
    return chosen
