"""The composition root: options become plain values, the rooms are joined, the run goes from start to export.

The only module besides the command line that sees the options.
"""

from __future__ import annotations

import json
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from simpletuner.config.read import RunConfig
from simpletuner.data.cache import TensorStore, content_key, weights_digest, write_atomic
from simpletuner.data.loader import DROPPED, Loader
from simpletuner.data.sampler import Plan
from simpletuner.errors import ResumeError
from simpletuner.evaluation import eval_loss
from simpletuner.evaluation.validation import Validator
from simpletuner.models.base import Components, EncodedText, Facts, Family, LoadSource, TextSettings
from simpletuner.models.sana.family import Sana
from simpletuner.models.sana.prompts import trim
from simpletuner.reporting.metrics import MetricsFile
from simpletuner.reporting.progress import Reporter
from simpletuner.training import checkpoint, device, optimizers, prepare, translate
from simpletuner.training.ema import Ema
from simpletuner.training.hooks import Checkpointing, HeldOutLoss, Progress, ValidationPictures
from simpletuner.training.loop import Hook, Recipe, Trainee, score
from simpletuner.training.loop import train as train_loop
from simpletuner.training.precision import Precision, choose

FAMILIES: dict[str, Family] = {"sana": Sana()}


@dataclass(slots=True)
class Session:
    """Everything one run holds, joined step by step in ``train``."""

    config: RunConfig
    reporter: Reporter
    output_dir: Path
    metrics: MetricsFile
    family: Family
    facts: Facts
    source: LoadSource
    precision: Precision
    device: torch.device
    text: TextSettings


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
    training, held_out = find_pictures(session)
    resume_from, notes = checkpoint.find(session.output_dir, config.options.checkpoints.resume_from_checkpoint)
    for note in notes:
        session.reporter.say(note)
    session.reporter.say(f"Loading {session.source.path}")
    parts = session.family.load(session.source)
    for module in (parts.transformer, parts.vae, parts.text_encoder):
        module.to(session.device)
    refs, texts = fill_caches(session, parts, [*training, *held_out])
    validator = make_validator(session, parts)
    parts.text_encoder.to("cpu")  # not needed until export: its memory belongs to training now

    buckets, samples = prepare.buckets_of(training)
    options = config.options
    plan = Plan(buckets, options.training.train_batch_size, config.options.training.seed)
    owners = {index: bucket.dataset_id for bucket in buckets for index in bucket.members}
    loader = Loader(
        [refs[f"{owners[i]}/{placed.key}"] for i, placed in enumerate(samples)],
        texts,
        plan,
        options.training.seed,
        options.data.caption_dropout_probability,
        {item.source.id: item.source.timestep_offset for item in training},
    )
    total = translate.total_steps(config, plan)
    drawn = translate.density(options, session.facts)
    for line in translate.describe_noise(drawn, training, session.facts):
        session.reporter.say(line)
    recipe = translate.recipe(options, drawn, total, session.precision)
    trainee = make_trainee(session, parts)
    fingerprint = translate.plan_fingerprint(config, samples)
    start = resume(session, trainee, resume_from, fingerprint, total)
    hooks = make_hooks(session, trainee, recipe, validator, held_out, refs, texts, fingerprint)
    done = run_steps(session, trainee, recipe, loader, start, total, hooks)
    finish(session, parts, trainee, hooks, done, total)


def open_session(config: RunConfig, reporter: Reporter) -> Session:
    """Print what was derived, look at the model's configuration, choose dtypes and device."""
    options = config.options
    for notice in config.notices:
        reporter.say(notice)
    output_dir = Path(options.checkpoints.output_dir).expanduser()
    entry = optimizers.OPTIMIZERS[options.training.optimizer]
    precision = choose(options.precision.mixed_precision, entry.low_precision_safe)
    where = device.choose(disable_tf32=options.precision.disable_tf32)
    source = translate.load_source(options, precision)
    family = FAMILIES[options.model.model_family]
    facts = family.peek(source)
    reporter.say(
        f"Training on {device.describe(where)}: {precision.describe()}, optimizer {options.training.optimizer}"
    )
    translate.check_validation_sizes(config, facts)
    write_atomic(output_dir / "config.resolved.json", json.dumps(config.raw, indent=2, default=str).encode())
    return Session(
        config=config,
        reporter=reporter,
        output_dir=output_dir,
        metrics=MetricsFile(output_dir / "metrics.jsonl"),
        family=family,
        facts=facts,
        source=source,
        precision=precision,
        device=where,
        text=translate.text_settings(options, family.default_instruction()),
    )


def find_pictures(session: Session) -> tuple[list[prepare.Found], list[prepare.Found]]:
    """Rooms 1 and 2 for training and held-out sets; too small buckets are refused before any weights are loaded."""
    options = session.config.options
    alignment = translate.bucket_alignment(session.config, session.facts)
    datasets = session.config.datasets
    training = prepare.find([translate.dataset_source(e, alignment) for e in datasets.train], session.reporter)
    held_out = prepare.find([translate.dataset_source(e, alignment) for e in datasets.eval], session.reporter)
    prepare.check_sizes(
        training,
        options.training.train_batch_size,
        options.training.gradient_accumulation_steps,
        options.data.allow_dataset_oversubscription,
        session.reporter,
    )
    return training, held_out


def fill_caches(session: Session, parts: Components, found: list[prepare.Found]) -> tuple[dict[str, Any], TensorStore]:
    """Room 4: latents and text embeds on disk, in folders named by everything that went into them."""
    family, dtype = session.family, session.precision.cache
    vae_print = content_key(
        "latents", weights_digest(parts.vae), json.dumps(dict(parts.vae.config), default=str), dtype
    )
    refs = prepare.keep_latents(
        found,
        vae_print[:16],
        lambda pixels: family.encode_pixels(parts.vae, pixels.to(session.device)),
        dtype,
        session.reporter,
    )
    tokenizer = json.dumps(sorted(parts.tokenizer.get_vocab().items()))
    text_print = content_key("text", weights_digest(parts.text_encoder), tokenizer, asdict(session.text), dtype)
    store = TensorStore(session.config.datasets.text_cache_dir / text_print[:16])
    prepare.keep_texts(
        found, store, lambda captions: encode_trimmed(session, parts, captions), dtype, [DROPPED], session.reporter
    )
    return refs, store


def encode_trimmed(session: Session, parts: Components, captions: list[str]) -> list[torch.Tensor]:
    """Text embeds of each caption, real tokens only; the empty caption never has the instruction prefix."""
    encoded: dict[str, torch.Tensor] = {}
    for with_instruction in (True, False):
        group = [c for c in captions if bool(c) is with_instruction]
        if group:
            text = session.family.encode_captions(parts, group, session.text, with_instruction)
            encoded.update(zip(group, trim(text), strict=True))
    return [encoded[c] for c in captions]


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
    )


def make_trainee(session: Session, parts: Components) -> Trainee:
    """Optimizer, EMA and gradient checkpointing around the transformer."""
    options = session.config.options
    transformer = parts.transformer.requires_grad_(True)
    if options.precision.gradient_checkpointing:
        count = session.family.checkpoint_blocks(transformer, options.precision.gradient_checkpointing_interval)
        session.reporter.say(f"Gradient checkpointing: {count} blocks are recomputed in backward")
    parameters = list(transformer.parameters())
    settings = options.training
    optimizer = optimizers.build(settings.optimizer, parameters, settings.learning_rate, settings.optimizer_arguments())
    ema = Ema(parameters, options.ema.ema_decay, options.ema.ema_update_interval) if options.ema.use_ema else None
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
    )


def resume(session: Session, trainee: Trainee, folder: Path | None, plan: dict[str, Any], total: int) -> int:
    """Load a checkpoint into the trainee; returns the steps done.

    Raises:
        ResumeError: It was made with another optimizer or another model.
    """
    if folder is None:
        return 0
    loaded = checkpoint.load(folder)
    changed = [key for key, value in plan.items() if loaded.state.plan.get(key) != value]
    if "optimizer" in changed:
        raise ResumeError(
            f"{folder} was trained with optimizer {loaded.state.plan.get('optimizer')!r}, the configuration says "
            f"{plan['optimizer']!r}. What to do: change it back, or set resume_from_checkpoint to false."
        )
    if changed:
        session.reporter.say(f"Note: {', '.join(changed)} changed since {folder.name}; the order of pictures differs")
    try:
        trainee.transformer.load_state_dict(loaded.model)
    except RuntimeError as error:
        raise ResumeError(f"{folder} holds another model than {session.source.path!r}: start a fresh run.") from error
    optimizers.unpack(trainee.optimizer, *loaded.optimizer)
    if trainee.ema and loaded.ema:
        trainee.ema.load(parameter_names(trainee), loaded.ema, loaded.state.ema_updates)
    elif trainee.ema:
        session.reporter.say(f"Note: {folder.name} has no EMA; it starts from the checkpoint's weights")
        ema = session.config.options.ema
        trainee.ema = Ema(trainee.parameters, ema.ema_decay, ema.ema_update_interval)
    if trainee.scaler and loaded.state.scaler:
        trainee.scaler.load_state_dict(loaded.state.scaler)
    session.reporter.say(f"Resuming from {folder.name}: {loaded.state.step} of {total} steps are done")
    return loaded.state.step


def parameter_names(trainee: Trainee) -> list[str]:
    """Names in the order of ``trainee.parameters``."""
    return [name for name, _ in trainee.transformer.named_parameters()]


def make_hooks(
    session: Session,
    trainee: Trainee,
    recipe: Recipe,
    validator: Validator | None,
    held_out: list[prepare.Found],
    refs: dict[str, Any],
    texts: TensorStore,
    plan: dict[str, Any],
) -> list[Hook]:
    """Checkpoint first: a failing validation must not cost what was learned."""
    options = session.config.options

    def save(step: int) -> Path:
        state = checkpoint.TrainingState(
            step=step,
            ema_updates=trainee.ema.updates if trainee.ema else 0,
            plan=plan,
            scaler=trainee.scaler.state_dict() if trainee.scaler else {},
        )
        return checkpoint.save(
            session.output_dir,
            state,
            trainee.transformer.save_pretrained,
            optimizers.pack(trainee.optimizer),
            trainee.ema.state(parameter_names(trainee)) if trainee.ema else None,
            options.checkpoints.checkpoints_total_limit or None,
        )

    hooks: list[Hook] = [Checkpointing(options.checkpoints.checkpoint_step_interval, save, session.reporter)]
    wanted = [refs[f"{item.source.id}/{p.key}"] for item in held_out for p in item.placed]
    wanted = wanted[: options.evaluation.num_eval_images or None]
    if wanted and not options.evaluation.eval_loss_disable:
        stacked = eval_loss.batches(wanted, texts.get)

        def measure() -> eval_loss.EvalResult:
            return eval_loss.measure(stacked, lambda b, n: score(trainee, recipe, b, n), trainee.device)

        interval = options.evaluation.eval_steps_interval
        hooks.append(HeldOutLoss(interval, measure, trainee, session.metrics, session.reporter))
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
            )
        )
    return hooks


@contextmanager
def stop_on_interrupt(reporter: Reporter) -> Iterator[threading.Event]:
    """The first Ctrl-C or SIGTERM asks for a clean stop; a second Ctrl-C interrupts at once."""
    asked = threading.Event()

    def ask(number: int, frame: object) -> None:
        if asked.is_set():
            raise KeyboardInterrupt
        asked.set()
        reporter.say("Stopping after this step and its checkpoint (interrupt again to stop at once)")

    if threading.current_thread() is not threading.main_thread():
        yield asked
        return
    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


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
        session.reporter.say(f"Nothing left to train: {start} of {total} steps are done")
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
    """Export the pipeline (EMA weights if there are any) and say where everything is."""
    final = session.output_dir / "pipeline"
    say = session.reporter.say
    if trainee.ema:
        trainee.ema.copy_to_model()
    with checkpoint.staged_folder(final) as staging:
        session.family.pipeline(parts, with_text=True).save_pretrained(staging)
    say()
    say(f"Done: {done} steps.")
    for hook in hooks:
        if isinstance(hook, HeldOutLoss):
            figures = hook.figures()
            if 0 in figures and done in figures:
                say(f"  held-out loss    {figures[0]:.4f} before → {figures[done]:.4f} after")
    pictures = session.output_dir / "before_after.png"
    if pictures.is_file():
        say(f"  before and after {pictures}")
        say(f"  all pictures     {session.output_dir / 'validation_images'}")
    say(f"  trained model    {final} (a diffusers folder, {'EMA' if trainee.ema else 'live'} weights)")
    say(f"  checkpoints      {session.output_dir}")
    if session.device.type == "cuda":
        say(f"  peak GPU memory  {torch.cuda.max_memory_allocated() / 2**30:.1f} GiB")
    say("Next: look at the pictures; then use the model:")
    say(f'  pipe = diffusers.SanaPipeline.from_pretrained("{final}")')
    say("  or train on: raise max_train_steps and start again, it resumes from the last checkpoint.")
