"""What takes less memory, and by how much: told where a run does not fit. Nothing is changed by itself.

In: a run and a budget. Out: words. Each change is estimated, so that what is named helps.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from simpletuner.config.options import Options
from simpletuner.training import translate_memory
from simpletuner.training.memory_estimate import GIB, Estimate
from simpletuner.training.translate_memory import Subject


def as_written(wanted: str | float) -> str:
    """A value of ``memory`` as it is written."""
    return wanted if isinstance(wanted, str) else f"{wanted:g}"


def without_card(wanted: str | float) -> list[str]:
    """What is said of ``memory`` where there is no NVIDIA GPU."""
    if wanted == "as_set":
        return []
    return [f"memory {as_written(wanted)}: it acts on NVIDIA GPUs alone, and there is none here"]


@dataclass(frozen=True, slots=True)
class Remedy:
    """A change that takes less memory: words for a person, and what to set."""

    words: str
    changes: dict[str, dict[str, Any]]


def remedies(options: Options) -> list[Remedy]:
    """Changes from the mildest on; only those that would change something."""
    training, precision = options.training, options.precision
    released: dict[str, Any] = {"optimizer_release_gradients": True, "grad_clip_method": "value"}
    eight = "ao-adamw8bit"
    listed: list[Remedy] = []
    if not precision.gradient_checkpointing or precision.gradient_checkpointing_interval > 1:
        changes = {"gradient_checkpointing": True, "gradient_checkpointing_interval": 1}
        listed.append(Remedy("gradient_checkpointing true with interval 1", {"precision": changes}))
    if options.ema.use_ema and options.ema.ema_device != "cpu" and not options.ema.ema_cpu_only:
        listed.append(Remedy("ema_device cpu", {"ema": {"ema_device": "cpu"}}))
    if not precision.vae_enable_tiling:
        listed.append(Remedy("vae_enable_tiling true", {"precision": {"vae_enable_tiling": True}}))
    if training.train_batch_size > 1:
        listed.append(Remedy("train_batch_size 1", {"training": {"train_batch_size": 1}}))
    if options.model.model_type == "full":
        bits = Remedy(f"optimizer {eight}", {"training": {"optimizer": eight}})
        freed = Remedy("optimizer_release_gradients true with grad_clip_method value", {"training": released})
        both = f"optimizer {eight}, optimizer_release_gradients true and grad_clip_method value"
        new = [bits] * (training.optimizer != eight) + [freed] * (not training.releases_gradients())
        if len(new) == 2:
            new.append(Remedy(both, {"training": {"optimizer": eight, **released}}))
        listed += [*new, *_without_average(options, new)]
        listed.append(
            Remedy("model_type lora", {"model": {"model_type": "lora"}, "adapter": {"lora_type": "standard"}})
        )
    return listed


def _without_average(options: Options, others: list[Remedy]) -> list[Remedy]:
    """No EMA: on the CPU, too, it takes the GPU's memory while pictures are drawn. By itself, and with all of ``others``."""
    if not options.ema.use_ema:
        return []
    off = Remedy("use_ema false", {"ema": {"use_ema": False}})
    if not others:
        return [off]
    most = others[-1]
    return [off, Remedy(f"use_ema false, {most.words}", {**off.changes, **most.changes})]


def with_changes(subject: Subject, remedy: Remedy) -> Subject:
    """The same run with a remedy's options."""
    options = subject.options
    for section, update in remedy.changes.items():
        options = options.model_copy(update={section: getattr(options, section).model_copy(update=update)})
    source = replace(subject.source, vae_tiling=options.precision.vae_enable_tiling)
    precision = translate_memory.precision_of(options)  # another optimizer may train bf16 weights
    return replace(subject, config=replace(subject.config, options=options), source=source, precision=precision)


def what_helps(subject: Subject, budget: float) -> tuple[list[str], bool]:
    """Changes that make it fit, each by itself, and whether any does; if none, the one that saves the most."""
    peaks = {}
    for remedy in remedies(subject.options):
        changed = with_changes(subject, remedy)
        peaks[remedy.words] = translate_memory.estimate(changed, budget).peak
    fitting = [words for words, peak in peaks.items() if peak <= budget]
    return (fitting, True) if fitting or not peaks else ([min(peaks, key=lambda w: peaks[w])], False)


def warning(subject: Subject, estimated: Estimate, budget: float) -> str:
    """What a person should change first, where the estimate exceeds what there is."""
    words, enough = what_helps(subject, budget)
    first = f"What to do first: {words[0]}" if words else "What to do: use a smaller resolution"
    beyond = "" if enough else ", and more: by itself it is not enough"
    return (
        f"WARNING: {estimated.where} would take about {estimated.peak / GIB:.1f} GiB, and {budget / GIB:.1f} GiB are free. "
        f"{first}{beyond}; or memory auto, which recomputes and tiles as far as needed."
    )
