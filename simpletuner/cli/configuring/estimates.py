"""What a proposal takes of memory, time and disk, by the program's own estimator; and the model's and the card's facts.

Files are tried in a temporary folder, as the program itself reads them. Nothing is downloaded but the model's small
configuration files, and nothing written elsewhere.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from simpletuner.cli.configuring import content
from simpletuner.cli.configuring.proposal import POCKET, Machine, Shape
from simpletuner.config.catalogue import FLAVOURS
from simpletuner.config.examples import example_folder
from simpletuner.config.optimizer_names import PACKAGES
from simpletuner.config.read import RunConfig, load
from simpletuner.data.encode import PlacedSample
from simpletuner.data.placement import place
from simpletuner.data.types import Sample, Size
from simpletuner.errors import ModelError, UnreachableError
from simpletuner.models.base import Facts, LoadSource
from simpletuner.models.families import FAMILIES
from simpletuner.models.sana import published
from simpletuner.training import (
    fast_path,
    memory_estimate,
    memory_ways,
    prepare,
    step_times,
    translate,
    translate_data,
    translate_memory,
)
from simpletuner.training.device import CONTEXT, memory
from simpletuner.training.disk import free_bytes, latent_bytes
from simpletuner.training.memory_estimate import GIB
from simpletuner.training.translate_memory import Subject
from simpletuner.wording import counted, lasting

SCREEN = 0.4  # GiB that a card of a nominal size never has free
SANA = FAMILIES["sana"]


@dataclass(frozen=True, slots=True)
class Model:
    """A model that was looked at.

    Attributes:
        looked_at: A folder or hub id with its configuration files: its own, or those that were published.
        facts: Read off them.
        note: What a person should know, or "".
    """

    looked_at: str
    facts: Facts
    note: str = ""

    @property
    def shape(self) -> Shape:
        """What a proposal needs of it."""
        return Shape(self.facts.native_resolution, self.facts.alignment)


def machine(gib: float | None) -> Machine:
    """The card of this machine, or one of so many GiB."""
    from importlib.util import find_spec

    packages = frozenset(package for package, _ in PACKAGES.values() if find_spec(package))
    if gib is not None:
        return Machine(gib, packages=packages)
    if not torch.cuda.is_available():
        return Machine(0.0, packages=packages)
    card = torch.cuda.get_device_properties(0)
    modern = (card.major, card.minor) >= fast_path.OLDEST
    free = memory(torch.device("cuda", 0)).free + CONTEXT
    return Machine(round(min(free, card.total_memory) / GIB, 1), card.name, modern, packages)


def look_at(name: str, aside: Path) -> Model:
    """A model's facts from its configuration files; those that were published where no hub can be asked.

    Args:
        name: A flavour, ``pocket``, a hub id or a folder.
        aside: A temporary folder for published configurations.

    Raises:
        ModelError: It is no Sana pipeline; or no hub can be asked and the name is no flavour's.
    """
    path = str(example_folder(POCKET) / "model") if name == POCKET else FLAVOURS.get(name, name)
    try:
        return Model(path, SANA.peek(LoadSource(path, key="model")))
    except UnreachableError:
        flavour = next((key for key, hub_id in FLAVOURS.items() if name in (key, hub_id)), None)
        if flavour is None:
            raise
        folder = str(published.write(flavour, aside / flavour))
        note = f"No hub could be asked: what {flavour} takes is estimated from its published configuration."
        return Model(folder, SANA.peek(LoadSource(folder)), note)


def load_from(files: Mapping[str, Any], aside: Path) -> RunConfig:
    """The files as the program reads them, from a temporary folder. Raises ConfigError with all that is wrong."""
    with tempfile.TemporaryDirectory(dir=aside) as place_:
        folder, config = Path(place_), dict(files[content.CONFIG])
        named = {"data_backend_config": content.DATASETS, "user_prompt_library": content.PROMPTS}
        named["lycoris_config"] = content.LYCORIS
        config |= {key: str(folder / name) for key, name in named.items() if key in config}
        for name, value in {**files, content.CONFIG: config}.items():
            (folder / name).write_text(json.dumps(value), encoding="utf-8")
        return load(str(folder / content.CONFIG), environ={})


def subject(config: RunConfig, model: Model, sizes: list[Size]) -> Subject:
    """What the estimator works on: the pictures in their places, by their sizes alone."""
    options, precision = config.options, translate_memory.precision_of(config.options)
    source = replace(translate.load_source(options, precision), path=model.looked_at)
    text = translate.text_settings(options, SANA.default_instruction())
    found = []
    for entry in config.datasets.train:
        where = translate_data.dataset_source(config, entry, model.facts.alignment, model.facts.stride)
        places = [PlacedSample(Sample(Path(), size, ("",)), place(size, where.placement, 0), "") for size in sizes]
        found.append(prepare.Found(where, places, []))
    return Subject(config, SANA, model.facts, source, precision, text, torch.device("cpu"), found)


def budget(card: Machine) -> float:
    """Bytes that a run may take on a card."""
    return (card.gib if card.name else card.gib - SCREEN) * GIB


def fits(asked: Subject, card: Machine) -> bool | None:
    """Whether a run fits a card in the way that ``memory`` auto will find; None without a card."""
    if not card.gib:
        return None
    if asked.options.precision.memory == "as_set":
        return translate_memory.estimate(asked, budget(card)).peak <= budget(card)
    return memory_ways.quickest(asked, budget(card)).choice is not None


def lines(asked: Subject, card: Machine) -> list[str]:
    """Memory, time and disk in sentences."""
    try:
        plan, way = translate_memory.plan_of(asked), None
        if card.gib and asked.options.precision.memory != "as_set":
            way = memory_ways.quickest(asked, budget(card))
            plan = replace(plan, interval=(way.choice or way.smallest).interval)
        step = translate_memory.timed(asked, plan)
        told = _memory(asked, card, plan, way) if card.gib else _memory_without(asked, step)
        return [*told, _time(asked, card, step), _disk(asked, plan)]
    except ModelError as error:
        return [f"Nothing is estimated: {error}"]


def _memory(asked: Subject, card: Machine, plan: memory_estimate.Plan, way: memory_ways.Way | None) -> list[str]:
    """On a card: of the way that ``memory`` will take, or of the plan as it is set where it chooses none."""
    if way:
        found, fit, least = way.estimate(way.choice or way.smallest), way.choice is not None, " at least"
    else:
        found, least = translate_memory.within(asked, plan, budget(card)), ""
        fit = found.peak <= budget(card)
    there = f"; {card.gib:g} GiB are there" if fit else f"{least}: MORE than the {card.gib:g} GiB that are there"
    return [f"Memory: {memory_estimate.describe(found)}{there}"]


def _memory_without(asked: Subject, step: step_times.Step) -> list[str]:
    """Without a card."""
    if step_times.on_two_cores(step) is not None:  # what a card would take tells its user nothing
        return []
    found = translate_memory.estimate(asked, budget(Machine(80.0)))
    return [f"Memory: on an NVIDIA card it would take {memory_estimate.describe(found)}; here it is main memory"]


def _time(asked: Subject, card: Machine, step: step_times.Step) -> str:
    options = asked.options
    steps = int(options.training.max_train_steps or 0)
    if not card.gib:
        return f"Time: {step_times.describe_on_cpu(step, steps) or 'on a CPU a step takes minutes'}"
    full = options.model.model_type == "full" and asked.precision.weights == torch.bfloat16
    took = step_times.milliseconds(step) if full else None
    if took is None:
        return f"Time: {step_times.UNKNOWN}"
    same = "" if "H100" in card.name else f"; {card.name or 'your card'} is another, and slower or faster by its kind"
    told = counted(steps, "step takes", "steps take")
    return f"Time: {told} about {lasting(took * steps / 1000)} on one {step_times.MACHINE}{same}"


def _disk(asked: Subject, plan: memory_estimate.Plan) -> str:
    """Checkpoints, export, latents and the downloaded model."""
    options, learning, counts = asked.options, plan.learning, plan.footprint
    average = 4.0 if options.ema.use_ema else 0.0
    kept = plan.trained * (learning.weight + learning.state + average)
    pipeline = counts.weights * 2 + counts.vae_weights * 4 + counts.text_weights * 2
    export = pipeline if options.model.model_type == "full" else plan.trained * 4
    buckets = (placed.placement.bucket for item in asked.found for placed in item.placed)
    facts, width = asked.facts, asked.precision.cache.itemsize
    latents = latent_bytes(buckets, facts.stride, facts.latent_channels, width)
    steps = int(options.training.max_train_steps or 0)
    every = options.checkpoints.checkpoint_step_interval
    number = max(1, -(-steps // every)) if every else 1
    limit = options.checkpoints.checkpoints_total_limit
    number = min(number, limit) if limit else number
    total = kept * number + export + latents
    model_too = (
        ""
        if Path(str(options.model.pretrained_model_name_or_path)).is_dir()
        else (f"; the model is downloaded once, about {pipeline / GIB:.0f} GiB")
    )
    free = free_bytes(options.checkpoints.output_dir)
    return (
        f"Disk: about {total / GIB:.2g} GiB{', MORE than' if total > free else ' of'} the {free / GIB:.1f} that are free: {number} × {kept / GIB:.2g} of checkpoints, {export / GIB:.2g} of result, "
        f"{latents / GIB:.2g} of latents{model_too}"
    )
