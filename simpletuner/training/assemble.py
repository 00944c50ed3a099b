"""Part of the composition root: from options and a loaded model to what is trained and what draws.

In: a session and its parts. Out: adapter, validator, optimizer, EMA, trainee. Trains nothing, writes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
from rich.console import Console

from simpletuner.data.ondemand import OnDemand
from simpletuner.data.sampler import Plan
from simpletuner.data.types import Batch
from simpletuner.evaluation import eval_loss
from simpletuner.evaluation.validation import Validator
from simpletuner.flow.path import NoisedBatch
from simpletuner.models import quantize
from simpletuner.models.adapters import Adapter
from simpletuner.models.base import Components, EncodedText
from simpletuner.models.freezing import bias_and_norms_only
from simpletuner.reporting.progress import Reporter
from simpletuner.training import (
    adapting,
    fast_path,
    keeping,
    optimizers,
    prepare,
    translate,
    translate_adapter,
    translate_validation,
)
from simpletuner.training.averaging import Averaging
from simpletuner.training.caching import Texts
from simpletuner.training.ema import Ema
from simpletuner.training.gradient_release import GradientRelease, InParts, by_block
from simpletuner.training.gradient_sums import Float32Sums
from simpletuner.training.held_out import HeldOutLoss
from simpletuner.training.session import Session
from simpletuner.training.step import plain_score
from simpletuner.training.step_graph import StepGraphs
from simpletuner.training.stepping_aside import make_decoding_lonely
from simpletuner.training.trainee import Recipe, Trainee
from simpletuner.wording import counted


def make_validator(session: Session, parts: Components) -> Validator | None:
    """The validator with its prompts encoded, or None if there is nothing to draw."""
    options = session.config.options.validation
    if not session.draws:
        return None

    def encode(prompt: str, with_instruction: bool) -> EncodedText:
        text = session.family.encode_captions(parts, [prompt], session.text, with_instruction)
        return EncodedText(text.embeds.cpu(), text.mask.cpu())

    if session.aside:
        make_decoding_lonely(parts)
    pipeline = session.family.pipeline(parts, with_text=False)
    if options.validation_noise_scheduler:
        name = options.validation_noise_scheduler
        pipeline.scheduler = session.family.sampler(name, parts.scheduler, session.facts.shift)
    return Validator(
        pipeline,
        translate_validation.settings(session.config),
        encode,
        session.output_dir / "validation_images",
        session.device,
        (lambda: session.precision.context(session.device)) if session.precision.base else nullcontext,
        lambda: session.family.decode_in_tiles(parts.vae),
    )


def held_out_batches(
    session: Session, held_out: Sequence[prepare.Found], refs: keeping.Refs, texts: Texts, latents_of: OnDemand
) -> list[tuple[Batch, list[str]]]:
    """Held-out pictures as they are measured, dataset by dataset; empty if there is nothing to measure."""
    options = session.config.options
    stacked: list[tuple[Batch, list[str]]] = []
    for name, pictures in translate_validation.measured(options, held_out).items():
        wanted = [refs[name, p.sample.path] for p in pictures]
        size = options.evaluation.eval_batch_size
        stacked += eval_loss.batches(wanted, texts.get, latents_of, name, size)
    return stacked


def make_held_out(
    session: Session, trainee: Trainee, recipe: Recipe, plan: Plan, stacked: list[tuple[Batch, list[str]]]
) -> HeldOutLoss:
    """What measures held-out loss."""
    options = session.config.options
    sigmas = eval_loss.evenly(options.evaluation.eval_timesteps)

    def score(batch: Batch, noised: NoisedBatch) -> torch.Tensor:
        session.go_on()
        return plain_score(trainee, recipe, batch, noised)

    def measure() -> eval_loss.EvalResult:
        return eval_loss.measure(
            stacked,
            score,
            trainee.device,
            sigmas,
            options.evaluation.eval_dataset_pooling,
        )

    return HeldOutLoss(
        translate_validation.evaluation_interval(options, plan),
        measure,
        trainee,
        session.output_dir,
        session.metrics,
        session.reporter,
        live_beside_ema=options.ema.ema_validation != "ema_only",
        continued=options.adapter.init_lora is not None,
        stages=session.stages,
    )


def make_adapter(session: Session, parts: Components) -> Adapter | None:
    """Freeze the transformer and put the adapter on it; None where all weights are trained."""
    options = session.config.options
    settings = translate_adapter.settings(options)
    if settings is None:
        return None
    return adapting.put_on(
        parts.transformer,
        settings,
        options.adapter.init_lora,
        options.training.seed,
        translate_adapter.about(session.config),
        session.reporter,
    )


def make_trainee(session: Session, parts: Components, adapter: Adapter | None) -> Trainee:
    """Optimizer, EMA and gradient checkpointing around the transformer, or around the adapter on it."""
    options = session.config.options
    transformer = parts.transformer if adapter else parts.transformer.requires_grad_(True)
    if options.training.layer_freeze_strategy == "bitfit":
        trained, count = bias_and_norms_only(transformer)
        session.reporter.say(f"bitfit: {trained:,} of {count:,} weights are trained, biases and norms")
    ways = fast_path.put_on(
        session.family,
        transformer,
        options.precision.transformer_forward,
        adapter is None,
        fast_path.obstacle(session.device, session.precision),
    )
    if ways.said:
        session.reporter.say(ways.said)
    if options.precision.gradient_checkpointing:
        interval, draws = options.precision.gradient_checkpointing_interval, bool(adapter and adapter.draws)
        count = session.family.checkpoint_blocks(transformer, interval, draws)
        session.reporter.say(
            f"Gradient checkpointing: {counted(count, 'block is', 'blocks are')} recomputed in backward"
        )
    parameters = adapter.parameters if adapter else [p for p in transformer.parameters() if p.requires_grad]
    session.ranks.spread(parameters)
    named = zip(adapter.names, parameters, strict=True) if adapter else transformer.named_parameters()
    optimizer = make_optimizer(session, [(name, p) for name, p in named if p.requires_grad])
    ema = make_ema(session, parameters) if options.ema.use_ema and session.ranks.main else None
    scaler = torch.amp.GradScaler(session.device.type) if session.precision.scale_gradients else None
    trainee = Trainee(
        family=session.family,
        facts=session.facts,
        transformer=transformer,
        optimizer=optimizer,
        ema=ema,
        device=session.device,
        scaler=scaler,
        parameters=parameters,
        adapter=adapter,
        release=make_release(session, optimizer),
        sums=Float32Sums(parameters) if sums_in_float32(session) else None,
        ranks=session.ranks,
    )
    accumulation = options.training.gradient_accumulation_steps
    if session.ranks.several:
        trainee.averaging = Averaging(session.ranks, parameters, may_average_early(trainee, accumulation))
    captured = quantize.captured(options.precision.base_model_precision)
    if fast_path.can_replay(ways, trainee, accumulation, captured):
        trainee.graphs = make_graphs(session, trainee)
    return trainee


def may_average_early(trainee: Trainee, accumulation: int) -> bool:
    """Whether a gradient is whole when backward has it, and goes into the mean as it is."""
    return accumulation == 1 and not (trainee.sums or trainee.scaler or trainee.release)


def make_graphs(session: Session, trainee: Trainee) -> StepGraphs:
    """Of the whole step, what the processes exchange included; without the update where the host decides on it.

    All processes wait for the slowest, so each tells of its obstacles.
    """
    optimizer: Any = trainee.optimizer
    ranks, say = session.ranks, session.reporter.say

    def clear() -> None:
        optimizer.zero_grad()
        if trainee.averaging:
            trainee.averaging.forget()

    def warn(text: str) -> None:
        if ranks.main:
            say(text)
        else:  # its own console is silent
            Reporter(Console(stderr=True)).say(f"process {ranks.rank} of {ranks.world}: {text}")

    def gradients() -> list[torch.Tensor | None]:
        return [parameter.grad for parameter in trainee.parameters]

    def put_back(found: list[torch.Tensor | None]) -> None:
        for parameter, gradient in zip(trainee.parameters, found, strict=True):
            parameter.grad = gradient

    shared: dict[str, Any] = {
        "repeatable": not (ranks.several or trainee.release),
        "warn": warn,
        "yields": session.aside,
    }
    if trainee.guards_itself:
        return StepGraphs(optimizer.after_capture, clear, say, optimizer.make_states, **shared)
    return StepGraphs(lambda: None, clear, say, left=gradients, put_back=put_back, **shared)


def make_optimizer(session: Session, named: list[tuple[str, torch.nn.Parameter]]) -> torch.optim.Optimizer:
    """The optimizer by its name, told with the arguments in force."""
    settings = session.config.options.training
    overrides = translate.optimizer_overrides(session.config.options)
    optimizer = optimizers.build(
        *(settings.optimizer, [parameter for _, parameter in named], settings.peak_rate(), overrides),
        seed=settings.seed,
        parts=by_block(named) if settings.releases_gradients() else None,
    )
    session.reporter.say(f"Optimizer: {optimizers.describe(settings.optimizer, optimizer)}")
    return optimizer


def make_release(session: Session, optimizer: torch.optim.Optimizer) -> GradientRelease | None:
    """The hooks that step inside backward, if asked for; gradients are clipped there by value or not at all."""
    settings = session.config.options.training
    if not isinstance(optimizer, InParts):
        return None
    part = "block" if optimizer.guards_itself else "parameter"
    session.reporter.say(f"Gradient release: each {part} is stepped inside backward and its gradients freed")
    return GradientRelease(optimizer, settings.max_grad_norm)


def sums_in_float32(session: Session) -> bool:
    """Whether micro-batches are added up beside ``.grad``: float32 weights have float32 gradients anyway."""
    settings = session.config.options.training
    several = settings.gradient_accumulation_steps > 2 and settings.gradient_precision == "fp32"
    return several and session.precision.weights != torch.float32


def make_ema(session: Session, parameters: list[torch.nn.Parameter]) -> Ema:
    """The average of the weights as they are now."""
    options = session.config.options.ema
    where = torch.device("cpu") if options.ema_device == "cpu" or options.ema_cpu_only else session.device
    return Ema(parameters, options.ema_decay, options.ema_update_interval, where, options.ema_warmup_steps)
