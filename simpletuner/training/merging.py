"""What is done with a finished adapter: merged into its base model's folder, or written in the other key layout."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from simpletuner.errors import ModelError, TunerError
from simpletuner.models import adapters, imports, load, lora, lora_layout
from simpletuner.models.adapters import Adapter, AdapterFile, LycorisSettings
from simpletuner.models.base import LoadSource
from simpletuner.models.families import FAMILIES
from simpletuner.reporting.progress import Reporter
from simpletuner.training import drawing_again, schedule_free, subject
from simpletuner.training.checkpoint import staged_folder


def merge(
    adapter: Path, base: str | None, output: Path, dtype: torch.dtype, strength: float, reporter: Reporter
) -> None:
    """Write the base model with the adapter in its weights, as a complete diffusers folder.

    Args:
        adapter: The file, or the folder it lies in; of a checkpoint its EMA weights, or the average that its optimizer keeps.
        base: Folder or hub id of the pipeline it was trained on; None for the one that its file names.
        output: A folder that does not exist yet.
        dtype: Of the written weights; the sum is made in float32.
        strength: Multiplies the adapter.
        reporter: For what is done.

    Raises:
        ModelError: The adapter or the model cannot be loaded, or they do not fit.
        TunerError: ``output`` exists, or cannot be written.
    """
    if output.exists():
        raise TunerError(f"{output} exists already (--output). What to do: name another folder, or remove it.")
    adapter = subject.weights_meant(adapter.expanduser())
    file = adapters.read_file(adapter)
    record = subject.record_near(adapter)
    source = _under(file, base, record, dtype)
    imports.libraries()
    load.only_download_bars()
    family = FAMILIES["sana"]
    beside = f" with the transformer of {source.transformer_path}" if source.transformer_path else ""
    reporter.say(f"Loading {source.path}{beside}")
    parts = family.load(source)
    put = on_model(file, parts.transformer)
    if average := schedule_free.keeper(adapter):
        schedule_free.put(average, parts.transformer, put)
    reporter.say(f"With {schedule_free.WORDS if average else 'the weights'} of {adapter}")
    reporter.say(put.describe()[0])
    if strength == 1.0:
        put.merge()
    else:
        with put.scaled(strength):
            put.merge()
    torch.nn.Module.to(parts.transformer, dtype)  # diffusers' own would warn of modules kept in float32, without any
    with staged_folder(output) as staging:
        family.pipeline(parts, with_text=True).save_pretrained(staging)
        if record:
            text = json.dumps(drawing_again.kept(record), indent=1, ensure_ascii=False)
            (staging / subject.MERGED_RECORD).write_text(text + "\n", encoding="utf-8")
    reporter.say(f"merged model     {output} (a diffusers folder, {str(dtype).removeprefix('torch.')})")
    if record:
        reporter.say(
            f"`simpletuner generate` prompts and draws with it as the run's validation did ({subject.MERGED_RECORD})"
        )
    else:
        reporter.say(f"For `simpletuner generate`: {drawing_again.without_run({})}")


def _under(file: AdapterFile, base: str | None, record: Mapping[str, Any], dtype: torch.dtype) -> LoadSource:
    """The model that is merged into: the one asked for, else the file's with what its run loaded beside it."""
    if base:
        return LoadSource(base, key="--base", text_dtype=dtype)
    if file.base_model is None:
        raise ModelError(f"{file.path} does not tell its base model. What to do: name it with --base.")
    own = record if record.get("pretrained_model_name_or_path") == file.base_model else {}
    return LoadSource(
        path=file.base_model,
        revision=own.get("revision"),
        variant=own.get("variant"),
        transformer_path=own.get("pretrained_transformer_model_name_or_path") or None,
        transformer_subfolder=own.get("pretrained_transformer_subfolder") or "transformer",
        text_dtype=dtype,
        key=f"the base model that {file.path.name} names; --base names another",
    )


def on_model(file: AdapterFile, transformer: object) -> Adapter:
    """A finished adapter put on a model, with the settings that its file tells.

    Raises:
        ModelError: The file does not tell them, or does not fit the model.
    """
    if file.is_lycoris and file.config is None:
        raise ModelError(
            f"{file.path} is a LyCORIS file that does not tell its settings. What to do: put its "
            f"{adapters.LYCORIS_CONFIG} beside it."
        )
    settings = LycorisSettings(file.config) if file.is_lycoris and file.config else lora.settings_of(file)
    put = adapters.put_on(transformer, settings, seed=0)
    adapters.load(put, put.read(file.path))
    return put


def convert(adapter: Path, output: Path, reporter: Reporter) -> None:
    """Write a LoRA in the other key layout: ComfyUI's for one of diffusers, and the other way round.

    Args:
        adapter: The file, or the folder it lies in; of a checkpoint the weights as ``merge`` takes them.
        output: The file to write; must not exist.
        reporter: For what is done.

    Raises:
        ModelError: It is no LoRA of either layout.
        TunerError: ``output`` exists.
    """
    if output.exists():
        raise TunerError(f"{output} exists already. What to do: name another file, or remove it.")
    adapter = subject.weights_meant(adapter.expanduser())
    file = adapters.read_file(adapter)
    if file.is_lycoris:
        raise ModelError(
            f"{file.path} is a LyCORIS file: its keys have one layout everywhere, so there is nothing to convert. It fits "
            "programs that use diffusers' layer names for Sana."
        )
    average = schedule_free.keeper(adapter)
    file = schedule_free.averaged(average, file) if average else file
    metadata = {key: value for key, value in file.metadata.items() if key != "format"}
    try:
        if lora_layout.is_comfyui(file.tensors):
            layout = "diffusers"
            tensors, facts = lora_layout.to_diffusers(file.tensors)
            prefixed = {lora_layout.DIFFUSERS_PREFIX + key: value for key, value in facts.items()}
            metadata[lora_layout.METADATA] = json.dumps(prefixed)
        else:
            layout = "ComfyUI"
            tensors = lora_layout.to_comfyui(file.tensors, file.metadata)
    except ValueError as error:
        raise ModelError(f"{file.path}: {error}. What to do: give a LoRA that was trained for Sana.") from error
    adapters.write(output, tensors, metadata)
    what = f"{schedule_free.WORDS} of {adapter}" if average else str(adapter)
    reporter.say(f"wrote {output} in the layout of {layout}, from {what}")
