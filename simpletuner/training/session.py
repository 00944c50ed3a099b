"""What every command that works on a configuration stands on: model facts, dtypes, device, and the pictures found."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from simpletuner.config.datasets import ImageDataset
from simpletuner.config.read import RunConfig
from simpletuner.data.remote_cache import RemoteCaches
from simpletuner.data.survey import Survey, picture_of
from simpletuner.models import imports, load
from simpletuner.models.base import Components, Facts, Family, LoadSource, TextSettings
from simpletuner.models.families import FAMILIES
from simpletuner.reporting import dataset_sheet
from simpletuner.reporting.metrics import MetricsFile
from simpletuner.reporting.progress import Reporter
from simpletuner.reporting.stages import RunFile, Stages
from simpletuner.training import device, prepare, translate, translate_data, translate_memory, translate_precision
from simpletuner.training.check import short
from simpletuner.training.precision import Precision

Purpose = Literal["train", "encode", "look"]


@dataclass(slots=True)
class Session:
    """Everything one run holds, joined step by step in ``train``.

    ``graphs`` False keeps steps from being CUDA graphs; ``aside`` True has the transformer leave the GPU while a picture is
    decoded.
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
    graphs: bool = True
    aside: bool = False

    @property
    def draws(self) -> bool:
        """Whether validation pictures are drawn."""
        return bool(self.config.prompts) and not self.config.options.validation.validation_disable


def open_session(config: RunConfig, reporter: Reporter, purpose: Purpose = "train") -> Session:
    """Print what was derived, look at the model's configuration, choose dtypes and device.

    Args:
        config: What ``config.read.load`` gave.
        reporter: Where to print.
        purpose: ``train``, ``encode`` for the caches alone, or ``look`` where the device does nothing.
    """
    options = config.options
    for notice in config.notices:
        reporter.say(notice)
    translate_precision.check_quantisation(config, device.here())  # before seconds go into libraries, hub and model
    imports.libraries()
    load.only_download_bars()
    output_dir = Path(options.checkpoints.output_dir).expanduser()
    precision = translate_memory.precision_of(options)
    where = device.choose(disable_tf32=options.precision.disable_tf32)
    source = translate.load_source(options, precision)
    family = FAMILIES[options.model.model_family]
    facts = family.peek(source)
    if purpose == "train":
        reporter.say(
            f"Training on {device.describe(where)}: {precision.describe()}, optimizer {options.training.optimizer}"
        )
    elif purpose == "encode":
        dtype = str(precision.cache).removeprefix("torch.")
        reporter.say(f"Encoding on {device.describe(where)}: the caches are {dtype}; nothing is trained")
    translate.check_validation_sizes(config, facts)
    stages = Stages(run_file=RunFile(output_dir / "run.json") if purpose == "train" else None)
    return Session(
        config=config,
        reporter=reporter,
        output_dir=output_dir,
        metrics=MetricsFile(output_dir / "metrics.jsonl", stages.emit),
        stages=stages,
        family=family,
        facts=facts,
        source=source,
        precision=precision,
        device=where,
        text=translate.text_settings(options, family.default_instruction()),
        caches=RemoteCaches(reporter.say),
    )


def find_pictures(session: Session, refuse_small: bool = True) -> tuple[list[prepare.Found], list[prepare.Found]]:
    """Rooms 1 and 2 for training and held-out sets; too small buckets are refused before any weights are loaded.

    To look after caches (``refuse_small`` false) they are no hindrance.
    """
    alignment = translate.bucket_alignment(session.config, session.facts)
    datasets = session.config.datasets

    def found(entries: Sequence[ImageDataset]) -> list[prepare.Found]:
        sources = [translate_data.dataset_source(session.config, e, alignment, session.facts.stride) for e in entries]
        return prepare.find(sources, session.reporter)

    training, held_out = found(datasets.train), found(datasets.eval)
    if refuse_small:
        check_sizes(session, training)
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


def tell_data(session: Session, parts: Components, training: list[prepare.Found]) -> None:
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
    dataset_sheet.write(session.output_dir, surveys)
