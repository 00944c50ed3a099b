"""Options of validation pictures become plain values: a part of ``translate``. Pure functions; nothing is drawn."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction

from simpletuner.config.options import Options
from simpletuner.config.read import RunConfig
from simpletuner.data.encode import PlacedSample
from simpletuner.data.sampler import Plan
from simpletuner.data.types import Size
from simpletuner.evaluation.pictures import ValidationSettings
from simpletuner.training import held_apart, translate_data
from simpletuner.training.interval import Interval
from simpletuner.training.prepare import Found
from simpletuner.training.trainee import Trainee
from simpletuner.training.validating import Shown


def settings(config: RunConfig) -> ValidationSettings:
    """What is drawn, and how."""
    options = config.options.validation
    seed = options.validation_seed
    return ValidationSettings(
        prompts=config.prompts,
        negative_prompt=options.validation_negative_prompt,
        guidance=options.validation_guidance,
        steps=options.validation_num_inference_steps,
        sizes=tuple(Size(*size) for size in options.validation_resolution),
        images_per_prompt=options.num_validation_images,
        seed=config.options.training.seed if seed is None else seed,
        randomize=options.validation_randomize,
        strengths=config.strengths,
        batch_size=options.validation_batch_size,
        time_budget=options.validation_time_budget,
    )


def interval(options: Options, plan: Plan) -> Interval:
    """When pictures are drawn between start and end."""
    chosen = options.validation
    return Interval(
        steps=chosen.validation_step_interval,
        epochs=Fraction(chosen.validation_epoch_interval or 0),
        after_step=chosen.validate_after_step,
        after_epoch=chosen.validate_after_epoch,
        epochs_done=epochs_done(options, plan),
    )


def evaluation_interval(options: Options, plan: Plan) -> Interval:
    """When held-out loss is measured between start and end: at every checkpoint where the user is silent."""
    chosen = options.evaluation
    silent = chosen.eval_steps_interval is None and chosen.eval_epoch_interval is None
    return Interval(
        steps=options.checkpoints.checkpoint_step_interval if silent else chosen.eval_steps_interval,
        epochs=Fraction(chosen.eval_epoch_interval or 0).limit_denominator(10_000),
        epochs_done=epochs_done(options, plan),
    )


def held_out_limits(options: Options, sizes: Mapping[str, int]) -> dict[str, int]:
    """How many pictures of each eval dataset are measured; one that is not is absent.

    Args:
        options: All options.
        sizes: Pictures of each eval dataset.
    """
    chosen = options.evaluation
    most = chosen.num_eval_images or sum(sizes.values())
    limits: dict[str, int] = {}
    for dataset_id, size in sizes.items():
        if chosen.eval_dataset_id is None or dataset_id in chosen.eval_dataset_id:
            taken = sum(limits.values()) if chosen.eval_dataset_pooling else 0
            limits[dataset_id] = min(size, most - taken)
    return {dataset_id: limit for dataset_id, limit in limits.items() if limit}


def measured(options: Options, held_out: Sequence[Found]) -> dict[str, list[PlacedSample]]:
    """The pictures of each eval dataset whose loss is measured; one of which none is, is absent."""
    if options.evaluation.eval_loss_disable:
        return {}
    limits = held_out_limits(options, {item.source.id: len(item.placed) for item in held_out})
    return {item.source.id: item.placed[: limits[item.source.id]] for item in held_out if item.source.id in limits}


def notes_on_held_out(config: RunConfig, training: Sequence[Found], held_out: Sequence[Found]) -> list[str]:
    """What a person should know of the pictures that are measured: those that are learned as well."""
    kept = translate_data.regularisation(config)  # the base model's own prediction is their target
    trained = {item.source.id: item.placed for item in training if item.source.id not in kept}
    return held_apart.notes(trained, measured(config.options, held_out))


def epochs_done(options: Options, plan: Plan) -> Callable[[int], Fraction]:
    """Step → epochs whose micro-batches have all been used, and the part of the one begun."""
    accumulation = options.training.gradient_accumulation_steps
    return lambda step: plan.epochs_before(step * accumulation)


def draws_at_start(options: Options) -> bool:
    """Whether pictures are drawn before the first step: said outright, or the base model's unless that is turned off."""
    chosen = options.validation
    if "validation_on_startup" in chosen.model_fields_set:
        return chosen.validation_on_startup
    return not chosen.disable_benchmark


def shown(options: Options, trainee: Trainee) -> Shown:
    """Which weights pictures are drawn with."""
    return Shown(
        ema=trainee.ema,
        mode=options.ema.ema_validation,
        adapter=trainee.adapter,
        strength=options.adapter.validation_lycoris_strength,
        optimizer=trainee.optimizer,
        continued=options.adapter.init_lora is not None,
        benchmark=not options.validation.disable_benchmark,
    )
