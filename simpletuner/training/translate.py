"""Options become plain values: the other half of the composition root. Pure functions; nothing is loaded or printed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from simpletuner.config.optimizer_names import SCHEDULE_FREE
from simpletuner.config.optimizer_rules import long_warmup
from simpletuner.config.options import Options
from simpletuner.config.read import RunConfig
from simpletuner.data.cache import content_key
from simpletuner.data.encode import PlacedSample
from simpletuner.data.sampler import Plan
from simpletuner.errors import ConfigError, Problem
from simpletuner.flow.schedules import Density
from simpletuner.models.base import Facts, LoadSource, TextSettings
from simpletuner.training import optimizers, translate_adapter, translate_data, translate_noise, translate_precision
from simpletuner.training.learning_rate import Schedule
from simpletuner.training.precision import Precision
from simpletuner.training.resuming import Identity
from simpletuner.training.trainee import Recipe


def load_source(options: Options, precision: Precision) -> LoadSource:
    """Where and how the model is loaded."""
    model = options.model
    return LoadSource(
        path=model.pretrained_model_name_or_path,
        revision=model.revision,
        variant=model.variant,
        transformer_path=model.pretrained_transformer_model_name_or_path,
        transformer_subfolder=model.pretrained_transformer_subfolder,
        weight_dtype=precision.base or precision.weights,
        text_dtype=precision.cache,
        vae_tiling=options.precision.vae_enable_tiling,
        vae_slicing=options.precision.vae_enable_slicing,
    )


def text_settings(options: Options, default_instruction: tuple[str, ...]) -> TextSettings:
    """How captions become tokens; the family's own instruction where the user is silent."""
    instruction = options.model.sana_complex_human_instruction
    return TextSettings(
        instruction=default_instruction if instruction is None else instruction,
        max_tokens=options.model.tokenizer_max_length,
    )


def bucket_alignment(config: RunConfig, facts: Facts) -> int:
    """Bucket sides in pixels.

    Raises:
        ConfigError: The user's alignment does not fit the model.
    """
    alignment = config.options.data.aspect_bucket_alignment or facts.alignment
    if alignment % facts.alignment:
        reason = f"this model needs multiples of {facts.alignment} pixels"
        key = "aspect_bucket_alignment"
        raise ConfigError([Problem(config.place(key), key, alignment, reason, "leave it out")])
    return alignment


def schedule(options: Options, total: int) -> Schedule:
    """The learning rate's course over a run of ``total`` steps."""
    settings = options.training
    peak = settings.peak_rate() * rate_scale(options)
    # Linear goes to 0 by tradition; the others' floor is lr_end.
    end = 0.0 if settings.lr_scheduler == "linear" and "lr_end" not in settings.model_fields_set else settings.lr_end
    return Schedule(
        name="constant" if settings.optimizer in SCHEDULE_FREE else settings.lr_scheduler,
        peak=peak,
        end=min(end, peak),  # the default may lie above a small peak
        warmup_steps=settings.lr_warmup_steps,
        total_steps=total,
        power=settings.lr_power,
        cycles=settings.lr_num_cycles,
        decay_share=settings.lr_decay_share,
    )


def recipe(options: Options, drawn: Density, total: int, precision: Precision) -> Recipe:
    """How one step is made."""
    settings = options.training
    return Recipe(
        density=drawn,
        schedule=schedule(options, total),
        accumulation=settings.gradient_accumulation_steps,
        clip_norm=settings.max_grad_norm,
        clip_by_value=settings.grad_clip_method == "value",
        seed=settings.seed,
        precision=precision,
        perturbation=translate_noise.perturbation(options),
        loss=translate_noise.loss(options),
        weighting=translate_noise.weighting(options),
        rollout=translate_noise.rollout(options),
    )


def optimizer_overrides(options: Options) -> dict[str, Any]:
    """Arguments for the optimizer; one that is schedule-free does the warm-up itself."""
    settings = options.training
    overrides = settings.optimizer_arguments()
    if settings.optimizer == "adamw_schedulefree":
        overrides["warmup_steps"] = settings.lr_warmup_steps
    return overrides


def check_optimizer(config: RunConfig, precision: Precision, device: torch.device) -> None:
    """Build the optimizer for a few numbers, before anything is loaded: its class checks what a table cannot.

    Raises:
        ConfigError: It does not take a value, or its package cannot be used.
    """
    settings = config.options.training
    weight = torch.nn.Parameter(torch.zeros(8, 8, dtype=precision.weights, device=device))
    try:
        optimizers.build(settings.optimizer, [weight], settings.peak_rate(), optimizer_overrides(config.options))
    except ValueError as error:  # what every one of these classes raises for a value out of its range
        given = "optimizer_config" if settings.optimizer_config else "optimizer"
        problem = Problem(config.place(given), given, settings.optimizer_config or settings.optimizer, str(error))
        raise ConfigError([problem]) from error
    except (ImportError, OSError) as error:
        reason = f"its package cannot be used: {error}"
        raise ConfigError([Problem(config.place("optimizer"), "optimizer", settings.optimizer, reason)]) from error


def check_validation_sizes(config: RunConfig, facts: Facts) -> None:
    """Refuse validation sizes that the model cannot draw, before anything is loaded.

    Raises:
        ConfigError: A side is not a multiple of what model and pipeline need.
    """
    needed = max(32, facts.alignment)  # the reference pipeline itself refuses sides that are no multiple of 32
    problems = [
        Problem(
            config.place("validation_resolution"),
            "validation_resolution",
            f"{width}x{height}",
            f"both sides must be multiples of {needed} pixels",
            f"use {max(needed, round(width / needed) * needed)}x{max(needed, round(height / needed) * needed)}",
        )
        for width, height in config.options.validation.validation_resolution
        if width % needed or height % needed
    ]
    if problems and not config.options.validation.validation_disable:
        raise ConfigError(problems)


def total_steps(config: RunConfig, plan: Plan) -> int:
    """Optimizer steps of the whole run, from max_train_steps or from epochs."""
    training = config.options.training
    if training.max_train_steps:
        return int(training.max_train_steps)
    micro_batches = plan.micro_batches(int(training.num_train_epochs or 1))
    return -(-micro_batches // int(training.gradient_accumulation_steps))


def notes_on_course(config: RunConfig, total: int) -> list[str]:
    """What a person should know of the steps that come, ``total`` of them."""
    kept = [
        f"[{dataset_id}] is regularisation data: its target is the base model's own prediction, and its loss stands apart, "
        "as regularisation_loss in metrics.jsonl"
        for dataset_id in translate_data.regularisation(config)
    ]
    return [*kept, *notes_on_length(config.options, total)]


def notes_on_length(options: Options, total: int) -> list[str]:
    """What only the number of steps tells, where epochs were given; with max_train_steps it was told at the start."""
    return [] if options.training.max_train_steps else long_warmup(options, total)


def identity(
    config: RunConfig,
    samples: Sequence[PlacedSample],
    precision: Precision,
    text: TextSettings,
    drawn: Density,
    model: str,
    adapter: Mapping[str, Any],
) -> Identity:
    """What makes this run this run, for comparison when it is resumed.

    Args:
        config: The configuration.
        samples: Training pictures.
        precision: Dtypes in force.
        text: How captions become tokens.
        drawn: How sigmas are drawn.
        model: The base weights' sketch.
        adapter: Its shape, empty without one.
    """
    settings = config.options.training
    return Identity(
        must_agree={**must_agree(config.options, precision), "base model": model, **adapter},
        order={
            "train_batch_size × num_processes": settings.train_batch_size * config.options.processes.num_processes,
            "gradient_accumulation_steps": settings.gradient_accumulation_steps,
            "seed": settings.seed,
            "pictures": content_key(*sorted(p.key for p in samples)),
            "repeats": {e.id: e.repeats for e in config.datasets.train},
            "vae_cache_clear_each_epoch": {e.id: translate_data.redraws(e) for e in config.datasets.train},
            "turns": translate_data.turns_together(config),
            "data_backend_sampling": config.options.data.data_backend_sampling,
        },
        recipe={
            **_learning(config.options),
            "noise": repr(drawn),
            **translate_noise.identity(config.options),
            **translate_precision.identity(config.options),
            "timestep_sampling_offset": {e.id: e.timestep_sampling_offset for e in config.datasets.train},
            "captions": content_key(*sorted(content_key(p.key, *p.sample.captions) for p in samples)),
            "masks": content_key(*sorted(content_key(p.key, p.mask_key) for p in samples if p.mask_key)),
            "masked_loss_probability": config.options.data.masked_loss_probability,
            "instruction": content_key(*text.instruction),
            "tokenizer_max_length": text.max_tokens,
            "mixed_precision": config.options.precision.mixed_precision,
            "caption_dropout_probability": config.options.data.caption_dropout_probability,
            **translate_adapter.identity(config.options),
            "is_regularisation_data": sorted(e.id for e in config.datasets.train if e.is_regularisation_data),
        },
        pictures=frozenset(p.digest for p in samples if p.digest),
    )


def must_agree(options: Options, precision: Precision) -> dict[str, Any]:
    """What options alone tell of what another value of makes another run."""
    settings = options.training
    base = {} if precision.base is None else {"base weights in": str(precision.base).removeprefix("torch.")}
    return {  # in the order in which they are compared: what explains the others first
        "model_type": options.model.model_type,
        "optimizer": settings.optimizer,
        "weights in": str(precision.weights).removeprefix("torch."),
        **base,
    }


def _learning(options: Options) -> dict[str, Any]:
    """What of optimizer, learning rate and EMA shapes the result; the optimizer's arguments are compared elsewhere."""
    settings = options.training
    return {
        "learning_rate": settings.peak_rate() * rate_scale(options),
        "lr_scheduler": [settings.lr_scheduler, settings.lr_warmup_steps, settings.lr_power, settings.lr_end],
        "lr_num_cycles": settings.lr_num_cycles,
        "lr_decay_share": settings.lr_decay_share,
        "gradient_precision": settings.gradient_precision,
        "layer_freeze_strategy": settings.layer_freeze_strategy,
        "use_ema": options.ema.use_ema,
        "ema_decay": [options.ema.ema_decay, options.ema.ema_update_interval],
        "ema_warmup_steps": options.ema.ema_warmup_steps,
        "max_grad_norm": [settings.max_grad_norm, settings.grad_clip_method],
        "optimizer_release_gradients": settings.releases_gradients(),
    }


def rate_scale(options: Options) -> float:
    """What ``lr_scale`` multiplies the learning rate by."""
    settings = options.training
    pictures = settings.train_batch_size * settings.gradient_accumulation_steps * options.processes.num_processes
    return (pictures**0.5 if settings.lr_scale_sqrt else float(pictures)) if settings.lr_scale else 1.0
