"""Part of the composition root: what acts between the steps of a run, in the order in which it acts.

In: a session and what was made of it. Out: the list of hooks. Acts on nothing itself.
"""

from __future__ import annotations

from simpletuner.evaluation.validation import Validator
from simpletuner.training import resuming, translate, translate_validation
from simpletuner.training.assemble import held_out_batches, make_held_out
from simpletuner.training.control import FOLDER, Control
from simpletuner.training.hooks import Checkpointing
from simpletuner.training.judging import Judging
from simpletuner.training.loop import Hook
from simpletuner.training.material import Material
from simpletuner.training.session import Session
from simpletuner.training.trainee import Recipe, Trainee
from simpletuner.training.validating import ValidationPictures


def make_hooks(
    session: Session,
    trainee: Trainee,
    recipe: Recipe,
    material: Material,
    validator: Validator | None,
    judging: Judging | None,
    identity: resuming.Identity,
) -> list[Hook]:
    """Checkpoint first: a failing validation must not cost what was learned. Of several processes only rank 0 acts."""
    if not session.ranks.main:
        return []
    options, plan = session.config.options, material.plan
    keep = options.checkpoints.checkpoints_total_limit or None
    save = resuming.saver(trainee, session.output_dir, identity, keep, session.reporter.say)
    if session.publisher and options.publishing.push_checkpoints_to_hub:
        save = session.publisher.after(save)
    often, last = options.checkpoints.checkpoint_step_interval, translate.total_steps(session.config, plan)
    checkpointing = Checkpointing(often, last, save, session.reporter, session.stages)
    hooks: list[Hook] = [checkpointing]
    drawing: ValidationPictures | None = None
    stacked = held_out_batches(session, material.held_out, material.refs, material.texts, material.latents_of)
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
            stop=session.stopping,
            last=last,
        )
        hooks.append(drawing)
    folder, draw = session.output_dir / FOLDER, drawing.now if drawing else None
    return [*hooks, Control(folder, checkpointing.now, draw, session.reporter, session.stages)]
