"""Checkpoints: whole or absent.

A checkpoint is written into a staging folder, every file is synced, a manifest with hashes comes last, then the folder
is renamed. Only safetensors and JSON: nothing that could run code. State is readable: open ``training_state.json``.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from simpletuner.errors import ResumeError, TunerError
from simpletuner.training import best
from simpletuner.wording import where_to_write

MANIFEST = "checkpoint_manifest.json"
STATE = "training_state.json"
OPTIMIZER_TENSORS, OPTIMIZER_STRUCTURE = "optimizer.safetensors", "optimizer.json"
_NAME = re.compile(r"checkpoint-(\d+)$")
_LEFT = re.compile(r"\.checkpoint-\d+\.(staging|old)")


@dataclass(frozen=True, slots=True)
class TrainingState:
    """Where a run is. Everything random is a function of seed and position, so this is all there is to resume.

    Attributes:
        step: Optimizer steps done.
        ema_updates: Updates of the EMA so far.
        plan: What the batch order depends on; compared on resume.
        scaler: State of the fp16 gradient scaler, empty otherwise.
    """

    step: int
    ema_updates: int = 0
    plan: dict[str, Any] = field(default_factory=dict)
    scaler: dict[str, Any] = field(default_factory=dict)


def _digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def staged_folder(final: Path) -> Any:
    """Yield a staging folder; on a clean exit it is synced, given a manifest and renamed to ``final``.

    An existing ``final`` is replaced only once the new one is complete. On an error nothing of the staging folder stays.

    Raises:
        TunerError: The disk refused (full, no permission); the last good folder is untouched.
    """
    staging = final.with_name(f".{final.name}.staging")
    old = final.with_name(f".{final.name}.old")
    shutil.rmtree(staging, ignore_errors=True)
    try:
        if old.exists() and not final.exists():  # killed between the two renames below
            os.replace(old, final)
        staging.mkdir(parents=True)
        yield staging
        files = sorted(p for p in staging.rglob("*") if p.is_file())
        for file in files:
            _sync(file)
        manifest = {"version": 1, "files": {str(f.relative_to(staging)): _digest(f) for f in files}}
        (staging / MANIFEST).write_text(json.dumps(manifest, indent=1), encoding="utf-8")
        _sync(staging / MANIFEST)
        shutil.rmtree(old, ignore_errors=True)
        if final.exists():
            os.replace(final, old)
        os.replace(staging, final)
        _sync(final.parent)
        shutil.rmtree(old, ignore_errors=True)
    except (OSError, SafetensorError) as error:
        if old.exists() and not final.exists():
            os.replace(old, final)
        reason = getattr(error, "strerror", None) or error
        raise TunerError(
            f"cannot write {final}: {reason}. Earlier checkpoints are untouched. "
            f"What to do: {where_to_write(error, 'another output_dir')}, then start again: it resumes."
        ) from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def tidy(output_dir: Path) -> None:
    """Clear away the checkpoints that killed runs left half written, in a folder that no other run is in.

    Such a folder is hidden, and as large as a checkpoint; the run that goes on may never save that very step again.
    """
    for left in output_dir.glob(".checkpoint-*"):
        if _LEFT.fullmatch(left.name):
            final = output_dir / left.name[1:].rpartition(".")[0]
            if left.suffix == ".old" and not final.exists():  # killed between the two renames of ``staged_folder``
                os.replace(left, final)
            else:
                shutil.rmtree(left, ignore_errors=True)


def problem_with(folder: Path) -> str | None:
    """Why a checkpoint cannot be trusted, or None if every file matches its hash."""
    try:
        files = dict(json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["files"])
    except (OSError, ValueError, KeyError, TypeError):
        return "it has no readable manifest"
    for name, digest in files.items():
        file = folder / name
        if not file.is_file():
            return f"{name} is missing"
        if _digest(file) != digest:
            return f"{name} does not match its hash"
    return None


def is_one(folder: Path) -> bool:
    """Whether a folder is a checkpoint, by what it holds and not by its name."""
    return (folder / MANIFEST).is_file() and (folder / STATE).is_file()


def existing(output_dir: Path) -> list[Path]:
    """Checkpoint folders, lowest step first."""
    found = [(int(m[1]), p) for p in output_dir.glob("checkpoint-*") if (m := _NAME.search(p.name)) and p.is_dir()]
    return [path for _, path in sorted(found)]


def save(
    output_dir: Path,
    state: TrainingState,
    save_weights: Callable[[Path], None],
    optimizer: tuple[Mapping[str, torch.Tensor], Mapping[str, Any]],
    keep: int | None,
    say: Callable[[str], None] = lambda sentence: None,
) -> Path:
    """Write ``checkpoint-<step>`` and remove the oldest beyond ``keep``.

    Args:
        output_dir: The run's folder.
        state: Where the run is.
        save_weights: Writes the trained weights and their average into a folder (``weights.Weights.save``).
        optimizer: What ``optimizers.pack`` gave.
        keep: Checkpoints to keep, None for all. The new one is never removed, and the best by held-out loss is kept
            beside them.
        say: Told where one beyond ``keep`` cannot be removed, as where a file of it is open on another machine.

    Returns:
        The checkpoint's folder.
    """
    final = output_dir / f"checkpoint-{state.step}"
    with staged_folder(final) as staging:
        save_weights(staging)
        tensors, structure = optimizer
        save_file(dict(tensors), staging / OPTIMIZER_TENSORS)
        (staging / OPTIMIZER_STRUCTURE).write_text(json.dumps(structure), encoding="utf-8")
        (staging / STATE).write_text(json.dumps(asdict(state), indent=1), encoding="utf-8")
    if keep:
        named = best.read(output_dir)
        others = [c for c in existing(output_dir) if c != final]
        for old in others[: -(keep - 1) or None]:
            if named is None or old.name != named.checkpoint:
                _remove(old, say)
    return final


def _remove(folder: Path, say: Callable[[str], None]) -> None:
    try:
        shutil.rmtree(folder)
    except OSError as error:
        say(f"WARNING: {folder} could not be removed: {error.strerror}. It is tried again with the next checkpoint")


SET_ASIDE = ("metrics.jsonl", "logs", "validation_images", "benchmarks", "grids", "before_after.png", best.FILE)


def set_aside(output_dir: Path, after: int) -> Path | None:
    """Move what another run left beyond step ``after`` out of the way, so that ``latest`` never means that run.

    Args:
        output_dir: The run's folder.
        after: Steps done by the run that starts now; 0 for a fresh run, whose forerunner's metrics and pictures are
            moved as well.

    Returns:
        The folder it was moved to, or None if there was nothing.
    """
    stale = [p for p in existing(output_dir) if int(p.name.rpartition("-")[2]) > after]
    if not stale:
        return None
    number = 1
    while (home := output_dir / f"earlier-{number}").exists():
        number += 1
    home.mkdir()
    others = [output_dir / name for name in SET_ASIDE] if not after else []
    for path in [*stale, *(p for p in others if p.exists())]:
        os.replace(path, home / path.name)
    return home


@dataclass(frozen=True, slots=True)
class Loaded:
    """A verified checkpoint's content; the weights are read by ``weights.Weights.load``."""

    folder: Path
    state: TrainingState
    optimizer: tuple[dict[str, torch.Tensor], dict[str, Any]]


def find(output_dir: Path, wanted: str | None) -> tuple[Path | None, list[str]]:
    """The checkpoint to resume from.

    Args:
        output_dir: The run's folder.
        wanted: ``latest``, a folder name in ``output_dir``, a path, or None for a fresh run.

    Returns:
        The folder, or None for a fresh run, and sentences about damaged checkpoints that were passed over.

    Raises:
        ResumeError: A checkpoint asked for by name is missing or damaged, or all of several are damaged.
    """
    if not wanted:
        return None, []
    if wanted != "latest":
        folder = output_dir / wanted if (output_dir / wanted).is_dir() else Path(wanted)
        reason = "there is no such folder" if not folder.is_dir() else problem_with(folder)
        if reason:
            raise ResumeError(
                f"cannot resume from {wanted!r} (resume_from_checkpoint): {reason}. "
                f"Checkpoints in {output_dir}: {', '.join(p.name for p in existing(output_dir)) or 'none'}."
            )
        return folder, []
    notes: list[str] = []
    for folder in reversed(existing(output_dir)):
        reason = problem_with(folder)
        if reason is None:
            return folder, notes
        notes.append(f"passing over {folder.name}: {reason}")
    if notes:
        raise ResumeError(
            f"no checkpoint in {output_dir} is whole ({'; '.join(notes)}). "
            "What to do: move them away, or set resume_from_checkpoint to false for a fresh run."
        )
    return None, []


def state_of(folder: Path) -> TrainingState:
    """Where the run was, of a checkpoint that ``find`` has verified: a small file, no weights.

    Raises:
        ResumeError: It says what this version does not know.
    """
    try:
        return TrainingState(**json.loads((folder / STATE).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise ResumeError(
            f"{folder / STATE} cannot be used: {error}. Another version of this program has written it, or it was edited. "
            "What to do: go on with that version, or set resume_from_checkpoint to false for a fresh run."
        ) from error


def load(folder: Path) -> Loaded:
    """Read a checkpoint that ``find`` has verified."""
    return Loaded(
        folder=folder,
        state=state_of(folder),
        optimizer=(
            load_file(folder / OPTIMIZER_TENSORS),
            json.loads((folder / OPTIMIZER_STRUCTURE).read_text(encoding="utf-8")),
        ),
    )
