"""From lines of metrics.jsonl to the curves that trackers draw: names and numbers, no tracker.

One step has a handful of samples, so losses by band of sigma are smoothed here; everything else is passed on as it is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

SMOOTHING = 0.95  # of losses by sigma: about the last 20 steps that had samples in the band
_STEP = {
    "loss": "train/loss",
    "smoothed_loss": "train/loss_smoothed",
    "regularisation_loss": "train/regularisation_loss",
    "grad_norm": "train/grad_norm",
    "learning_rate": "train/learning_rate",
}
_PLACES = {"step", "label", "nickname", "prompt", "weights", "name", "path", "index", "seed", "width", "height"}


class Curves:
    """Names the figures of a run, and remembers what is smoothed."""

    def __init__(self) -> None:
        """Nothing is known yet."""
        self._bands: dict[int, float] = {}

    def points(self, kind: str, values: Mapping[str, Any]) -> dict[str, float]:
        """Curve → value of one line; what is no number is left out.

        Args:
            kind: Of the line: step, eval, eval_live, score, system, or one that only others know.
            values: Of the line.
        """
        if kind == "step":
            found = self._step(values)
        elif kind in ("eval", "eval_live"):
            found = _held_out("held_out" if kind == "eval" else "held_out_live", values)
        elif kind == "score":
            found = _score(values)
        else:
            found = {f"{kind}/{name}": value for name, value in values.items() if name not in _PLACES}
        return {name: float(value) for name, value in found.items() if _is_number(value)}

    def _step(self, values: Mapping[str, Any]) -> dict[str, Any]:
        found = {name: values.get(key) for key, name in _STEP.items()}
        seconds, samples = values.get("seconds") or 0, values.get("samples") or 0
        if seconds > 0:
            found["train/steps_per_second"] = 1 / seconds
            found["train/pictures_per_second"] = samples / seconds
        means: Sequence[float | None] = values.get("by_sigma") or ()
        for band, mean in enumerate(means):
            if mean is not None:
                before = self._bands.get(band, mean)
                self._bands[band] = SMOOTHING * before + (1 - SMOOTHING) * mean
                found[f"loss_by_sigma/{band / len(means):.1f}-{(band + 1) / len(means):.1f}"] = self._bands[band]
        return found


def _held_out(name: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """The figure, and its parts by sigma and by dataset."""
    found = {f"{name}/loss": values.get("loss")}
    parts = zip(values.get("sigmas") or (), values.get("by_sigma") or (), strict=False)
    found |= {f"{name}_by_sigma/{sigma:.3g}": value for sigma, value in parts}
    return found | {f"{name}/loss/{dataset}": value for dataset, value in (values.get("by_dataset") or {}).items()}


def _score(values: Mapping[str, Any]) -> dict[str, Any]:
    """Of one picture, or mean, lowest and highest of all."""
    what = "/".join(str(part) for part in (values.get("name"), values.get("label")) if part)
    if values.get("nickname") is None:
        return {f"score/{what}/{name}": value for name, value in values.items() if name not in _PLACES}
    place = f"{values.get('index', 0)}_{values.get('width', '')}x{values.get('height', '')}"
    return {f"score_by_prompt/{what}/{values['nickname']}/{place}": values.get("value")}


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
