"""What `simpletuner check` says of the checkpoint that training would go on from: from its own small files, without weights."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from simpletuner.config.read import RunConfig
from simpletuner.errors import ModelError, ResumeError, UnreachableError
from simpletuner.models.base import Family, LoadSource
from simpletuner.training import checkpoint, resuming, translate_memory, translate_resume
from simpletuner.wording import counted


@dataclass(slots=True)
class Resumed:
    """What was found out.

    Attributes:
        folder: The checkpoint, or None for a fresh run.
        state: Where its run was, and what it recorded of it.
        lines: Sentences.
        problems: Why training would refuse.
        unfit: Whether no adapter can be made of the configuration, so that nothing it would take can be told.
    """

    folder: Path | None = None
    state: checkpoint.TrainingState = field(default_factory=lambda: checkpoint.TrainingState(step=0))
    lines: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    unfit: bool = False

    def course(self, config: RunConfig, total: int, pictures: Iterable[str]) -> list[str]:
        """What is done and what is left of a run of ``total`` steps, and whether its pictures or learning rate are others.

        Args:
            config: The configuration.
            total: Steps of the whole run.
            pictures: Digests of the training pictures.
        """
        if self.folder is None:
            return []
        done = self.state.step
        others = resuming.none_of_its_pictures(pictures, self.state.plan, self.folder.name)
        if done >= total:
            return [*others, resuming.nothing_left(done, total)]
        going_on = (
            f"Training goes on from {self.folder.name}: {done} of {counted(total, 'step')} done, {total - done} left"
        )
        output_dir = Path(config.options.checkpoints.output_dir).expanduser()
        return [*others, going_on, *translate_resume.notes_on_rate(config, total, self.state, output_dir)]


def look(config: RunConfig, family: Family, source: LoadSource, has_model: bool) -> Resumed:
    """Find the checkpoint as training does, and compare with it what can be told without weights.

    Args:
        config: The configuration.
        family: Knows the model.
        source: Where its configuration files are.
        has_model: Whether they can be read; otherwise layers are not compared.
    """
    found = Resumed()
    checkpoints = config.options.checkpoints
    shape: dict[str, Any] = {}
    if has_model:
        try:
            shape, found.lines = translate_resume.bare_adapter(config, family, source)
        except UnreachableError:
            pass
        except ModelError as error:
            found.problems.append(str(error))
            found.unfit = True
            return found
    try:
        found.folder, notes = checkpoint.find(
            Path(checkpoints.output_dir).expanduser(), checkpoints.resume_from_checkpoint
        )
        found.lines += notes
        if found.folder:
            found.state = checkpoint.state_of(found.folder)
            precision = translate_memory.precision_of(config.options)
            translate_resume.refuse_another_run(config, precision, shape, found.folder)
    except ResumeError as error:
        found.problems.append(str(error))
    return found
