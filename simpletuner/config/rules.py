"""Rules between options: pure functions from Options to Problems."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from simpletuner.config.adapter_rules import problems as adapter_problems
from simpletuner.config.adapter_rules import without_effect as adapter_without_effect
from simpletuner.config.noise_rules import noise_problems, noise_without_effect
from simpletuner.config.optimizer_rules import optimizer_problems, optimizer_without_effect
from simpletuner.config.options import Options
from simpletuner.config.precision_rules import precision_problems, precision_without_effect
from simpletuner.config.preview_options import preview_problems
from simpletuner.config.preview_options import without_effect as preview_without_effect
from simpletuner.config.process_options import process_problems, process_without_effect
from simpletuner.config.publishing_options import publishing_problems, publishing_without_effect
from simpletuner.config.reporting_rules import reporting_problems, reporting_without_effect
from simpletuner.config.validation_rules import validation_without_effect
from simpletuner.errors import Problem, Row


def check(options: Options, where: Mapping[str, str], config_file: str) -> list[Problem]:
    """All problems between options.

    Args:
        options: Each already right by itself.
        where: The file each key came from.
        config_file: For keys that were not given.
    """
    return [
        Problem(where.get(key, config_file), key, value, reason, remedy)
        for key, value, reason, remedy in (
            *_length(options),
            *_recipe(options),
            *noise_problems(options),
            *adapter_problems(options),
            *precision_problems(options),
            *optimizer_problems(options),
            *process_problems(options),
            *reporting_problems(options),
            *preview_problems(options.previews),
            *publishing_problems(options.publishing),
            *_rest(options),
        )
    ]


def without_effect(options: Options, where: Mapping[str, str]) -> list[str]:
    """Sentences about options that are given but change nothing beside the others."""
    return [
        *_model_without_effect(options, where),
        *optimizer_without_effect(options, where),
        *noise_without_effect(options, where),
        *adapter_without_effect(options, where),
        *precision_without_effect(options, where),
        *process_without_effect(options, where),
        *reporting_without_effect(options, where),
        *validation_without_effect(options, where),
        *preview_without_effect(options.previews, not options.validation.validation_disable, where),
        *_page_without_effect(options, where),
        *publishing_without_effect(options.publishing, where),
    ]


def _model_without_effect(options: Options, where: Mapping[str, str]) -> Iterator[str]:
    model, precision = options.model, options.precision
    path = model.pretrained_model_name_or_path
    if "model_flavour" in where and "pretrained_model_name_or_path" in where:
        yield "model_flavour has no effect: pretrained_model_name_or_path names the weights"
    if "revision" in where and path and Path(path).expanduser().is_dir():
        yield f"revision has no effect: {path} is a folder of this machine"
    interval = precision.gradient_checkpointing_interval
    if interval > 1 and "gradient_checkpointing_interval" in where and not precision.gradient_checkpointing:
        yield "gradient_checkpointing_interval has no effect: gradient_checkpointing is false, so nothing is recomputed"


def _page_without_effect(options: Options, where: Mapping[str, str]) -> Iterator[str]:
    if "dashboard_port" in where and not options.page.dashboard:
        yield "dashboard_port has no effect: it acts only with dashboard"


def _length(options: Options) -> Iterator[Row]:
    epochs, steps = options.training.num_train_epochs, options.training.max_train_steps
    if epochs and steps:
        yield ("max_train_steps", steps, f"num_train_epochs is {epochs} as well", "set one of them to 0")
    if not epochs and not steps:
        reason = "there is nothing to train: max_train_steps and num_train_epochs are both 0 or not given"
        yield ("max_train_steps", steps, reason, "set one of them")


def _recipe(options: Options) -> Iterator[Row]:
    training = options.training
    if training.lr_scale_sqrt and not training.lr_scale:
        yield ("lr_scale_sqrt", True, "it acts only with lr_scale", "set lr_scale as well, or remove it")


def _rest(options: Options) -> Iterator[Row]:
    folders = {"output_dir": options.checkpoints.output_dir}
    folders |= {key: getattr(options.data, key) for key in ("cache_dir", "cache_dir_vae", "cache_dir_text")}
    for key, folder in folders.items():
        if re.match(r"[A-Za-z][A-Za-z0-9+.-]+:/", str(folder)):
            reason = "it must be a folder of this machine"
            yield (
                key,
                str(folder),
                reason,
                "URLs work as cache_dir_vae and cache_dir in entries of the dataloader file",
            )
    if options.data.maximum_image_size and not options.data.target_downsample_size:
        yield (
            "maximum_image_size",
            options.data.maximum_image_size,
            "it needs target_downsample_size",
            "set both or none",
        )
    if options.data.target_downsample_size and not options.data.maximum_image_size:
        value = options.data.target_downsample_size
        yield ("target_downsample_size", value, "it needs maximum_image_size", "set both or none")
