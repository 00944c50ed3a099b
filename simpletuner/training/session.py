"""What every command that works on a configuration stands on: model facts, dtypes, device, and the pictures found."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import torch

from simpletuner.config.options import TrainingOptions
from simpletuner.config.read import RunConfig
from simpletuner.data.remote_cache import RemoteCaches
from simpletuner.data.survey import Survey, picture_of
from simpletuner.errors import ConfigError, Problem
from simpletuner.models import imports, load
from simpletuner.models.base import Components, Facts, Family, LoadSource, TextSettings
from simpletuner.models.families import FAMILIES
from simpletuner.reporting import dataset_sheet
from simpletuner.reporting.dataset_lines import short
from simpletuner.reporting.metrics import MetricsFile
from simpletuner.reporting.progress import Reporter
from simpletuner.reporting.stages import RunFile, Stages
from simpletuner.training import (
    control,
    device,
    picture_sizes,
    prepare,
    translate,
    translate_data,
    translate_memory,
    translate_precision,
)
from simpletuner.training.interrupt import GivenUp, left_alone
from simpletuner.training.precision import Precision
from simpletuner.training.publishing import Publisher
from simpletuner.training.ranks import Ranks
from simpletuner.wording import counted

Purpose = Literal["train", "encode", "look"]


@dataclass(slots=True)
class Session:
    """Everything one run holds, joined step by step in ``train``.

    ``aside`` True has the transformer leave the GPU while a picture is decoded; ``publisher`` uploads, where that is asked
    for; ``asked`` is set once a person wants the run to stop, ``exported`` once the trained model is on disk; ``alone`` tells
    whether what has started this process as one of several has ended since.
    """

    config: RunConfig
    reporter: Reporter
    output_dir: Path
    metrics: MetricsFile
    stages: Stages
    family: Family
    facts: Facts
    source: LoadSource
    precision: Precision
    device: torch.device
    text: TextSettings
    caches: RemoteCaches
    aside: bool = False
    ranks: Ranks = field(default_factory=Ranks)
    publisher: Publisher | None = None
    asked: threading.Event = field(default_factory=threading.Event)
    exported: bool = False
    alone: Callable[[], bool] = field(default_factory=lambda: left_alone(os.environ))

    def stopping(self) -> bool:
        """Whether a person wants the run to stop: by a signal, or by a request that no step has taken yet.

        The loop itself asks the hook that takes requests (``Control.stopping``); between two steps none is taken.
        """
        return self.asked.is_set() or control.waits(self.output_dir / control.FOLDER, "stop")

    def go_on(self) -> None:
        """Raises GivenUp where a person wants the run to stop: asked by what takes long between two steps."""
        if self.stopping():
            raise GivenUp

    @property
    def draws(self) -> bool:
        """Whether this process draws validation pictures."""
        return self.ranks.main and bool(self.config.prompts) and not self.config.options.validation.validation_disable


def open_session(
    config: RunConfig, reporter: Reporter, purpose: Purpose = "train", ranks: Ranks | None = None
) -> Session:
    """Print what was derived, look at the model's configuration, choose dtypes and device.

    Args:
        config: What ``config.read.load`` gave.
        reporter: Where to print.
        purpose: ``train``, ``encode`` for the caches alone, or ``look`` where the device does nothing.
        ranks: The processes of a run that trains; they find each other here.
    """
    options = config.options
    for notice in config.notices:
        reporter.say(notice)
    translate_precision.check_quantisation(config, device.here())  # before seconds go into libraries, hub and model
    imports.libraries()
    load.only_download_bars()
    output_dir = Path(options.checkpoints.output_dir).expanduser()
    precision = translate_memory.precision_of(options)
    where = device.choose(options.precision.disable_tf32, ranks if purpose == "train" else None)
    ranks = ranks or Ranks()
    ranks.join()
    if purpose == "train":
        config = _in_step(config, ranks)
    source = translate.load_source(options, precision)
    family = FAMILIES[options.model.model_family]
    facts = family.peek(source)
    for line in _on_what(options.training, purpose, where, precision, ranks):
        reporter.say(line)
    translate.check_validation_sizes(config, facts)
    tells = purpose == "train" and ranks.main
    stages = Stages(run_file=RunFile(output_dir / "run.json") if tells else None)
    return Session(
        config=config,
        reporter=reporter,
        output_dir=output_dir,
        metrics=MetricsFile(output_dir / "metrics.jsonl", stages.emit, reporter.say),
        stages=stages,
        family=family,
        facts=facts,
        source=source,
        precision=precision,
        device=where,
        text=translate.text_settings(options, family.default_instruction()),
        caches=RemoteCaches(reporter.say),
        ranks=ranks,
    )


def _on_what(
    training: TrainingOptions, purpose: Purpose, where: torch.device, precision: Precision, ranks: Ranks
) -> Iterator[str]:
    """What works, where and in which dtypes."""
    if purpose == "train":
        yield f"Training on {device.describe(where)}: {precision.describe()}, optimizer {training.optimizer}"
        yield from translate_precision.slow_on(where, precision)
        if ranks.several:
            together = training.train_batch_size * training.gradient_accumulation_steps * ranks.world
            yield (
                f"{ranks.world} processes, {ranks.local_world} on this machine: a step has {counted(together, 'picture')}, and "
                "their gradients are averaged; process 0 writes and draws"
            )
    elif purpose == "encode":
        dtype = str(precision.cache).removeprefix("torch.")
        yield f"Encoding on {device.describe(where)}: the caches are {dtype}; nothing is trained"


def _in_step(config: RunConfig, ranks: Ranks) -> RunConfig:
    """The configuration that all processes share: a seed that was drawn is that of rank 0.

    Raises:
        ConfigError: There are more or fewer processes than the configuration says.
    """
    asked = config.options.processes.num_processes
    if asked != ranks.world:
        reason = (
            f"this was started as {'one of ' if ranks.several else ''}{counted(ranks.world, 'process', 'processes')}"
        )
        remedy = "leave num_processes out, or set it to that number"
        problem = Problem(config.place("num_processes"), "num_processes", asked, reason, remedy)
        raise ConfigError([problem])
    seed = ranks.by_main(lambda: config.options.training.seed)
    training = config.options.training.model_copy(update={"seed": seed})
    return replace(config, options=config.options.model_copy(update={"training": training}))


def find_pictures(session: Session, refuse_small: bool = True) -> tuple[list[prepare.Found], list[prepare.Found]]:
    """Rooms 1 and 2 for training and held-out sets; too small buckets are refused before any weights are loaded.

    To look after caches (``refuse_small`` false) they are no hindrance.
    """
    alignment = translate.bucket_alignment(session.config, session.facts)
    datasets = session.config.datasets

    entries = (*datasets.train, *datasets.eval)
    sources = [translate_data.dataset_source(session.config, e, alignment, session.facts.stride) for e in entries]
    with session.ranks.first():  # it fetches and reads; the others find everything done
        found = prepare.find(sources, session.reporter)
    training, held_out = found[: len(datasets.train)], found[len(datasets.train) :]
    if refuse_small:
        check_sizes(session, training)
        for line in picture_sizes.notes(training, session.facts):
            session.reporter.say(line)
    return training, held_out


def check_sizes(session: Session, training: list[prepare.Found]) -> None:
    """Refuse buckets that are too small for one step. Raises DataError naming all of them."""
    options = session.config.options
    prepare.check_sizes(
        training,
        translate_data.drawing(session.config),
        options.data.allow_dataset_oversubscription,
        session.reporter,
    )


def tell_data(session: Session, parts: Components, training: list[prepare.Found]) -> list[Survey]:
    """The short form of ``simpletuner check``: what a person should know before the first step; and the sheet to look at."""
    surveys = []
    for item in training:
        cut = {
            c: session.family.cut_off(parts.tokenizer, c, session.text) for p in item.placed for c in p.sample.captions
        }
        pictures = [picture_of(p, max((cut[c] for c in p.sample.captions), key=len)) for p in item.placed]
        surveys.append(Survey(item.source.id, item.source.folder, "image", pictures, item.skipped))
        for line in short(surveys[-1]):
            session.reporter.say(line)
    if session.ranks.main:
        dataset_sheet.write(session.output_dir, surveys)
    return surveys


def mend_sheet(session: Session, surveys: list[Survey], training: list[prepare.Found]) -> None:
    """Write the sheet again where pictures turned out not to be decodable: it counts those that are trained on."""
    kept = [{p.sample.path for p in item.placed} for item in training]
    mended = [
        replace(survey, pictures=[picture for picture in survey.pictures if picture.path in paths])
        for survey, paths in zip(surveys, kept, strict=True)
    ]
    if session.ranks.main and mended != surveys:
        dataset_sheet.write(session.output_dir, mended)
