"""Quantisation options become plain values: the precision half of ``translate``. Pure functions; nothing is loaded."""

from __future__ import annotations

from typing import Any

import torch

from simpletuner.config.options import Options
from simpletuner.config.read import RunConfig
from simpletuner.errors import ConfigError, Problem
from simpletuner.models.quantize import PLANS, Settings, obstacle
from simpletuner.training.precision import Precision

_DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


def base_quantisation(options: Options, precision: Precision, device: torch.device) -> Settings | None:
    """How the frozen model is quantised, None if it is not."""
    compute = precision.autocast or precision.weights
    return _settings(options.precision.base_model_precision, options, compute, device)


def text_quantisation(options: Options, precision: Precision, device: torch.device) -> Settings | None:
    """How the text encoder is quantised, None if it is not."""
    return _settings(options.precision.text_encoder_1_precision, options, precision.cache, device)


def _settings(name: str, options: Options, compute: torch.dtype, device: torch.device) -> Settings | None:
    if name == "no_change":
        return None
    on_cpu = (
        options.precision.quantize_via == "cpu" and PLANS[name].capability is None
    )  # else the CPU cannot try it out
    return Settings(name, torch.device("cpu") if on_cpu else device, compute)


def default_dtype(options: Options) -> torch.dtype | None:
    """``base_model_default_dtype``, the dtype of what a quantised base leaves as it is; None where it does not act."""
    precision = options.precision
    if precision.base_model_precision == "no_change" or precision.base_model_default_dtype is None:
        return None
    return _DTYPES[precision.base_model_default_dtype]


def check_quantisation(config: RunConfig, device: torch.device) -> None:
    """Refuse what this machine cannot quantise, before anything is loaded.

    Raises:
        ConfigError: A package is missing, or the device does not do it.
    """
    problems = quantisation_problems(config, device)
    if problems:
        raise ConfigError(problems)


def quantisation_problems(config: RunConfig, device: torch.device) -> list[Problem]:
    """What this machine cannot quantise of what is asked."""
    keys = ("base_model_precision", "text_encoder_1_precision")
    asked = {key: getattr(config.options.precision, key) for key in keys}
    obstacles = {key: obstacle(name, device) for key, name in asked.items() if name != "no_change"}
    return [Problem(config.place(key), key, asked[key], *why) for key, why in obstacles.items() if why]


def slow_on(device: torch.device, precision: Precision) -> list[str]:
    """What is said of a precision that only costs time on this device; nothing of any other."""
    # The pocket model's steps on two cores, batch 16: 0.3 s in float32, 0.27 s in bf16 (of a CPU that has it), 3.5 s in fp16.
    if device.type != "cpu" or precision.autocast != torch.float16:
        return []
    return [
        "WARNING: mixed_precision fp16 is slow on a CPU: steps of the pocket model took more than ten times as long as in float32. What to "
        "do: set mixed_precision to no"
    ]


def identity(options: Options) -> dict[str, Any]:
    """What of this changes a result, for comparison when a run is resumed."""
    precision = options.precision
    return {
        "base_model_precision": precision.base_model_precision,
        "text_encoder_1_precision": precision.text_encoder_1_precision,
        "vae_enable_tiling": precision.vae_enable_tiling,
        "transformer_forward": precision.transformer_forward,
    }
