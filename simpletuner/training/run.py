"""The composition root: options become plain values, the rooms are joined, the run goes from start to export.

It and its parts (CONTRIBUTING.md names them) are the only modules that see options.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from contextlib import closing, contextmanager, nullcontext
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

from rich.console import Console

from simpletuner.config.read import RunConfig
from simpletuner.data.cache import write_atomic
from simpletuner.data.loader import Loader
from simpletuner.errors import ResumeError
from simpletuner.reporting.masking import masked
from simpletuner.reporting.progress import Reporter
from simpletuner.training import (
    cache_places,
    checkpoint,
    fast_path,
    optimizers,
    resuming,
    translate,
    translate_noise,
    translate_reporting,
    translate_resume,
    translate_validation,
)
from simpletuner.training.acting import make_hooks
from simpletuner.training.assemble import (
    make_adapter,
    make_ema,
    make_trainee,
    make_validator,
)
from simpletuner.training.control import FOLDER, Control, StoppedOnRequest, forget
from simpletuner.training.finish import finish, publish, reported
from simpletuner.training.fitting import fit
from simpletuner.training.hooks import Progress
from simpletuner.training.interrupt import stop_on_interrupt
from simpletuner.training.judging import load_clip, make_judging
from simpletuner.training.loop import Hook
from simpletuner.training.loop import train as train_loop
from simpletuner.training.material import gather
from simpletuner.training.page_beside import page_beside
from simpletuner.training.parts import load_model, make_room
from simpletuner.training.prefetch import on_device
from simpletuner.training.previewing import make_previewer, tiny_decoder
from simpletuner.training.ranks import Ranks
from simpletuner.training.session import Session, find_pictures, mend_sheet, open_session, tell_data
from simpletuner.training.telling import StepStatus, told
from simpletuner.training.trainee import Recipe, Trainee
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
    ranks = Ranks.of(os.environ)
    if not ranks.main:
        reporter = Reporter(Console(quiet=True))
    with ranks.ending_together(), contextlib.suppress(StoppedOnRequest):
        session = open_session(config, reporter or Reporter(), ranks=ranks)
        with _known(session) if ranks.main else nullcontext(), closing(session.caches):
            _train(session)


@contextmanager
def _known(session: Session) -> Iterator[None]:
    """The run as others see it: alone in its folder, with its page, its listeners and run.json."""
    page = session.config.options.page
    listeners = partial(translate_reporting.listeners, session)
    with (
        resuming.only_run_in(session.output_dir),
        page_beside(session.output_dir, page.dashboard_port, session.reporter.say) if page.dashboard else nullcontext(),
        reported(session),
        told(session.stages, session.reporter, listeners, translate_reporting.title(session.config.options)),
        translate_reporting.uploads(session),
    ):
        forget(session.output_dir / FOLDER)
        checkpoint.tidy(session.output_dir)
        records = {"config": session.config.raw, "datasets": masked(session.config.datasets.record())}
        for name, record in records.items():
            text = json.dumps(record, indent=2, default=str)
            write_atomic(session.output_dir / f"{name}.resolved.json", text.encode())
        yield


def _train(session: Session) -> None:
    """All rooms in order; of several processes only rank 0 acts between steps, and goes on to export."""
    config, options, stage = session.config, session.config.options, session.stages.stage
    translate.check_optimizer(config, session.precision, session.device)
    tiny, clip = tiny_decoder(session), load_clip(session)
    with stage("init_data_backend", "Looking at the pictures"):
        training, held_out = find_pictures(session)
    for line in translate_validation.notes_on_held_out(config, training, held_out):
        session.reporter.say(line)
    training, held_out = fit(session, training, held_out)
    config, options = session.config, session.config.options  # with what ``memory`` chose
    cache_places.refuse(config.datasets, [*training, *held_out])
    compiled = fast_path.kernels_ahead(
        *(session.family, session.source, options.precision.transformer_forward, session.device, session.precision)
    )
    resume_from = _checkpoint(session)
    with stage("init_load_base_model", "Loading the model"):
        parts, model = load_model(session)
    adapter = make_adapter(session, parts)
    surveys = tell_data(session, parts, training)
    material = gather(session, parts, training, held_out)
    mend_sheet(session, surveys, training)
    with stage("validation_prompt_encoding", "Encoding the validation prompts"):
        validator = make_validator(session, parts)
    make_room(session, parts, material)
    if validator:
        validator.previews = make_previewer(session, tiny, parts, material.shown(), material.latents_of)
    judging = make_judging(session, clip, training) if validator else None
    total = translate.total_steps(config, material.plan)
    for line in translate.notes_on_course(config, total):
        session.reporter.say(line)
    drawn = translate_noise.density(options, session.facts)
    recipe = translate.recipe(options, drawn, total, session.precision)
    with stage("init_prepare_models", "Preparing the model for training"):
        compiled()
        trainee = make_trainee(session, parts, adapter)
    shape = adapter.shape() if adapter else {}
    identity = translate.identity(config, material.samples.placed, session.precision, session.text, drawn, model, shape)
    identity = replace(identity, schedule=asdict(recipe.schedule))
    with stage("init_resume_checkpoint", "Looking for a checkpoint to go on from"):
        start = resume(session, trainee, resume_from, identity, total)
    session.stages.phase = "training"
    session.stages.record(start_step=start, total_steps=total, phase="training")
    for line in translate_noise.describe(recipe, training, session.facts, start > 0) if start < total else ():
        session.reporter.say(line)
    status = StepStatus(session.stages, session.metrics, total, *translate_reporting.course(options, material.plan))
    hooks = make_hooks(session, trainee, recipe, material, validator, judging, identity)
    hooks = [status, *hooks] if session.ranks.main else []
    with closing(material), closing(validator) if validator else nullcontext():
        done = run_steps(session, trainee, recipe, material.loader, start, total, hooks)
    if session.ranks.main:
        with stage("model_save", "Exporting the model"):
            finish(session, parts, trainee, hooks, done, total)
        if session.publisher:
            with stage("model_upload", "Uploading"):
                publish(session, session.publisher)


def _checkpoint(session: Session) -> Path | None:
    """The checkpoint to go on from, if there is one; all processes take the same."""
    wanted = session.config.options.checkpoints.resume_from_checkpoint
    found, notes = session.ranks.by_main(lambda: checkpoint.find(session.output_dir, wanted))
    for note in notes:
        session.reporter.say(note)
    if found and found.is_dir():  # before seconds go into the model; what only its weights tell is compared later
        shape, _ = translate_resume.bare_adapter(session.config, session.family, session.source)
        translate_resume.refuse_another_run(session.config, session.precision, shape, found)
    return found


def resume(session: Session, trainee: Trainee, folder: Path | None, identity: resuming.Identity, total: int) -> int:
    """Put the checkpoint into the trainee, or start afresh; returns the steps done."""
    start = 0
    if folder is not None:
        if not folder.is_dir():
            raise ResumeError(
                f"{folder} is not on this machine. What to do: put output_dir on a disk that all machines share."
            )
        settings = session.config.options.training
        start, notes = resuming.restore(
            trainee,
            folder,
            identity,
            optimizers.arguments_of(settings.optimizer, translate.optimizer_overrides(session.config.options)),
            lambda: make_ema(session, trainee.parameters),
        )
        notes += translate_resume.notes_on_rate(session.config, total, checkpoint.state_of(folder), session.output_dir)
        for note in notes:
            session.reporter.say(note)
        where = (
            f"{start} of {counted(total, 'step is', 'steps are')} done"
            if start <= total
            else f"{counted(start, 'step is', 'steps are')} done"
        )
        session.reporter.say(f"Resuming from {folder.name}: {where}")
    moved = checkpoint.set_aside(session.output_dir, start) if session.ranks.main else None
    if moved:
        what = "later checkpoints" if start else "an earlier run's checkpoints, metrics and pictures"
        session.reporter.say(f"{what} are kept in {moved}")
    return start


def _leave(session: Session, trainee: Trainee) -> None:
    """The processes part: rank 0 alone goes on to export."""
    if not session.ranks.are_equal(trainee.parameters):
        session.reporter.say(
            "WARNING: the processes do not hold the same weights any more, which means a fault of a card, of its memory or of "
            "this program: look at the pictures, and train again in one process to compare"
        )
    session.ranks.leave()


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
        session.reporter.say(f"{resuming.nothing_left(start, total)} The model is exported as it is.")
        session.ranks.leave()
        return start
    reporter, accumulation = session.reporter, recipe.accumulation
    if session.ranks.main:
        session.metrics.write("start", {"step": start})  # time is counted from here: what lies before is a pause
    # Closed whatever happens: its thread reads ahead, and what it writes into is flushed right after this.
    stream = closing(loader.stream(start * accumulation, total * accumulation))
    with stop_on_interrupt(reporter, session.asked), reporter.bar("Training", total, start) as bar, stream as read:
        batches = on_device(read, session.device)
        progress: list[Hook] = [Progress(bar, session.metrics, reporter)] if session.ranks.main else []
        control = next((hook for hook in hooks if isinstance(hook, Control)), None)

        def should_stop() -> bool:
            return session.asked.is_set() or session.alone() or (control is not None and control.stopping)

        agreed = session.ranks.any
        try:
            done = train_loop(trainee, recipe, batches, start, total, [*progress, *hooks], should_stop, agreed)
        finally:
            if trainee.graphs and session.ranks.several and not session.ranks.lost:
                trainee.graphs.drop()  # they hold the devices' connection, whose end would wait for theirs
        _leave(session, trainee)
    if done < total and session.ranks.main:
        if done:
            reporter.say(f"Stopped at step {done} of {total}; the same command goes on from here.")
        else:
            reporter.say("Stopped before the first step, so there is no checkpoint; the same command starts anew.")
        raise KeyboardInterrupt if session.asked.is_set() else StoppedOnRequest
    return done
