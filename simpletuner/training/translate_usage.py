"""The way to use what was trained, as Python lines: a part of the composition root. Pure functions.

In: the options, and what a run derived from them. Out: lines to be run as they are, which draw the first validation
picture again: the same prompt, size, steps, guidance, seed and dtypes. In float32 and on a CPU it is the same to the pixel.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from simpletuner.config.options import Options
from simpletuner.config.read import RunConfig
from simpletuner.models.base import TextSettings
from simpletuner.training.drawing_again import PUBLISHED_TOKENS
from simpletuner.training.precision import Precision
from simpletuner.training.translate_validation import settings as validation_settings


def usage(
    config: RunConfig,
    text: TextSettings,
    instruction: tuple[str, ...],
    precision: Precision,
    device: str,
    trained: Path,
    sampling: Sampling | None = None,
) -> list[str]:
    """Python lines that draw with what was exported as validation does.

    Args:
        config: The configuration.
        text: How prompts become tokens.
        instruction: The pipeline's own instruction prefix, which need not be given.
        precision: Dtypes in force.
        device: ``cpu`` or ``cuda``.
        trained: The pipeline's folder, or the adapter's file; what exists is written as an absolute path, so that the
            lines can be run in any folder.
        sampling: How the picture was drawn where the options alone do not tell; None where they do.
    """
    sampling = sampling or Sampling()
    trained = Path(_place(trained))
    lycoris = config.options.model.model_type == "lora" and config.options.adapter.lora_type == "lycoris"
    return [
        "import diffusers",
        *(["import lycoris"] if lycoris else []),
        "import torch",
        "",
        *_notes(config.options),
        *_loading(config, precision, trained),
        *sampling.lines(),
        *([f'pipe.to("{device}")'] if device != "cpu" else []),
        *([f'network.to("{device}")'] if device != "cpu" and lycoris else []),
        *_drawing(config, text, instruction, sampling.step),
        f"image.save({_quoted(trained.parent / 'image.png')})",
    ]


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the last pictures were drawn.

    Attributes:
        step: Optimizer steps done: a seed may depend on it.
        sampler: diffusers' class of the sampler, empty for that of the pipeline's own folder.
        arguments: What its ``from_config`` is given besides the folder's settings.
    """

    step: int = 0
    sampler: str = ""
    arguments: Mapping[str, Any] = field(default_factory=dict)

    def lines(self) -> list[str]:
        """Python that puts the sampler into ``pipe``."""
        if not self.sampler:
            return []
        given = ", ".join(f"{key}={value!r}" for key, value in self.arguments.items())
        return [f"pipe.scheduler = diffusers.{self.sampler}.from_config(pipe.scheduler.config, {given})"]


def _quoted(value: object) -> str:
    """A Python string in double quotes; JSON's escapes are Python's too."""
    return json.dumps(str(value), ensure_ascii=False)


def _place(value: object) -> str:
    """A folder or file that is here, by its absolute path; a hub id, or what is not here, as it is."""
    path = Path(str(value)).expanduser()
    return str(path.absolute()) if path.exists() else str(value)


def _notes(options: Options) -> list[str]:
    """In which way the picture differs a little from the validation picture, if it does."""
    precision = options.precision
    lora = options.model.model_type == "lora"
    named = {"base model": precision.base_model_precision if lora else "no_change"}
    named["text encoder"] = precision.text_encoder_1_precision
    return [
        f"# validation had the {part} in {value}; this has it whole, so its pictures are a little different"
        for part, value in named.items()
        if value != "no_change"
    ]


def _dtypes(options: Options, precision: Precision) -> dict[str, torch.dtype]:
    """Of each part; the VAE is always in float32."""
    transformer = precision.base or precision.weights
    if options.model.model_type == "lora" and options.adapter.lora_type == "lycoris":
        transformer = (
            torch.float32
        )  # LyCORIS computes in the dtype of its own weights, and the layers around must agree
    return {"transformer": transformer, "text_encoder": precision.cache}


def _pipeline(place: object, more: str, dtypes: dict[str, torch.dtype]) -> str:
    """The line that loads a pipeline: in one dtype, or in one for each part."""
    other = {name: dtype for name, dtype in dtypes.items() if dtype != torch.float32}
    listed = ", ".join(f'"{name}": {dtype}' for name, dtype in {"default": torch.float32, **other}.items())
    dtype = f"{{{listed}}}" if other else "torch.float32"
    return f"pipe = diffusers.SanaPipeline.from_pretrained({_quoted(place)}{more}, dtype={dtype})"


def _loading(config: RunConfig, precision: Precision, trained: Path) -> list[str]:
    """Lines that make ``pipe``."""
    options = config.options
    model, adapter = options.model, options.adapter
    dtypes = _dtypes(options, precision)
    if model.model_type == "full":
        return [_pipeline(trained, "", dtypes)]
    lines = _base(model, dtypes)
    first = config.prompts[0][0] if config.prompts else ""
    strength = config.strengths.get(first, adapter.validation_lycoris_strength)
    if adapter.lora_type == "lycoris":
        settings: Any = adapter.lycoris_config
        strength *= float(settings.get("multiplier", 1.0))
        return [
            *lines,
            f"network, _ = lycoris.create_lycoris_from_weights({strength}, {_quoted(trained)}, pipe.transformer)",
            "network.apply_to()",
        ]
    file = _quoted(trained)
    if adapter.lora_format == "comfyui":
        file = '"diffusers.safetensors"'
        command = shlex.join(["simpletuner", "convert-adapter", str(trained), "diffusers.safetensors"])
        lines = [f"# first, in a shell: {command}", *lines]
    if strength == 1.0:
        return [*lines, f"pipe.load_lora_weights({file})"]
    return [
        *lines,
        f'pipe.load_lora_weights({file}, adapter_name="trained")',
        f'pipe.set_adapters("trained", {strength})',
    ]


def _base(model: Any, dtypes: dict[str, torch.dtype]) -> list[str]:
    """Lines that load the base model of an adapter, with the weights that were named beside it."""
    named = {"revision": model.revision, "variant": model.variant}
    more = "".join(f", {key}={_quoted(value)}" for key, value in named.items() if value)
    base, other = model.pretrained_model_name_or_path, model.pretrained_transformer_model_name_or_path
    if not other:
        return [_pipeline(_place(base), more, dtypes)]
    subfolder = _quoted(model.pretrained_transformer_subfolder)
    arguments = f"{_quoted(_place(other))}, subfolder={subfolder}, dtype={dtypes['transformer']}"
    return [
        f"transformer = diffusers.SanaTransformer2DModel.from_pretrained({arguments})",
        _pipeline(_place(base), f"{more}, transformer=transformer", dtypes),
    ]


def _drawing(config: RunConfig, text: TextSettings, instruction: tuple[str, ...], step: int) -> list[str]:
    """Lines that make ``image``, the first validation picture."""
    options = config.options.validation
    width, height = options.validation_resolution[0]
    prompt = config.prompts[0][1] if config.prompts else "a prompt"
    words = [_quoted(prompt)]
    if options.validation_negative_prompt:
        words.append(f"negative_prompt={_quoted(options.validation_negative_prompt)}")
    settings = [
        f"width={width}",
        f"height={height}",
        f"num_inference_steps={options.validation_num_inference_steps}",
        f"guidance_scale={options.validation_guidance}",
    ]
    tokens = ["use_resolution_binning=False"]
    if not text.instruction or not prompt.strip():  # the empty prompt has no prefix
        tokens.append("complex_human_instruction=None")
    elif text.instruction != instruction:
        tokens.append(f"complex_human_instruction=[{', '.join(map(_quoted, text.instruction))}]")
    if text.max_tokens != PUBLISHED_TOKENS:
        tokens.append(f"max_sequence_length={text.max_tokens}")
    arguments = [
        *words,
        *settings,
        *tokens,
        f'generator=torch.Generator("cpu").manual_seed({validation_settings(config).first_seed(step)})',
    ]
    return ["image = pipe(", *(f"    {argument}," for argument in arguments), ").images[0]"]
