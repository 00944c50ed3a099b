"""The figures of one run, as columns: what curves are drawn from.

In: lines of metrics.jsonl, of any kind and in the order they were written. Out: columns of numbers by step, and lists of
the rarer figures. A run that was resumed trains some steps twice: the later line counts.
"""

from __future__ import annotations

import itertools
import math
from array import array
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

BANDS = 5  # of sigma from 0 to 1, in lines of steps
BAND_COLUMNS = tuple(f"band_{band}" for band in range(BANDS))
COLUMNS = ("loss", "regularisation_loss", "grad_norm", "learning_rate", "speed", "time", *BAND_COLUMNS)
MOST_POINTS = 20_000
RARE = ("evals", "scores", "system")
_NAN = math.nan


def number(value: object) -> float:
    """A figure of a line; what is none is NaN."""
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else _NAN


class Series:
    """Columns of one run.

    Attributes:
        generation: Rises whenever something that was told before is void.
        steps: Step numbers, rising.
        columns: By name of ``COLUMNS``, as long as ``steps``; NaN where there is no figure.
        evals, scores, system: Lines of these kinds as they were written, in order of steps.
        skipped: (step, sentence) of skipped steps.
        running_s: Seconds in which the run was training, measuring or drawing, steps that were trained twice counted twice.
            A ``start`` line ends a pause; before there is one, time counts from the first line.
    """

    def __init__(self) -> None:
        self.generation = 0
        self.steps: array[int] = array("q")
        self.columns: dict[str, array[float]] = {name: array("d") for name in COLUMNS}
        self.evals: list[dict[str, Any]] = []
        self.scores: list[dict[str, Any]] = []
        self.system: list[dict[str, Any]] = []
        self.skipped: list[tuple[int, str]] = []
        self.running_s = 0.0
        self._last_time = _NAN

    def clear(self) -> None:
        """Forget everything: the file was written anew."""
        generation = self.generation
        self.__init__()  # type: ignore[misc]
        self.generation = generation + 1

    def add(self, line: Mapping[str, Any]) -> None:
        """Take one line of metrics.jsonl; kinds that are not drawn are left alone."""
        step = line.get("step")
        if not isinstance(step, int) or isinstance(step, bool) or not -1 < step < 2**62:
            return
        kind = line.get("kind")
        self._pass_time(number(line.get("time")), paused=kind == "start")
        if kind == "step":
            self._add_step(step, line)
        elif kind in ("eval", "eval_live"):
            self.evals.append({**line, "step": step})
        elif kind == "score":
            self.scores.append({**line, "step": step})
        elif kind == "system":
            self.system.append({**line, "step": step})

    def _pass_time(self, moment: float, paused: bool) -> None:
        """Seconds since the line before; a clock that was put back counts as no time."""
        if math.isfinite(moment):
            if not paused and moment > self._last_time:
                self.running_s += moment - self._last_time
            self._last_time = moment

    def _add_step(self, step: int, line: Mapping[str, Any]) -> None:
        if self.steps and step <= self.steps[-1]:
            self._rewind(step)
        seconds = number(line.get("seconds"))
        values = {name: number(line.get(name)) for name in COLUMNS}
        values["speed"] = number(line.get("samples")) / seconds if seconds > 0 else _NAN
        by_sigma = line.get("by_sigma")
        if isinstance(by_sigma, list) and len(by_sigma) == BANDS:
            values |= {name: number(value) for name, value in zip(BAND_COLUMNS, by_sigma, strict=True)}
        if line.get("skipped"):
            values |= {name: _NAN for name in ("loss", "regularisation_loss", *BAND_COLUMNS)}
            self.skipped.append((step, str(line["skipped"])))
        self.steps.append(step)
        for name, value in values.items():
            self.columns[name].append(value)

    def _rewind(self, step: int) -> None:
        """Training went back to before ``step``: what was told of it and of later ones is void."""
        keep = int(np.searchsorted(np.asarray(self.steps), step))
        del self.steps[keep:]
        for column in self.columns.values():
            del column[keep:]
        for rare in RARE:
            kept = [line for line in getattr(self, rare) if line["step"] < step]
            setattr(self, rare, kept)
        self.skipped = [pair for pair in self.skipped if pair[0] < step]
        self.generation += 1

    def since(self, begin: int, rare: Mapping[str, int]) -> dict[str, Any]:
        """What a page that has ``begin`` steps, and these many of the rare lines, still needs.

        Args:
            begin: Steps already told.
            rare: Lines already told, by name of ``RARE``.

        Returns:
            JSON-able columns, thinned to ``MOST_POINTS`` if there are more: the lowest and the highest loss of each
            stretch stay, so that no spike is lost.
        """
        steps = np.asarray(self.steps, dtype=np.int64)[begin:]
        loss = np.asarray(self.columns["loss"])[begin:]
        chosen = thinned(loss, MOST_POINTS)
        told: dict[str, Any] = {name: getattr(self, name)[rare.get(name, 0) :] for name in RARE}
        told["rare"] = {name: len(getattr(self, name)) for name in RARE}
        told["columns"] = {"step": steps[chosen].tolist()} | {
            name: [_short(v) for v in np.asarray(column)[begin:][chosen].tolist()]
            for name, column in self.columns.items()
        }
        return told | {"generation": self.generation, "begin": begin, "count": len(self.steps)}


def _short(value: float) -> float | None:
    return float(f"{value:.7g}" if value < 1e8 else f"{value:.13g}") if math.isfinite(value) else None


def thinned(values: np.ndarray, most: int) -> np.ndarray:
    """Indices of at most ``most`` values, with the lowest and highest of each stretch.

    Args:
        values: [n] floats; NaN are passed over where a stretch has others.
        most: At least 4.

    Returns:
        Rising indices; all where n ≤ ``most``. The first and the last are always there.
    """
    n = len(values)
    if n <= most:
        return np.arange(n)
    edges = np.linspace(0, n, (most - 2) // 2 + 1).astype(np.int64)
    low = np.where(np.isnan(values), np.inf, values)
    high = np.where(np.isnan(values), -np.inf, values)
    chosen = {0, n - 1}
    for left, right in itertools.pairwise(edges):
        chosen.add(int(left + np.argmin(low[left:right])))
        chosen.add(int(left + np.argmax(high[left:right])))
    return np.asarray(sorted(chosen), dtype=np.int64)


def smoothed(values: Sequence[float], keep: float) -> list[float]:
    """Exponential mean that starts without a bias towards 0; gaps (NaN) are bridged.

    Source: the correction of Adam's means, Kingma and Ba 2015, section 3: sum of weights 1 - keep^t.

    Args:
        values: Any finite numbers or NaN.
        keep: In [0, 1): the share of the past.
    """
    mean, weight, out = 0.0, 0.0, []
    for value in values:
        if not math.isnan(value):
            mean = keep * mean + (1 - keep) * value
            weight = keep * weight + (1 - keep)
        out.append(mean / weight if weight else _NAN)
    return out


def some_of(count: int, most: int = BANDS) -> list[int]:
    """Indices of at most ``most`` of so many, the first and the last among them."""
    return list(range(count)) if count <= most else [round(i * (count - 1) / (most - 1)) for i in range(most)]


def overfitting(evals: Sequence[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    """The overfit alarm that the run itself wrote down as being in force at its last evaluation, or None.

    Returns:
        ``low``, the step at which held-out loss began to rise; ``held_out`` and ``training``, losses [then, at the alarm];
        ``evaluations``, each higher than the one before.
    """
    own = [line for line in evals if line.get("kind") == "eval"]
    told = own[-1].get("overfitting") if own else None
    if not isinstance(told, Mapping) or not math.isfinite(number(told.get("low"))):
        return None
    pairs = [told.get(name) for name in ("held_out", "training")]
    whole = all(
        isinstance(pair, Sequence) and len(pair) == 2 and all(map(math.isfinite, map(number, pair))) for pair in pairs
    )
    return told if whole else None
