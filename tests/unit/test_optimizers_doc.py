"""docs/optimizers.md names every optimizer and learning-rate schedule, and says rightly which train bf16 weights."""

import re
from pathlib import Path
from typing import get_args

import pytest

from simpletuner.config.optimizer_names import OptimizerName
from simpletuner.training.learning_rate import ScheduleName
from simpletuner.training.optimizers import OPTIMIZERS

TEXT = (Path(__file__).resolve().parents[2] / "docs" / "optimizers.md").read_text(encoding="utf-8")
ROWS = [line.split("|")[1:] for line in TEXT.splitlines() if line.startswith("| `")]


@pytest.mark.parametrize("name", get_args(OptimizerName))
def test_every_optimizer_has_its_row(name: str) -> None:
    short = re.sub(r"(8bit)?(-paged)?$", "", name) if name.startswith("bnb") else name
    (row,) = [cells for cells in ROWS if f"`{short}`" in cells[0]]
    assert row[1].strip().startswith("yes") is OPTIMIZERS[name].low_precision_safe


def test_every_schedule_is_named() -> None:
    assert all(f"`{name}`" in TEXT for name in get_args(ScheduleName))
