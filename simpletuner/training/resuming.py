"""Leave a run and come back to it: what identifies a run, how its state is saved, and how it is put back."""

from __future__ import annotations

import contextlib
import hashlib
import heapq
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from simpletuner.errors import ResumeError, TunerError
from simpletuner.training import checkpoint, optimizers
from simpletuner.training.ema import Ema
from simpletuner.training.trainee import Trainee
from simpletuner.training.weights import AdapterWeights, AllWeights, Weights
from simpletuner.wording import counted

SKETCHED = 64
# Pictures that a checkpoint names: of more, those with the smallest digests, which is as good as by lot.
REMEMBERED = 64


@dataclass(frozen=True, slots=True)
class Identity:
    """What a run is, for comparison on resume.

    Attributes:
        must_agree: Another value is another run: refused.
        order: What the order of pictures depends on: a change is told.
        recipe: What else shapes the result: a change is told.
        schedule: Of the learning rate, field by field; a jump of the rate itself is told (``rate_jump``).
        pictures: Digests of the training pictures' files: it is told where none of a checkpoint's is left.
    """

    must_agree: dict[str, Any]
    order: dict[str, Any]
    recipe: dict[str, Any]
    schedule: dict[str, Any] = field(default_factory=dict)
    pictures: frozenset[str] = frozenset()

    def as_dict(self) -> dict[str, Any]:
        """For the checkpoint."""
        return {
            "must_agree": self.must_agree,
            "order": self.order,
            "recipe": self.recipe,
            "schedule": self.schedule,
            "pictures": heapq.nsmallest(REMEMBERED, self.pictures),
        }

    def compare(self, saved: Mapping[str, Any], name: str) -> list[str]:
        """Sentences about what changed since a checkpoint.

        Args:
            saved: ``as_dict`` of the run that made it.
            name: The checkpoint's name, for messages.

        Raises:
            ResumeError: Something that must agree does not.
        """
        refuse_another(self.must_agree, saved, name)
        lines = none_of_its_pictures(self.pictures, saved, name)
        for title, now, effect in (
            ("order", self.order, "the order of pictures differs"),
            ("recipe", self.recipe, "training goes on by the new recipe"),
        ):
            before = saved.get(title, {})
            changed = {key: (before[key], value) for key, value in now.items() if before.get(key, value) != value}
            # Numbers are shown; digests and lists would tell nobody anything.
            told = [f"{k} ({b:g} → {v:g})" if isinstance(v, float) else k for k, (b, v) in changed.items()]
            if told:
                lines.append(f"Note: {', '.join(told)} changed since {name}; {effect}")
        return lines


def refuse_another(must_agree: Mapping[str, Any], saved: Mapping[str, Any], name: str) -> None:
    """Compare what must agree, or the part of it that is known, with ``Identity.as_dict`` of the run that made a checkpoint.

    Raises:
        ResumeError: It is another run.
    """
    for key, value in must_agree.items():
        before = saved.get("must_agree", {}).get(key, value)
        if before != value:
            raise ResumeError(
                f"{name} was trained with {key} {before!r}, the configuration says {value!r}. "
                "What to do: change it back, or set resume_from_checkpoint to false for a fresh run."
            )


def none_of_its_pictures(now: Iterable[str], saved: Mapping[str, Any], name: str) -> list[str]:
    """A warning where none of the pictures that a checkpoint names is trained on any more; one of before names none.

    Args:
        now: Digests of the training pictures.
        saved: ``Identity.as_dict`` of the run that made it.
        name: The checkpoint's name.
    """
    before = saved.get("pictures") or ()
    if not before or not set(now).isdisjoint(before):
        return []
    looked = f" ({counted(len(before), 'picture')} of it were looked for)" if len(before) == REMEMBERED else ""
    return [
        f"WARNING: not one of the pictures that {name} was trained on is among those of now{looked}: this run goes on from a "
        "model of other pictures. What to do: for a fresh run give another output_dir, or set resume_from_checkpoint to false."
    ]


def nothing_left(start: int, total: int) -> str:
    """What is said where a checkpoint has all the steps of the run, or more."""
    return (
        f"Nothing left to train: the checkpoint is at step {start} and the run has {counted(total, 'step')}. "
        f"To train on, set max_train_steps above {start}; to train anew, give another output_dir."
    )


def sketch(module: torch.nn.Module) -> str:
    """A short digest of a model's weights: names, shapes and the first values of every tensor.

    Tells one base model from another at once, where a digest of every byte of 1.6B parameters takes seconds.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name}:{tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().reshape(-1)[:SKETCHED].float().cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


def weights_of(trainee: Trainee) -> Weights:
    """What of the trainee goes to disk."""
    return AdapterWeights(trainee.adapter) if trainee.adapter else AllWeights(trainee.transformer)


def saver(
    trainee: Trainee, output_dir: Path, identity: Identity, keep: int | None, say: Callable[[str], None]
) -> Callable[[int], Path]:
    """A function that writes the checkpoint of a given step and returns its folder; arguments as of ``checkpoint.save``."""

    def save(step: int) -> Path:
        state = checkpoint.TrainingState(
            step=step,
            ema_updates=trainee.ema.updates if trainee.ema else 0,
            plan=identity.as_dict(),
            scaler=trainee.scaler.state_dict() if trainee.scaler else {},
        )
        weights = weights_of(trainee)
        tensors, structure = optimizers.pack(trainee.optimizer)
        return checkpoint.save(
            output_dir,
            state,
            lambda folder: weights.save(folder, trainee.ema),
            (tensors, {**structure, "names": weights.names}),
            keep,
            say,
        )

    return save


def restore(
    trainee: Trainee, folder: Path, identity: Identity, configured: set[str], new_ema: Callable[[], Ema]
) -> tuple[int, list[str]]:
    """Put a checkpoint into the trainee.

    Args:
        trainee: Changed in place.
        folder: A checkpoint that ``checkpoint.find`` has verified.
        identity: Of the run that goes on.
        configured: Optimizer arguments that the configuration decides.
        new_ema: Makes an EMA from the weights, for a checkpoint that has none.

    Returns:
        Steps done, and sentences about what changed.

    Raises:
        ResumeError: It was made with another optimizer, precision or model.
    """
    loaded = checkpoint.load(folder)
    notes = identity.compare(loaded.state.plan, folder.name)
    weights = weights_of(trainee)
    weights.load(folder)
    changes = optimizers.unpack(trainee.optimizer, *loaded.optimizer, configured)
    if changes:
        notes.append(f"Note: optimizer arguments changed since {folder.name}: {', '.join(changes)}")
    if trainee.ema and not weights.load_ema(folder, trainee.ema, loaded.state.ema_updates):
        notes.append(f"Note: {folder.name} has no EMA; it starts from the checkpoint's weights")
        trainee.ema = new_ema()
    if trainee.scaler and loaded.state.scaler:
        trainee.scaler.load_state_dict(loaded.state.scaler)
    return loaded.state.step, notes


@contextlib.contextmanager
def only_run_in(output_dir: Path) -> Iterator[None]:
    """Hold the output folder's lock: two runs in one folder would remove each other's checkpoints.

    Raises:
        TunerError: Another run holds it, or the folder cannot be made.
    """
    try:
        import fcntl
    except ImportError:  # Windows has no flock
        yield
        return
    try:
        output_dir.mkdir(parents=True, exist_ok=True)
        file = open(output_dir / ".lock", "w", encoding="utf-8")  # noqa: SIM115 - held for the whole run
    except OSError as error:
        raise TunerError(f"cannot write into {output_dir} (output_dir): {error.strerror}. Choose another.") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise TunerError(
                f"another run is training in {output_dir}. What to do: wait for it, or set another output_dir."
            ) from error
        yield
