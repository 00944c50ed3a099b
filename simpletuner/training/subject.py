"""What a person names to draw with becomes a place to load from and, where there is one, an adapter to put on.

In: a path or hub id, and what stands beside it on disk. Out: a ``Subject``. Loads no weights and draws nothing.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from simpletuner.errors import TunerError
from simpletuner.models import adapters
from simpletuner.training import checkpoint, schedule_free

RECORD = "config.resolved.json"
MERGED_RECORD = "drawing.json"  # in a merged model's own folder: the part of it that decides pictures
Which = Literal["ema", "live"]


@dataclass(frozen=True, slots=True)
class Subject:
    """What is drawn with.

    Attributes:
        base: Folder or hub id of a pipeline; None where the adapter's file has to tell it.
        adapter: File or folder of the adapter, or None.
        transformer: (folder, subfolder) of other transformer weights than the base's own, or None.
        words: What it is, for a person.
        record: The options of the run that made it, by key; empty where no run's folder is near.
        average: The checkpoint whose optimizer keeps the average of these weights that is meant; None for them as they are.
    """

    base: str | None
    adapter: Path | None
    transformer: tuple[str, str] | None
    words: str
    record: Mapping[str, Any]
    average: Path | None = None


def find(model: str, base: str | None, which: Which | None) -> Subject:
    """Look at what ``model`` is.

    Args:
        model: A hub id; a pipeline's folder; a run's output folder; a checkpoint; an adapter's file or folder.
        base: The pipeline under an adapter or a checkpoint, where the run's own is not meant.
        which: EMA or live weights of a checkpoint; None takes the EMA where there is one, and the average that a
            schedule-free optimizer keeps.

    Raises:
        TunerError: A folder that is none of these, or weights that are not in it.
    """
    path = Path(model).expanduser()
    if path.is_file():
        return _adapter(path, base, which)
    if not path.is_dir():
        _not_here(which, base, f"{model!r} is a model of the hub")
        return Subject(model, None, None, model, {})
    if (path / "model_index.json").is_file():
        _not_here(which, base, f"{path} is a whole pipeline")
        return Subject(str(path), None, None, str(path), _record(path, MERGED_RECORD) or _record(path.parent))
    if checkpoint.is_one(path):
        return _checkpoint(path, base, which)
    if (path / "pipeline" / "model_index.json").is_file():
        _not_here(which, base, f"{path} has its trained model exported as a whole pipeline")
        return Subject(str(path / "pipeline"), None, None, f"{path / 'pipeline'}", _record(path))
    if (path / adapters.WEIGHTS).is_file():
        return _adapter(path, base, which)
    whole = [folder for folder in checkpoint.existing(path) if (folder / checkpoint.MANIFEST).is_file()]
    if whole:
        return _checkpoint(whole[-1], base, which)
    raise TunerError(
        f"{path} holds nothing to draw with. What to do: name a pipeline's folder (with model_index.json), the output_dir "
        f"of a run, a checkpoint, or an adapter (a .safetensors file, or a folder with {adapters.WEIGHTS})."
    )


def _adapter(path: Path, base: str | None, which: Which | None) -> Subject:
    """An adapter outside a checkpoint: an export, or somebody's file."""
    _not_here(which, None, f"{path} holds one set of weights")
    record = record_near(path)
    average = schedule_free.keeper(path)
    words = f"{schedule_free.WORDS} of {path}" if average else f"the adapter {path}"
    return replace(_over_base(record, base, words, path, None), average=average)


def _checkpoint(folder: Path, base: str | None, which: Which | None) -> Subject:
    """Live, EMA or averaged weights of a checkpoint, over the run's base."""
    record = _record(folder.parent)
    is_adapter = (folder / adapters.WEIGHTS).is_file()
    live, ema = (folder, folder / "ema") if is_adapter else (folder / "transformer", folder / "transformer_ema")
    if which == "ema" and not ema.is_dir():
        raise TunerError(f"{folder} has no EMA weights (use_ema was off). What to do: leave --ema out.")
    if reason := checkpoint.problem_with(folder):
        raise TunerError(f"{folder} is damaged: {reason}. What to do: name another checkpoint.")
    chosen, kind = (ema, "EMA weights") if ema.is_dir() and which != "live" else (live, "live weights")
    average = schedule_free.keeper(folder) if which is None and chosen is live else None
    words = f"{schedule_free.WORDS if average else kind} of {folder}"
    adapter, weights = (chosen, None) if is_adapter else (None, (str(folder), chosen.name))
    return replace(_over_base(record, base, words, adapter, weights), average=average)


def _over_base(
    record: Mapping[str, Any], base: str | None, words: str, adapter: Path | None, weights: tuple[str, str] | None
) -> Subject:
    """With the base that was asked for, or with the run's own and what the run loaded beside it."""
    if base is not None:
        kept = {key: value for key, value in record.items() if key not in ("revision", "variant")}
        return Subject(base, adapter, weights, words, kept)
    own = record.get("pretrained_model_name_or_path") or None
    other = record.get("pretrained_transformer_model_name_or_path")
    if weights is None and own and other:
        weights = (str(other), str(record.get("pretrained_transformer_subfolder", "transformer")))
    if own is None and adapter is None:
        raise TunerError(
            f"there is no {RECORD} beside {words}, so its base model is not known. What to do: name the model it was "
            "trained from with --base."
        )
    return Subject(own, adapter, weights, words, record)


def _not_here(which: Which | None, base: str | None, what: str) -> None:
    """Refuse options that would change nothing."""
    if which is not None:
        raise TunerError(f"--{which}: {what}. What to do: leave it out, or name a checkpoint, which may hold both.")
    if base is not None:
        raise TunerError(f"--base: {what}, and needs no other model. What to do: leave it out.")


def weights_meant(adapter: Path) -> Path:
    """The folder of the weights that are meant by an adapter's checkpoint: its EMA where there is one; else the path itself."""
    ema = adapter / "ema"
    return ema if checkpoint.is_one(adapter) and (ema / adapters.WEIGHTS).is_file() else adapter


def record_near(adapter: Path) -> dict[str, Any]:
    """The options of the run that an adapter's file or folder lies in; empty where it lies in none."""
    folder = adapter if adapter.is_dir() else adapter.parent
    # ``checkpoint-N/ema`` and ``checkpoint-N`` lie below the run's folder; its record is of use in each of them.
    return next(filter(None, map(_record, [folder, folder.parent, folder.parent.parent])), {})


def _record(folder: Path, name: str = RECORD) -> dict[str, Any]:
    """The options of the run whose output folder this is; empty if it is none."""
    try:
        content = json.loads((folder / name).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
