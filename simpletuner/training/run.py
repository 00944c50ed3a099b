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

from simpletuner.config.datasets import ImageDataset
from simpletuner.config.read import RunConfig
from simpletuner.data.cache import TensorStore, content_key, weights_digest, write_atomic
from simpletuner.data.captions import CaptionRules
from simpletuner.data.encode import text_key
from simpletuner.data.loader import DROPPED, Loader
from simpletuner.data.placement import PlacementRules
from simpletuner.data.sampler import Plan
from simpletuner.data.types import Size
from simpletuner.errors import ConfigError, Problem, ResumeError
from simpletuner.evaluation import eval_loss
from simpletuner.evaluation.validation import ValidationSettings, Validator
from simpletuner.flow.schedules import Density, auto_shift, histogram
from simpletuner.models.base import Components, EncodedText, Facts, Family, LoadSource, TextSettings
from simpletuner.models.sana.family import Sana
from simpletuner.models.sana.prompts import trim
from simpletuner.reporting.metrics import MetricsFile
from simpletuner.reporting.progress import Reporter
from simpletuner.training import checkpoint, device, optimizers, prepare
from simpletuner.training.ema import Ema
from simpletuner.training.hooks import Checkpointing, HeldOutLoss, Progress, ValidationPictures
from simpletuner.training.learning_rate import Schedule
from simpletuner.training.loop import Hook, Recipe, Trainee, score, train as train_loop
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
    total = total_steps(config, plan)
    recipe = make_recipe(session, total, training)
    trainee = make_trainee(session, parts)
    fingerprint = plan_fingerprint(config, samples)
    start, ema_updates = resume(session, trainee, resume_from, fingerprint, total)
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
    model = options.model
    source = LoadSource(
        path=model.pretrained_model_name_or_path,
        revision=model.revision,
        variant=model.variant,
        transformer_path=model.pretrained_transformer_model_name_or_path,
        transformer_subfolder=model.pretrained_transformer_subfolder,
        weight_dtype=precision.weights,
        text_dtype=precision.cache,
    )
    family = FAMILIES[model.model_family]
    facts = family.peek(source)
    reporter.say(f"Training on {device.describe(where)}: {precision.describe()}, optimizer {options.training.optimizer}")
    check_validation_sizes(config, facts)
    write_atomic(output_dir / "config.resolved.json", json.dumps(config.raw, indent=2, default=str).encode())
    instruction = model.sana_complex_human_instruction
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
        text=TextSettings(
            instruction=family.default_instruction() if instruction is None else tuple(instruction),
            max_tokens=model.tokenizer_max_length,
        ),
    )


def check_validation_sizes(config: RunConfig, facts: Facts) -> None:
    """Refuse validation sizes that the model cannot draw, before anything is loaded.

    Raises:
        ConfigError: A side is not a multiple of what model and pipeline need.
    """
    needed = max(32, facts.alignment)  # the reference pipeline itself refuses sides that are no multiple of 32
    problems = [
        Problem(
            config.config_file,
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


def dataset_source(entry: ImageDataset, alignment: int) -> prepare.DatasetSource:
    """One dataloader entry in plain values."""
    prompts = entry.instance_prompt
    return prepare.DatasetSource(
        id=entry.id,
        folder=Path(entry.instance_data_dir).expanduser(),
        captions=CaptionRules(
            strategy=entry.caption_strategy,
            instance_prompts=(prompts,) if isinstance(prompts, str) else tuple(prompts or ()),
            prepend_instance_prompt=entry.prepend_instance_prompt,
            only_instance_prompt=entry.only_instance_prompt,
        ),
        placement=PlacementRules(
            resolution=entry.resolution,
            resolution_type=entry.resolution_type,
            alignment=alignment,
            crop=entry.crop,
            crop_aspect=entry.crop_aspect,
            aspect_buckets=tuple(entry.crop_aspect_buckets or ()),
            crop_style=entry.crop_style,
            minimum_image_size=entry.minimum_image_size,
            maximum_image_size=entry.maximum_image_size,
            target_downsample_size=entry.target_downsample_size,
        ),
        repeats=entry.repeats,
        latent_dir=Path(entry.cache_dir_vae).expanduser(),
        encode_batch=entry.vae_batch_size,
        timestep_offset=entry.timestep_sampling_offset,
    )


def find_pictures(session: Session) -> tuple[list[prepare.Found], list[prepare.Found]]:
    """Rooms 1 and 2 for training and held-out sets; too small buckets are refused before any weights are loaded."""
    options = session.config.options
    alignment = options.data.aspect_bucket_alignment or session.facts.alignment
    if alignment % session.facts.alignment:
        raise ConfigError(
            [
                Problem(
                    session.config.config_file,
                    "aspect_bucket_alignment",
                    alignment,
                    f"this model needs multiples of {session.facts.alignment} pixels",
                    "leave it out",
                )
            ]
        )
    datasets = session.config.datasets
    training = prepare.find([dataset_source(e, alignment) for e in datasets.train], session.reporter)
    held_out = prepare.find([dataset_source(e, alignment) for e in datasets.eval], session.reporter)
    prepare.check_sizes(
        training,
        options.training.train_batch_size,
        options.training.gradient_accumulation_steps,
        options.data.allow_dataset_oversubscription,
        session.reporter,
    )
    return training, held_out


def fill_caches(
    session: Session, parts: Components, found: list[prepare.Found]
) -> tuple[dict[str, Any], TensorStore]:
    """Room 4: latents and text embeds on disk, in folders named by everything that went into them."""
    family, dtype = session.family, session.precision.cache
    vae_print = content_key("latents", weights_digest(parts.vae), json.dumps(dict(parts.vae.config), default=str), dtype)
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

    seed = options.validation_seed
    return Validator(
        session.family.pipeline(parts, with_text=False),
        ValidationSettings(
            prompts=tuple(session.config.prompts),
            negative_prompt=options.validation_negative_prompt,
            guidance=options.validation_guidance,
            steps=options.validation_num_inference_steps,
            sizes=tuple(Size(*size) for size in options.validation_resolution),
            images_per_prompt=options.num_validation_images,
            seed=session.config.options.training.seed if seed is None else seed,
        ),
        encode,
        session.output_dir / "validation_images",
        session.device,
    )


def total_steps(config: RunConfig, plan: Plan) -> int:
    """Optimizer steps of the whole run, from max_train_steps or from epochs."""
    training = config.options.training
    if training.max_train_steps:
        return int(training.max_train_steps)
    micro_batches = plan.batches_per_epoch * int(training.num_train_epochs or 1)
    return -(-micro_batches // int(training.gradient_accumulation_steps))


def make_recipe(session: Session, total: int, training: list[prepare.Found]) -> Recipe:
    """The recipe in plain values; density, shift and a histogram of sigmas are printed."""
    options = session.config.options
    flow, settings = options.flow, options.training
    shift: Any = "auto" if flow.flow_schedule_auto_shift else flow.flow_schedule_shift or session.facts.shift
    density = Density("uniform" if flow.flow_use_uniform_schedule else "logit_normal", flow.flow_sigmoid_scale, shift)
    edge = training[0].placed[0].placement.bucket
    stride = session.facts.stride
    tokens = session.facts.tokens(edge.height // stride, edge.width // stride)
    note = f" ({auto_shift(tokens):.3f} at {edge})" if shift == "auto" else ""
    offsets = {item.source.timestep_offset for item in training}
    for offset in sorted(offsets):
        where = f", offset {offset:g}" if offset else ""
        session.reporter.say(f"Noise: {density.describe()}{note}{where}")
        for line in histogram(density, tokens, offset):
            session.reporter.say(f"  {line}")
    world = settings.train_batch_size * settings.gradient_accumulation_steps
    scale = world if settings.lr_scale else 1
    peak = settings.learning_rate * (scale**0.5 if settings.lr_scale_sqrt else scale)
    return Recipe(
        density=density,
        schedule=Schedule(
            settings.lr_scheduler, peak, settings.lr_end, settings.lr_warmup_steps, total, settings.lr_power
        ),
        accumulation=settings.gradient_accumulation_steps,
        clip_norm=settings.max_grad_norm,
        clip_by_value=settings.grad_clip_method == "value",
        seed=settings.seed,
        precision=session.precision,
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
    optimizer = optimizers.build(
        settings.optimizer, parameters, settings.learning_rate, settings.optimizer_arguments()
    )
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


def plan_fingerprint(config: RunConfig, samples: list[Any]) -> dict[str, Any]:
    """What the order of batches depends on; a resumed run says so if it changed."""
    settings = config.options.training
    return {
        "train_batch_size": settings.train_batch_size,
        "gradient_accumulation_steps": settings.gradient_accumulation_steps,
        "seed": settings.seed,
        "samples": content_key(*sorted(p.key for p in samples)),
        "repeats": {e.id: e.repeats for e in config.datasets.train},
        "optimizer": settings.optimizer,
    }


def resume(
    session: Session, trainee: Trainee, folder: Path | None, plan: dict[str, Any], total: int
) -> tuple[int, int]:
    """Load a checkpoint into the trainee; returns steps and EMA updates done.

    Raises:
        ResumeError: It was made with another optimizer or another model.
    """
    if folder is None:
        return 0, 0
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
        trainee.ema = Ema(trainee.parameters, session.config.options.ema.ema_decay)
    if trainee.scaler and loaded.state.scaler:
        trainee.scaler.load_state_dict(loaded.state.scaler)
    session.reporter.say(f"Resuming from {folder.name}: {loaded.state.step} of {total} steps are done")
    return loaded.state.step, loaded.state.ema_updates


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


def finish(
    session: Session, parts: Components, trainee: Trainee, hooks: list[Hook], done: int, total: int
) -> None:
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
