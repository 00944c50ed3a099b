"""Options against the checkpoint that a run would go on from: a part of the composition root. No weights are loaded.

In: a configuration, and a checkpoint's own small files. Out: a refusal before the model is loaded, instead of after.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from simpletuner.config.read import RunConfig
from simpletuner.models import adapters
from simpletuner.models.adapters import Adapter, LoraSettings, LycorisSettings
from simpletuner.models.base import Family, LoadSource
from simpletuner.models.linears import pointwise_as_linear
from simpletuner.models.lora_start import STARTS
from simpletuner.reporting.metrics import MetricsFile
from simpletuner.training import adapting, checkpoint, rate_jump, resuming, translate, translate_adapter
from simpletuner.training.precision import Precision


def bare_adapter(config: RunConfig, family: Family, source: LoadSource) -> tuple[dict[str, Any], list[str]]:
    """The shape of the adapter that would be trained, and notes on it; both empty where all weights are trained.

    Raises:
        ModelError: Nothing in the model matches its settings, or the model's configuration cannot be read.
    """
    options = config.options
    settings = translate_adapter.settings(options)
    if settings is None:
        return {}, []
    transformer = family.bare(source)
    if options.precision.base_model_precision != "no_change":  # as quantising leaves it: other layers match
        pointwise_as_linear(family.blocks(transformer))
    if options.adapter.init_lora:
        settings = adapting.continued(adapters.read_file(options.adapter.init_lora), settings)
    adapter: Adapter = adapters.put_on(transformer, _without_start(settings), 0)
    shape = adapter.shape()
    if isinstance(settings, LoraSettings):
        shape["lora_init_type"] = settings.init if settings.init in STARTS else "default"
    return shape, adapter.notes()


def _without_start(settings: LoraSettings | LycorisSettings) -> LoraSettings | LycorisSettings:
    """First values would need the base's weights; the shape is the same without."""
    if isinstance(settings, LoraSettings):
        return replace(settings, init="default")
    return replace(settings, lokr_norm=None)


def refuse_another_run(config: RunConfig, precision: Precision, shape: dict[str, Any], folder: Path) -> None:
    """Compare all that is known without weights with a checkpoint that ``checkpoint.find`` has verified.

    Args:
        config: The configuration.
        precision: Dtypes in force.
        shape: Of the adapter, empty without one.
        folder: The checkpoint.

    Raises:
        ResumeError: It was made by another run.
    """
    known = {**translate.must_agree(config.options, precision), **shape}
    resuming.refuse_another(known, checkpoint.state_of(folder).plan, folder.name)


def notes_on_rate(config: RunConfig, total: int, state: checkpoint.TrainingState, output_dir: Path) -> list[str]:
    """What a person should know of the learning rate where a run of ``total`` steps goes on; empty if nothing is left."""
    if not 0 < state.step < total:
        return []
    before, logged = rate_jump.earlier(state.plan.get("schedule", {})), None
    if before is None:
        lines = MetricsFile(output_dir / "metrics.jsonl").read("step")
        logged = next((x.get("learning_rate") for x in reversed(lines) if x.get("step") == state.step), None)
    schedule = translate.schedule(config.options, total)
    note = rate_jump.note(schedule, before, logged, state.step, translate.rate_scale(config.options))
    return [note] if note else []
