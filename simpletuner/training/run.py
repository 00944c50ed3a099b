"""The composition root: options become plain values, the rooms are joined, the run goes from start to export.

The only module besides the command line that sees the options.
"""

from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path

import torch

from simpletuner.config.read import RunConfig
from simpletuner.data.cache import write_atomic
from simpletuner.data.loader import Loader
from simpletuner.data.ondemand import OnDemand, TextsOnDemand
from simpletuner.evaluation import eval_loss
from simpletuner.evaluation.validation import Validator
from simpletuner.models.adapters import Adapter
from simpletuner.models.base import Components, EncodedText
from simpletuner.models.freezing import bias_and_norms_only
from simpletuner.reporting.progress import Reporter
from simpletuner.training import (
    adapting,
    checkpoint,
    optimizers,
    prepare,
    quantising,
    resuming,
    translate,
    translate_adapter,
    translate_data,
    translate_noise,
    translate_precision,
)
from simpletuner.training.caching import Texts, fill_caches, on_demand
from simpletuner.training.ema import Ema
from simpletuner.training.gradient_release import GradientRelease, PerParameter
from simpletuner.training.gradient_sums import Float32Sums
from simpletuner.training.hooks import Checkpointing, HeldOutLoss, Progress, ValidationPictures
from simpletuner.training.interrupt import stop_on_interrupt
from simpletuner.training.loop import Hook, Recipe, Trainee, plain_score
from simpletuner.training.loop import train as train_loop
from simpletuner.training.redraw import Samples
from simpletuner.training.session import Session, check_sizes, find_pictures, open_session, tell_data


def train(config: RunConfig, reporter: Reporter | None = None) -> None:
    """Run a configuration from pictures on disk to an exported diffusers folder.

    Args:
        config: What ``config.read.load`` gave.
        reporter: Where to print; standard output by default.

    Raises:
        TunerError: Anything a person can mend, with what to do.
        KeyboardInterrupt: Interrupted; a checkpoint has been written.
    """
    session = open_session(config, reporter or Reporter())
    with resuming.only_run_in(session.output_dir):
        try:
            _train(session)
        finally:
            session.caches.close()


def _train(session: Session) -> None:
    """All rooms in order; the output folder is ours alone."""
    config, options = session.config, session.config.options
    record = json.dumps(config.raw, indent=2, default=str)
    write_atomic(session.output_dir / "config.resolved.json", record.encode())
    translate.check_optimizer(config, session.precision, session.device)
    training, held_out = find_pictures(session)
    resume_from, notes = checkpoint.find(session.output_dir, config.options.checkpoints.resume_from_checkpoint)
    for note in notes:
        session.reporter.say(note)
    session.reporter.say(f"Loading {session.source.path}")
    parts = session.family.load(session.source)
    sketch = resuming.sketch(parts.transformer)
    quantised = translate_precision.base_quantisation(options, session.precision, session.device)
    if quantised:
        session.reporter.say(quantising.transformer(session.family, parts, session.facts, quantised))
    adapter = make_adapter(session, parts)
    parts.vae.to(session.device)
    tell_data(session, parts, training)
    refs, texts = fill_caches(session, parts, [*training, *held_out])
    check_sizes(session, training)  # again: pictures that could not be decoded are out now
    validator = make_validator(session, parts)
    if isinstance(texts, TextsOnDemand):
        pass  # it stays where it is: captions are still to be encoded
    elif options.precision.text_encoder_1_precision != "no_change":
        parts.text_encoder = None  # what is exported is read again: the published weights, not the quantised ones
    else:
        parts.text_encoder.to("cpu")  # not needed until export: its memory belongs to training now
    if validator is None and all(item.source.caching == "ahead" for item in training):
        parts.vae.to("cpu")
    parts.transformer.to(session.device)

    latents_of = on_demand(session, parts)
    samples = Samples(training, refs, latents_of.forget)
    plan = samples.plan(translate_data.drawing(config), options.training.seed)
    loader = Loader(
        samples,
        texts,
        plan,
        options.training.seed,
        options.data.caption_dropout_probability,
        {item.source.id: item.source.timestep_offset for item in training},
        latents_of,
        translate_data.regularisation(config),
    )
    total = translate.total_steps(config, plan)
    drawn = translate_noise.density(options, session.facts)
    recipe = translate.recipe(options, drawn, total, session.precision)
    trainee = make_trainee(session, parts, adapter)
    shape = adapter.shape() if adapter else {}
    identity = translate.identity(config, samples.placed, session.precision, session.text, drawn, sketch, shape)
    start = resume(session, trainee, resume_from, identity, total)
    if start < total:
        for line in translate_noise.describe(recipe, training, session.facts):
            session.reporter.say(line)
    hooks = make_hooks(session, trainee, recipe, validator, held_out, refs, texts, latents_of, identity)
    try:
        done = run_steps(session, trainee, recipe, loader, start, total, hooks)
    finally:
        latents_of.close()
        texts.close()
    if options.precision.text_encoder_1_precision != "no_change":
        parts.text_encoder = None
    finish(session, parts, trainee, hooks, done, total)


def make_validator(session: Session, parts: Components) -> Validator | None:
    """The validator with its prompts encoded, or None if there is nothing to draw."""
    options = session.config.options.validation
    if options.validation_disable or not session.config.prompts:
        return None

    def encode(prompt: str, with_instruction: bool) -> EncodedText:
        text = session.family.encode_captions(parts, [prompt], session.text, with_instruction)
        return EncodedText(text.embeds.cpu(), text.mask.cpu())

    return Validator(
        session.family.pipeline(parts, with_text=False),
        translate.validation_settings(session.config),
        encode,
        session.output_dir / "validation_images",
        session.device,
        (lambda: session.precision.context(session.device)) if session.precision.base else nullcontext,
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
    if options.precision.gradient_checkpointing:
        count = session.family.checkpoint_blocks(transformer, options.precision.gradient_checkpointing_interval)
        session.reporter.say(f"Gradient checkpointing: {count} blocks are recomputed in backward")
    parameters = adapter.parameters if adapter else [p for p in transformer.parameters() if p.requires_grad]
    optimizer = make_optimizer(session, parameters)
    ema = make_ema(session, parameters) if options.ema.use_ema else None
    scaler = torch.amp.GradScaler(session.device.type) if session.precision.scale_gradients else None
    return Trainee(
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
    )


def make_optimizer(session: Session, parameters: list[torch.nn.Parameter]) -> torch.optim.Optimizer:
    """The optimizer by its name, told with the arguments in force."""
    settings = session.config.options.training
    overrides = translate.optimizer_overrides(session.config.options)
    optimizer = optimizers.build(
        *(settings.optimizer, parameters, settings.peak_rate(), overrides),
        seed=settings.seed,
        one_by_one=settings.releases_gradients(),
    )
    session.reporter.say(f"Optimizer: {optimizers.describe(settings.optimizer, optimizer)}")
    return optimizer


def make_release(session: Session, optimizer: torch.optim.Optimizer) -> GradientRelease | None:
    """The hooks that step inside backward, if asked for; gradients are clipped there by value or not at all."""
    settings = session.config.options.training
    if not isinstance(optimizer, PerParameter):
        return None
    session.reporter.say("Gradient release: each parameter is stepped inside backward and its gradient freed")
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


def resume(session: Session, trainee: Trainee, folder: Path | None, identity: resuming.Identity, total: int) -> int:
    """Put the checkpoint into the trainee, or start afresh; returns the steps done."""
    start = 0
    if folder is not None:
        settings = session.config.options.training
        start, notes = resuming.restore(
            trainee,
            folder,
            identity,
            optimizers.arguments_of(settings.optimizer, translate.optimizer_overrides(session.config.options)),
            lambda: make_ema(session, trainee.parameters),
        )
        for note in notes:
            session.reporter.say(note)
        where = f"{start} of {total} steps are done" if start <= total else f"{start} steps are done"
        session.reporter.say(f"Resuming from {folder.name}: {where}")
    moved = checkpoint.set_aside(session.output_dir, start)
    if moved:
        what = "later checkpoints" if start else "an earlier run's checkpoints, metrics and pictures"
        session.reporter.say(f"{what} are kept in {moved}")
    return start


def make_hooks(
    session: Session,
    trainee: Trainee,
    recipe: Recipe,
    validator: Validator | None,
    held_out: list[prepare.Found],
    refs: prepare.Refs,
    texts: Texts,
    latents_of: OnDemand,
    identity: resuming.Identity,
) -> list[Hook]:
    """Checkpoint first: a failing validation must not cost what was learned."""
    options = session.config.options

    keep = options.checkpoints.checkpoints_total_limit or None
    save = resuming.saver(trainee, session.output_dir, identity, keep)
    hooks: list[Hook] = [Checkpointing(options.checkpoints.checkpoint_step_interval, save, session.reporter)]
    wanted = [refs[item.source.id, p.sample.path] for item in held_out for p in item.placed]
    wanted = wanted[: options.evaluation.num_eval_images or None]
    if wanted and not options.evaluation.eval_loss_disable:
        stacked = eval_loss.batches(wanted, texts.get, latents_of)

        def measure() -> eval_loss.EvalResult:
            return eval_loss.measure(stacked, lambda b, n: plain_score(trainee, recipe, b, n), trainee.device)

        interval = options.evaluation.eval_steps_interval
        live_too = options.ema.ema_validation != "ema_only"
        hooks.append(HeldOutLoss(interval, measure, trainee, session.metrics, session.reporter, live_too))
    if validator:
        hooks.append(
            ValidationPictures(
                options.validation.validation_step_interval,
                options.validation.validation_on_startup,
                validator,
                trainee.ema,
                options.ema.ema_validation,
                session.output_dir,
                session.reporter,
                adapter=trainee.adapter,
                strength=options.adapter.validation_lycoris_strength,
                optimizer=trainee.optimizer,
            )
        )
    return hooks


def run_steps(
    session: Session,
    trainee: Trainee,
    recipe: Recipe,
    loader: Loader,
    start: int,
    total: int,
    hooks: list[Hook],
) -> int:
    """The loop under its bar; returns steps done.

    Raises:
        KeyboardInterrupt: Stopped by the user; the checkpoint is on disk.
    """
    if start >= total:
        session.reporter.say(
            f"Nothing left to train: the checkpoint is at step {start} and the run has {total} steps. "
            f"To train on, set max_train_steps above {start}. The model is exported as it is."
        )
        return start
    reporter, accumulation = session.reporter, recipe.accumulation
    with stop_on_interrupt(reporter) as asked, reporter.bar("Training", total, start) as bar:
        batches = loader.stream(start * accumulation, total * accumulation)
        progress: list[Hook] = [Progress(bar, session.metrics, reporter)]
        done = train_loop(trainee, recipe, batches, start, total, [*progress, *hooks], asked.is_set)
        batches.close()
    if done < total:
        reporter.say(f"Stopped at step {done} of {total}; the same command goes on from here.")
        raise KeyboardInterrupt
    return done


def finish(session: Session, parts: Components, trainee: Trainee, hooks: list[Hook], done: int, total: int) -> None:
    """Export (EMA weights if there are any) and say where everything is."""
    say = session.reporter.say
    optimizers.settle(trainee.optimizer)
    final = export(session, parts, trainee)
    what = "the adapter alone, without the base model" if trainee.adapter else "a diffusers folder"
    say()
    say(f"Done: {done} steps." if done <= total else f"Exported as it was after {done} steps.")
    _warn_if_skipped(session)
    for hook in hooks:
        if isinstance(hook, HeldOutLoss):
            figures = hook.figures()
            if 0 in figures and done in figures:
                say(f"  held-out loss    {figures[0]:.4f} before → {figures[done]:.4f} after")
    pictures = session.output_dir / "before_after.png"
    if pictures.is_file():
        say(f"  before and after {pictures}")
        say(f"  all pictures     {session.output_dir / 'validation_images'}")
    say(f"  trained model    {final} ({what}, {'EMA' if trainee.ema else 'live'} weights)")
    say(f"  checkpoints      {session.output_dir}")
    if session.device.type == "cuda":
        say(f"  peak GPU memory  {torch.cuda.max_memory_allocated() / 2**30:.1f} GiB")
    say("Next: look at the pictures; then use the model:")
    for line in translate.usage(session.config, session.text, session.facts, final):
        say(f"  {line}")
    say("  or train on: raise max_train_steps and start again, it resumes from the last checkpoint.")


def export(session: Session, parts: Components, trainee: Trainee) -> Path:
    """Write the adapter's file, or the whole pipeline's folder; returns its path."""
    if trainee.ema:
        trainee.ema.copy_to_model()
    if trainee.adapter:
        return adapting.export(trainee.adapter, session.output_dir, session.config.options.adapter.lora_format)
    final = session.output_dir / "pipeline"
    if parts.text_encoder is None:
        parts.text_encoder = session.family.text_encoder(session.source)
    with checkpoint.staged_folder(final) as staging:
        session.family.pipeline(parts, with_text=True).save_pretrained(staging)
    return final


def _warn_if_skipped(session: Session) -> None:
    """Say plainly that the run ended on steps that were skipped: such a model has most likely diverged."""
    steps = session.metrics.read("step")
    last = len(steps) - max((i + 1 for i, step in enumerate(steps) if not step["skipped"]), default=0)
    if last:
        session.reporter.say(
            f"  WARNING: the last {last} steps were skipped (NaN or infinity), so the weights have most likely diverged "
            "and the pictures will show it. What to do: train again with a lower learning_rate."
        )
