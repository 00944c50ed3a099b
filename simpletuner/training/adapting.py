"""An adapter's way through a run: made and put on, told, exported. The steps' order is here: load → (quantise) → put on.

In: plain settings and a loaded model. Out: an Adapter, and at the end its files in the output folder.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from simpletuner import __version__
from simpletuner.errors import ModelError
from simpletuner.models import adapters, lora
from simpletuner.models.adapters import Adapter, AdapterFile, LoraSettings, LycorisSettings
from simpletuner.reporting.progress import Reporter
from simpletuner.training import schedule_free

Settings = LoraSettings | LycorisSettings


def put_on(
    transformer: Any, settings: Settings, init: Path | None, seed: int, about: dict[str, str], reporter: Reporter
) -> Adapter:
    """Put a fresh or a continued adapter on a frozen transformer, and say what it is.

    Args:
        transformer: Loaded; quantised before this, if at all.
        settings: What the configuration asks for.
        init: Adapter to continue from, or None: its rank, alpha and layers win over ``settings``.
        seed: For first weights.
        about: For the metadata of its files.
        reporter: For what was put where.

    Raises:
        ModelError: Nothing matches, or ``init`` does not fit.
    """
    if init is None:
        adapter = adapters.put_on(transformer, settings, seed)
    else:
        file = adapters.read_file(init)
        kept = continued(file, settings)
        for line in _differences(settings, kept):
            reporter.say(f"Note: init_lora, {line}")
        adapter = adapters.put_on(transformer, kept, seed)
        adapters.load(adapter, adapter.read(file.path))
        if average := schedule_free.keeper(file.path):
            schedule_free.put(average, transformer, adapter)
        reporter.say(f"The adapter goes on from {f'{schedule_free.WORDS} of ' if average else ''}{file.path}")
    adapter.about = about
    for line in adapter.describe():
        reporter.say(line)
    return adapter


def continued(file: AdapterFile, settings: Settings) -> Settings:
    """The settings under which a file can be trained on."""
    if file.is_lycoris != isinstance(settings, LycorisSettings):
        kind = "lycoris" if file.is_lycoris else "standard"
        raise ModelError(f"{file.path} (init_lora) is a {kind} adapter. What to do: set lora_type to {kind}.")
    if isinstance(settings, LoraSettings):
        return lora.settings_of(file, settings.dropout)
    config = {**settings.config, **(file.config or {})}
    if "algo" not in config:
        raise ModelError(
            f"{file.path} (init_lora) does not tell its LyCORIS settings. What to do: name them in lycoris_config."
        )
    return replace(settings, config=config, lokr_norm=None)


def _differences(asked: Settings, continued: Settings) -> list[str]:
    """Sentences where the file wins over the configuration."""
    if isinstance(asked, LoraSettings) and isinstance(continued, LoraSettings):
        pairs = {
            "lora_rank": (asked.rank, continued.rank),
            "scale (alpha over rank)": (asked.scale, continued.scale),
            "use_dora": (asked.dora, continued.dora),
        }
        return [f"{key}: {a} → {c}, as in the file" for key, (a, c) in pairs.items() if a != c]
    if isinstance(asked, LycorisSettings) and isinstance(continued, LycorisSettings):
        return (
            []
            if not asked.config or dict(asked.config) == dict(continued.config)
            else ["lycoris_config: that of the file is used"]
        )
    return []


def about(base_model: str, dataset_words: list[str]) -> dict[str, str]:
    """Metadata that tells a reader of the file what it is for."""
    return {
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": "sana/lora",
        "modelspec.implementation": "diffusers",
        "simpletuner": json.dumps({"version": __version__, "base_model": base_model, "trained_words": dataset_words}),
    }


def export(adapter: Adapter, output_dir: Path, layout: str) -> Path:
    """Write the final files; returns the weights' path."""
    adapter.save(output_dir, layout)
    return output_dir / adapters.WEIGHTS
