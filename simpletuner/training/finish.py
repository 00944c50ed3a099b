"""Part of the composition root: the end of a run. What was learned is exported, and a person is told where all of it is."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from simpletuner.config.options import defaults
from simpletuner.data.cache import write_atomic
from simpletuner.models.base import Components
from simpletuner.reporting import report
from simpletuner.reporting.model_card import USAGE, Words
from simpletuner.reporting.settings import with_defaults
from simpletuner.training import adapting, best, checkpoint, optimizers, published_run, translate_reporting
from simpletuner.training.held_out import HeldOutLoss
from simpletuner.training.loop import Hook
from simpletuner.training.publishing import Publisher
from simpletuner.training.session import Session
from simpletuner.training.trainee import Trainee
from simpletuner.training.translate_usage import Sampling, usage
from simpletuner.wording import counted


def finish(session: Session, parts: Components, trainee: Trainee, hooks: list[Hook], done: int, total: int) -> None:
    """Export (EMA weights if there are any) and say where everything is."""
    say = session.reporter.say
    optimizers.settle(trainee.optimizer)
    final = export(session, parts, trainee)
    session.exported = True  # from here on the report is written, which is named below
    what = "the adapter alone, without the base model" if trainee.adapter else "a diffusers folder"
    say()
    say(f"Done: {counted(done, 'step')}." if done <= total else f"Exported as it was after {counted(done, 'step')}.")
    _warn_if_skipped(session)
    measured = next((hook for hook in hooks if isinstance(hook, HeldOutLoss)), None)
    figures = measured.figures() if measured else {}
    if 0 in figures and done in figures:
        say(f"  held-out loss    {figures[0]:.4f} before → {figures[done]:.4f} after")
    pictures = session.output_dir / "before_after.png"
    drawn = pictures.is_file()
    if drawn:
        say(f"  before and after {pictures}")
        say(f"  all pictures     {session.output_dir / 'validation_images'}")
    if session.config.options.page.report:
        say(f"  report           {session.output_dir / report.NAME} (curves, pictures, settings: open it in a browser)")
    if "tensorboard" in session.config.options.reporting.trackers():
        say(f"  curves           tensorboard --logdir {shlex.quote(str(translate_reporting.logging_folder(session)))}")
    say(f"  trained model    {final} ({what}, {_weights(trainee)})")
    say(f"  checkpoints      {session.output_dir}")
    named = best.read(session.output_dir) if measured else None
    if named:
        say(f"  best checkpoint  {named.checkpoint} (held-out loss {named.held_out_loss:.4f}; named in {best.FILE})")
    if session.device.type == "cuda":
        say(
            f"  peak GPU memory  {torch.cuda.max_memory_reserved() / 2**30:.1f} GiB (and about half a GiB of the driver)"
        )
    look = "look at the pictures; then use the model. These lines draw the first of them again"
    say(f"Next: {look if drawn else 'use the model. These lines draw with it'}:")
    say()
    instruction, where = session.family.default_instruction(), session.device.type
    sampling = Sampling(done, *_sampler(session))
    lines = usage(session.config, session.text, instruction, session.precision, where, final, sampling)
    write_atomic(session.output_dir / USAGE, ("\n".join(lines) + "\n").encode())
    say("\n".join(lines), whole=True)  # one sentence to whoever listens
    say()
    if named and done in figures and named.held_out_loss < figures[done]:
        earlier = shlex.join(["simpletuner", "generate", str(session.output_dir / named.checkpoint), "--prompt", "…"])
        say(f"Or draw with step {named.step}, whose held-out loss was lower than the end's: {earlier}")
    say("Or train on: raise max_train_steps and start again, it resumes from the last checkpoint.")


def publish(session: Session, publisher: Publisher) -> None:
    """Wait for the uploads, the trained model's among them if it was asked for; whatever happens, the run is whole."""
    options, output_dir = session.config.options.publishing, session.output_dir
    if not options.push_to_hub:
        publisher.wait("the last checkpoint", f"hf upload {publisher.repository} {output_dir}")
        return
    words = Words(options.model_card_note or "", options.model_card_safe_for_work)
    session.reporter.say(f"Uploading the model to {publisher.repository}; Ctrl-C gives that up and costs nothing else")
    upload = published_run.of_run(output_dir, publisher.repository, publisher.private, words, with_defaults(defaults()))
    publisher.model(upload, published_run.by_hand(output_dir, publisher.repository))


def _sampler(session: Session) -> tuple[str, Mapping[str, Any]]:
    """Diffusers' class and arguments of the sampler that was asked for; nothing for the model's own."""
    name = session.config.options.validation.validation_noise_scheduler
    return session.family.sampler_line(name, session.facts.shift) if name else ("", {})


@contextmanager
def reported(session: Session) -> Iterator[None]:
    """One file with everything, when all of it has been told: around the run and its listeners, whose last lines it holds.

    The run is not lost for want of it. It is named once the model is exported, and from then on written whatever comes after.
    """
    try:
        yield
    finally:
        if session.exported and session.config.options.page.report:
            try:
                report.write(session.output_dir, with_defaults(defaults()))
            except OSError as error:
                session.reporter.say(
                    f"The report could not be written: {error.strerror}; `simpletuner report` makes it."
                )


def _weights(trainee: Trainee) -> str:
    """Which weights are exported."""
    if trainee.ema:
        return "EMA weights"
    return "the optimizer's average" if optimizers.averages(trainee.optimizer) else "live weights"


def export(session: Session, parts: Components, trainee: Trainee) -> Path:
    """Write the adapter's file, or the whole pipeline's folder; returns its path."""
    if trainee.ema:
        trainee.ema.copy_to_model()
    if trainee.adapter:
        return adapting.export(trainee.adapter, session.output_dir, session.config.options.adapter.lora_format)
    final = session.output_dir / "pipeline"
    if session.config.options.precision.text_encoder_1_precision != "no_change":
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
            f"  WARNING: the last {counted(last, 'step was', 'steps were')} skipped (NaN or infinity), so the weights have most likely diverged "
            "and the pictures will show it. What to do: train again with a lower learning_rate."
        )
