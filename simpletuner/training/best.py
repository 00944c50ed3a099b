"""The best checkpoint: that of the lowest held-out loss, named in ``best.json`` and never removed for its age."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from simpletuner.data.cache import write_atomic

FILE = "best.json"


@dataclass(frozen=True, slots=True)
class Best:
    """What ``best.json`` holds.

    Attributes:
        checkpoint: The folder's name in the run's folder.
        step: Optimizer steps done.
        held_out_loss: Its figure.
        weights: What was measured: ``EMA weights`` or ``weights``.
    """

    checkpoint: str
    step: int
    held_out_loss: float
    weights: str


def lowest(figures: Mapping[int, float | None], steps: Collection[int]) -> int | None:
    """Which of ``steps`` has the lowest figure, the earliest of equals; None without any."""
    known = [(figure, step) for step, figure in figures.items() if step in steps and figure is not None]
    known = [(figure, step) for figure, step in known if math.isfinite(figure)]
    return min(known)[1] if known else None


def read(output_dir: Path) -> Best | None:
    """The best checkpoint so far, if it is still there."""
    try:
        best = Best(**json.loads((output_dir / FILE).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None
    return best if (output_dir / best.checkpoint).is_dir() else None


def write(output_dir: Path, best: Best | None) -> None:
    """Name the best checkpoint, or none."""
    if best is None:
        (output_dir / FILE).unlink(missing_ok=True)
    else:
        write_atomic(output_dir / FILE, (json.dumps(asdict(best), indent=1) + "\n").encode())
