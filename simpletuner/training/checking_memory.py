"""What `simpletuner check` says of memory and time: from configuration files alone, in a second."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from simpletuner.config.read import RunConfig
from simpletuner.errors import ModelError, Problem
from simpletuner.models.base import Facts, Family
from simpletuner.training import (
    fast_path,
    memory_estimate,
    memory_remedies,
    memory_ways,
    prepare,
    step_times,
    translate,
    translate_memory,
)
from simpletuner.training.device import CONTEXT, here, memory
from simpletuner.training.memory_estimate import GIB
from simpletuner.training.translate_memory import Subject


def memory_problems(config: RunConfig) -> list[Problem]:
    """What training refuses of ``memory`` on this machine's card, whatever the model."""
    device = here()
    if device.type != "cuda":
        return []
    problem = memory_ways.more_than_there_is(config, torch.cuda.get_device_properties(device).total_memory)
    return [problem] if problem else []


def memory_lines(
    config: RunConfig, family: Family, facts: Facts, found: Sequence[prepare.Found], steps: int
) -> tuple[list[str], list[Problem]]:
    """Memory by phase, what fits the card if there is one, and about how long a step takes.

    Args:
        config: The configuration.
        family: Knows the model.
        facts: Of the model.
        found: All datasets.
        steps: Of the whole run; 0 where it cannot start, of which no time is told.

    Returns:
        Sentences, and why training would refuse to start.
    """
    options, device = config.options, here()
    precision = translate_memory.precision_of(options)
    source = translate.load_source(options, precision)
    text = translate.text_settings(options, family.default_instruction())
    obstacle = fast_path.obstacle(device, precision) if device.type == "cuda" else None
    subject = Subject(config, family, facts, source, precision, text, device, found, obstacle)
    try:
        plan = translate_memory.plan_of(subject)
    except ModelError as error:
        return [f"Memory is not estimated: {error}"], []
    card = torch.cuda.get_device_properties(device) if device.type == "cuda" else None
    free = min(memory(device).free + CONTEXT, float(card.total_memory)) if card else math.inf
    estimated = translate_memory.within(subject, plan, free)
    step = translate_memory.timed(subject, plan)
    slowly = None if card else step_times.describe_on_cpu(step, max(1, steps))
    idle = [] if card else memory_remedies.without_card(options.precision.memory)
    if slowly:  # so small a model is trained here: what a card would take tells its user nothing
        return [*idle, *([slowly[0].upper() + slowly[1:]] if steps else [])], []
    where = "" if card else "On an NVIDIA card, "
    lines = [*idle, f"{where}{'training' if where else 'Training'} takes {memory_estimate.describe(estimated)}"]
    refused = refusals(subject, free) if card else []
    if card and not (refused or memory_problems(config)):
        lines.append(beside_free(subject, estimated, free))
    if refused or not steps:
        return lines, refused
    full = options.model.model_type == "full" and precision.weights == torch.bfloat16
    unknown = step_times.UNKNOWN[0].upper() + step_times.UNKNOWN[1:]
    lines.append(step_times.describe(step, card.name if card else None) if full else unknown)
    return lines, refused


def refusals(subject: Subject, free: float) -> list[Problem]:
    """Why training would refuse to fit the run to a card with so many bytes free; nothing if it would not."""
    wanted = subject.options.precision.memory
    if wanted == "as_set":
        return []
    budget = free if isinstance(wanted, str) else min(wanted * GIB, free)
    way = memory_ways.quickest(subject, budget)
    return [] if way.choice else [memory_ways.nothing_fits(subject, way, budget)]


def beside_free(subject: Subject, estimated: memory_estimate.Estimate, free: float) -> str:
    """The estimate beside what is free on a card, in bytes."""
    wanted = subject.options.precision.memory
    if wanted != "as_set":
        most = "them" if isinstance(wanted, str) else f"{min(wanted, free / GIB):.1f} GiB"
        return f"{free / GIB:.1f} GiB are free; memory {memory_remedies.as_written(wanted)} fits the run to {most}"
    if estimated.peak > free:
        return memory_remedies.warning(subject, estimated, free)
    return f"It fits: {free / GIB:.1f} GiB are free"
