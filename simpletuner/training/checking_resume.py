"""What `simpletuner check` says of the checkpoint that training would go on from: from its own small files, without weights."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from simpletuner.config.read import RunConfig
from simpletuner.errors import ModelError, ResumeError, UnreachableError
from simpletuner.models.base import Family, LoadSource
from simpletuner.training import checkpoint, resuming, translate_memory, translate_resume


@dataclass(slots=True)
class Resumed:
    """What was found out.

    Attributes:
        folder: The checkpoint, or None for a fresh run.
        step: Optimizer steps done.
        plan: What it recorded of its run.
        lines: Sentences.
        problems: Why training would refuse.
    """

    folder: Path | None = None
    step: int = 0
    plan: dict[str, Any] = field(default_factory=dict)
    lines: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def course(self, total: int) -> list[str]:
        """What is done and what is left of a run of ``total`` steps."""
        if self.folder is None:
            return []
        if self.step >= total:
            return [resuming.nothing_left(self.step, total)]
        left = total - self.step
        are = ("step is", "steps are")[self.step != 1]
        return [f"Training goes on from {self.folder.name}: {self.step} of {total} {are} done, {left} left"]


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
            return found
    try:
        found.folder, notes = checkpoint.find(
            Path(checkpoints.output_dir).expanduser(), checkpoints.resume_from_checkpoint
        )
        found.lines += notes
        if found.folder:
            state = checkpoint.state_of(found.folder)
            found.step, found.plan = state.step, state.plan
            precision = translate_memory.precision_of(config.options)
            translate_resume.refuse_another_run(config, precision, shape, found.folder)
    except ResumeError as error:
        found.problems.append(str(error))
    return found
