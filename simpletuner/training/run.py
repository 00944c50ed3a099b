"""The composition root: options become plain values, the rooms are joined, the run goes from start to export.

With ``session``, ``assemble``, ``finish``, ``caching``, ``check`` and ``translate*`` the only modules that see options.
"""

from __future__ import annotations

import contextlib
import json
from contextlib import closing, nullcontext
from functools import partial
from pathlib import Path

import torch

from simpletuner.config.read import RunConfig
from simpletuner.data.cache import write_atomic
from simpletuner.data.loader import Loader
from simpletuner.data.ondemand import OnDemand, TextsOnDemand
from simpletuner.data.sampler import Plan
from simpletuner.evaluation.validation import Validator
from simpletuner.models.base import Components
from simpletuner.reporting.progress import Reporter
from simpletuner.training import (
    checkpoint,
    fast_path,
    keeping,
    optimizers,
    prepare,
    quantising,
    resuming,
    translate,
    translate_data,
    translate_noise,
    translate_precision,
    translate_reporting,
    translate_validation,
)
from simpletuner.training.assemble import (
    held_out_batches,
    make_adapter,
    make_ema,
    make_held_out,
    make_trainee,
    make_validator,
)
from simpletuner.training.caching import Texts, fill_caches, on_demand
from simpletuner.training.control import FOLDER, Control, StoppedOnRequest, forget
from simpletuner.training.finish import finish
from simpletuner.training.fitting import fit
from simpletuner.training.hooks import Checkpointing, Progress
from simpletuner.training.interrupt import stop_on_interrupt
from simpletuner.training.judging import Judging, load_clip, make_judging
from simpletuner.training.loop import Hook
from simpletuner.training.loop import train as train_loop
from simpletuner.training.page_beside import page_beside
from simpletuner.training.prefetch import on_device
from simpletuner.training.previewing import make_previewer, tiny_decoder
from simpletuner.training.redraw import Samples
from simpletuner.training.session import Session, check_sizes, find_pictures, open_session, tell_data
from simpletuner.training.step import Recipe, Trainee
from simpletuner.training.telling import StepStatus, told
from simpletuner.training.validating import ValidationPictures
from simpletuner.wording import counted


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
    listeners = partial(translate_reporting.listeners, session)
    title = translate_reporting.title(config.options)
    with (
        contextlib.suppress(StoppedOnRequest),
        resuming.only_run_in(session.output_dir),
        page_beside(session.output_dir, config.options.page.dashboard_port, session.reporter.say)
        if config.options.page.dashboard
        else nullcontext(),
        told(session.stages, session.reporter, listeners, title),
        closing(session.caches),
    ):
        forget(session.output_dir / FOLDER)
        _train(session)


def _train(session: Session) -> None:
    """All rooms in order; the output folder is ours alone."""
    config, options, stage = session.config, session.config.options, session.stages.stage
    record = json.dumps(config.raw, indent=2, default=str)
    write_atomic(session.output_dir / "config.resolved.json", record.encode())
    translate.check_optimizer(config, session.precision, session.device)
    tiny, clip = tiny_decoder(session), load_clip(session)
    with stage("init_data_backend", "Looking at the pictures"):
        training, held_out = find_pictures(session)
    fit(session, [*training, *held_out])
    config, options = session.config, session.config.options  # with what ``memory`` chose
    compiled = fast_path.kernels_ahead(
        *(session.family, session.source, options.precision.transformer_forward, session.device, session.precision)
    )
    resume_from, notes = checkpoint.find(session.output_dir, options.checkpoints.resume_from_checkpoint)
    for note in notes:
        session.reporter.say(note)
    with stage("init_load_base_model", "Loading the model"):
        parts, model = load_model(session)
    adapter = make_adapter(session, parts)
    tell_data(session, parts, training)
    refs, texts = fill_caches(session, parts, [*training, *held_out])
    check_sizes(session, training)  # again: pictures that could not be decoded are out now
    with stage("validation_prompt_encoding", "Encoding the validation prompts"):
        validator = make_validator(session, parts)
    make_room(session, parts, [*training, *held_out], texts)

    latents_of = on_demand(session, parts)
    samples = Samples(training, refs, latents_of.forget)
    plan = samples.plan(translate_data.drawing(config), options.training.seed)
    loader = make_loader(session, samples, texts, plan, training, latents_of)
    if validator:
        shown = [refs[item.source.id, p.sample.path] for item in training for p in item.placed]
        validator.previews = make_previewer(session, tiny, parts, shown, latents_of)
    judging = make_judging(session, clip, training) if validator else None
    total = translate.total_steps(config, plan)
    for dataset_id in translate_data.regularisation(config):
        session.reporter.say(
            f"[{dataset_id}] is regularisation data: its target is the base model's own prediction, and its loss stands "
            "apart, as regularisation_loss in metrics.jsonl"
        )
    for line in translate.notes_on_length(options, total):
        session.reporter.say(line)
    drawn = translate_noise.density(options, session.facts)
    recipe = translate.recipe(options, drawn, total, session.precision)
    with stage("init_prepare_models", "Preparing the model for training"):
        compiled()
        trainee = make_trainee(session, parts, adapter)
    shape = adapter.shape() if adapter else {}
    identity = translate.identity(config, samples.placed, session.precision, session.text, drawn, model, shape)
    with stage("init_resume_checkpoint", "Looking for a checkpoint to go on from"):
        start = resume(session, trainee, resume_from, identity, total)
    session.stages.phase = "training"
    session.stages.record(start_step=start, total_steps=total, phase="training")
    if start < total:
        for line in translate_noise.describe(recipe, training, session.facts):
            session.reporter.say(line)
    status = StepStatus(session.stages, session.metrics, total, *translate_reporting.course(options, plan))
    hooks = make_hooks(session, trainee, recipe, plan, validator, judging, held_out, refs, texts, latents_of, identity)
    try:
        done = run_steps(session, trainee, recipe, loader, start, total, [status, *hooks])
    finally:
        if validator:
            validator.close()
        latents_of.close()
        texts.close()
    with stage("model_save", "Exporting the model"):
        finish(session, parts, trainee, hooks, done, total)


def load_model(session: Session) -> tuple[Components, str]:
    """All parts, the base quantised if asked for; and a short digest of the base weights."""
    session.reporter.say(f"Loading {session.source.path}")
    parts = session.family.load(session.source)
    model = resuming.sketch(parts.transformer)
    quantised = translate_precision.base_quantisation(session.config.options, session.precision, session.device)
    if quantised:
        session.reporter.say(quantising.transformer(session.family, parts, session.facts, quantised))
    parts.vae.to(session.device)
    return parts, model


def make_room(session: Session, parts: Components, found: list[prepare.Found], texts: Texts) -> None:
    """What only caching needed leaves the device, and the transformer comes; the decoder is fetched while pictures are drawn."""
    if isinstance(texts, TextsOnDemand):
        pass  # captions are still to be encoded
    elif session.config.options.precision.text_encoder_1_precision != "no_change":
        parts.text_encoder = None  # the export has the published weights, not the quantised ones
    else:
        parts.text_encoder.to("cpu")
    if all(item.source.caching == "ahead" for item in found):
        parts.vae.to("cpu")
    if session.device.type == "cuda":
        torch.cuda.empty_cache()  # what caching had reserved is free for training, and for other programs on the card
    parts.transformer.to(session.device)


def make_loader(
    session: Session,
    samples: Samples,
    texts: Texts,
    plan: Plan,
    training: list[prepare.Found],
    latents_of: OnDemand,
) -> Loader:
    """Batches in the order of the plan."""
    options = session.config.options
    return Loader(
        samples,
        texts,
        plan,
        options.training.seed,
        options.data.caption_dropout_probability,
        {item.source.id: item.source.timestep_offset for item in training},
        latents_of,
        translate_data.regularisation(session.config),
        text_multiple=fast_path.text_multiple(options.precision.transformer_forward, session.device),
        pinned=session.device.type == "cuda",
    )


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
        where = (
            f"{start} of {counted(total, 'step is', 'steps are')} done"
            if start <= total
            else f"{counted(start, 'step is', 'steps are')} done"
        )
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
    plan: Plan,
    validator: Validator | None,
    judging: Judging | None,
    held_out: list[prepare.Found],
    refs: keeping.Refs,
    texts: Texts,
    latents_of: OnDemand,
    identity: resuming.Identity,
) -> list[Hook]:
    """Checkpoint first: a failing validation must not cost what was learned."""
    options = session.config.options

    keep = options.checkpoints.checkpoints_total_limit or None
    save = resuming.saver(trainee, session.output_dir, identity, keep)
    often = options.checkpoints.checkpoint_step_interval
    checkpointing = Checkpointing(often, save, session.reporter, session.stages)
    hooks: list[Hook] = [checkpointing]
    drawing: ValidationPictures | None = None
    stacked = held_out_batches(session, held_out, refs, texts, latents_of)
    if stacked:
        hooks.append(make_held_out(session, trainee, recipe, plan, stacked))
    if validator:
        drawing = ValidationPictures(
            translate_validation.interval(options, plan),
            translate_validation.draws_at_start(options),
            validator,
            translate_validation.shown(options, trainee),
            session.output_dir,
            session.metrics,
            session.reporter,
            stages=session.stages,
            judging=judging,
        )
        hooks.append(drawing)
    folder, draw = session.output_dir / FOLDER, drawing.now if drawing else None
    return [*hooks, Control(folder, checkpointing.now, draw, session.reporter, session.stages)]


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
        StoppedOnRequest: The same, by a file in ``control``.
    """
    if start >= total:
        session.reporter.say(
            f"Nothing left to train: the checkpoint is at step {start} and the run has {counted(total, 'step')}. "
            f"To train on, set max_train_steps above {start}. The model is exported as it is."
        )
        return start
    reporter, accumulation = session.reporter, recipe.accumulation
    # Closed whatever happens: its thread reads ahead, and what it writes into is flushed right after this.
    stream = closing(loader.stream(start * accumulation, total * accumulation))
    with stop_on_interrupt(reporter) as asked, reporter.bar("Training", total, start) as bar, stream as read:
        batches = on_device(read, session.device)
        progress: list[Hook] = [Progress(bar, session.metrics, reporter)]
        control = next((hook for hook in hooks if isinstance(hook, Control)), None)

        def should_stop() -> bool:
            return asked.is_set() or (control is not None and control.stopping)

        done = train_loop(trainee, recipe, batches, start, total, [*progress, *hooks], should_stop)
    if done < total:
        reporter.say(f"Stopped at step {done} of {total}; the same command goes on from here.")
        raise KeyboardInterrupt if asked.is_set() else StoppedOnRequest
    return done
