"""One prompt over time: which pictures stand in which column of its contact grid. Pure but for a look at what exists.

In: the run's ``picture`` lines of metrics.jsonl, so that a resumed run has the columns of its first half. Out: rows and
captions for ``grid``: a column for each validation, a row for each size, seed and kind of weights.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from simpletuner.evaluation.grid import REMEMBERED
from simpletuner.evaluation.pictures import BASE

COLUMNS = 12
CELL = REMEMBERED
Item = TypeVar("Item")


def thinned(items: Sequence[Item], most: int = COLUMNS) -> list[Item]:
    """At most ``most`` of the items, evenly spread; the first and the last stay."""
    if len(items) <= most:
        return list(items)
    return [items[round(place * (len(items) - 1) / (most - 1))] for place in range(most)]


def over_time(
    lines: Sequence[Mapping[str, Any]], output_dir: Path, until: int
) -> tuple[list[tuple[str, list[Path | None]]], list[str]]:
    """Rows and captions of one prompt's grid.

    Args:
        lines: The prompt's lines of kind ``picture``, in the order they were written; of the same picture the later counts.
        output_dir: The run's folder.
        until: Steps done: later ones are those of a run that was set back.
    """
    paths = {(_column(line), _row(line)): output_dir / line["path"] for line in lines if line["step"] <= until}
    shapes = list(dict.fromkeys(row[:2] for _, row in paths))  # in the order of validation_resolution
    rows = sorted({row for _, row in paths}, key=lambda row: (shapes.index(row[:2]), *row[2:]))
    columns = thinned(sorted({column for column, _ in paths}))

    def cell(column: int, row: tuple[int, int, int, str]) -> Path | None:
        *which, label = row
        # The average starts as a copy of the weights: before the first step one picture shows both.
        other = (*which, "") if label and column <= 0 else row
        return paths.get((column, row), paths.get((column, other)))  # type: ignore[arg-type]

    several = len({row[2] for row in rows}) > 1
    named = [(_name(row, len(shapes) > 1, several), [cell(column, row) for column in columns]) for row in rows]
    return named, ["base model" if column < 0 else f"step {column}" for column in columns]


def _column(line: Mapping[str, Any]) -> int:
    """The step; the base model stands before all of them."""
    return -1 if line["label"] == BASE else int(line["step"])


def _row(line: Mapping[str, Any]) -> tuple[int, int, int, str]:
    label = "" if line["label"] == BASE else str(line["label"])
    return int(line["width"]), int(line["height"]), int(line["index"]), label


def _name(row: tuple[int, int, int, str], with_size: bool, with_index: bool) -> str:
    width, height, index, label = row
    words = ["EMA" if label == "ema" else label or "trained"]
    words += [f"{width}x{height}"] if with_size else []
    words += [f"no. {index + 1}"] if with_index else []
    return " ".join(words)
