"""What `simpletuner check` and training say of sizes, precision and length, before a minute is spent."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from simpletuner.config.read import load
from simpletuner.data.placement import PlacementRules, place
from simpletuner.data.types import Size
from simpletuner.models.known_sizes import knows
from simpletuner.reporting.progress import Reporter
from simpletuner.training import check, translate_precision
from simpletuner.training.precision import choose
from simpletuner.training.session import find_pictures, open_session

Said = Callable[..., str]


@pytest.fixture
def written(pocket_run: Callable[..., Path]) -> Callable[..., Path]:
    """A configuration on the pocket model, with keys of its dataset."""

    def write(entry: dict[str, Any] | None = None, **options: Any) -> Path:
        config = pocket_run(**options)
        folder = config if config.is_dir() else config.parent
        file = folder / "multidatabackend.json"
        first, *rest = json.loads(file.read_text())
        file.write_text(json.dumps([{**first, **(entry or {})}, *rest]))
        return config

    return write


@pytest.fixture
def checked(written: Callable[..., Path], tmp_path: Path) -> Said:
    """All that check says of it."""

    def say(entry: dict[str, Any] | None = None, **options: Any) -> str:
        reporter = Reporter(Console(record=True, width=600, file=StringIO()))
        assert check.check(load(str(written(entry, **options)), environ={}), reporter, tmp_path / "page.html")
        return reporter.console.export_text()

    return say


def test_a_size_that_the_model_does_not_know_is_told_before_training(
    checked: Said, written: Callable[..., Path]
) -> None:
    assert "WARNING" not in checked()
    strange = {"resolution": 1000, "resolution_type": "pixel_area"}
    said = checked(strange)
    (warning,) = (line for line in said.splitlines() if "WARNING" in line)
    assert "[set] 4 of 4 pictures get a size such as 1008x1008: the model draws at 128 px and knows" in warning
    assert "costs about 62.0 times" in warning and "set resolution to 128" in warning
    assert "Training would start." in said
    session = open_session(
        load(str(written(strange)), environ={}), Reporter(Console(record=True, width=600, file=StringIO())), "look"
    )
    find_pictures(session)
    assert warning in session.reporter.console.export_text(), "training says the same"
    assert "WARNING: [set] 4 of 4 pictures get a size such as 32x32" in checked({"resolution": 32})


@settings(max_examples=60)
@given(
    edge=st.integers(64, 128),
    width=st.integers(50, 400),
    height=st.integers(50, 400),
)
def test_no_aspect_at_a_known_area_is_warned_of(edge: int, width: int, height: int) -> None:
    bucket = place(Size(width, height), PlacementRules(edge, alignment=16), 0).bucket
    assert knows(bucket, 128, 16)


@pytest.mark.parametrize("width", [128, 160, 170, 192])
def test_nor_is_a_photograph_whose_short_side_is_the_edge(width: int) -> None:
    bucket = place(Size(width, 128), PlacementRules(128, resolution_type="pixel", alignment=16), 0).bucket
    assert bucket.height == 128 and knows(bucket, 128, 16)


@pytest.mark.parametrize("size", [Size(256, 128), Size(176, 176), Size(48, 48), Size(1024, 1024)])
def test_other_areas_are(size: Size) -> None:
    assert not knows(size, 128, 16)


def test_fp16_on_a_cpu_is_told_and_promises_no_time(checked: Said) -> None:
    assert "on two CPU cores" in checked()
    said = checked(mixed_precision="fp16")
    assert "fp16 is slow on a CPU" in said and "set mixed_precision to no" in said
    assert "on two CPU cores" not in said and "How long a step takes is seen when the run begins" in said
    bf16 = checked(mixed_precision="bf16")
    assert "on two CPU cores" not in bf16 and "is slow" not in bf16, "it was as fast, and its time was not measured"
    assert translate_precision.slow_on(torch.device("cuda"), choose("fp16", False)) == []


@pytest.mark.parametrize("accumulation", [1, 2])
def test_steps_epochs_and_draws_come_to_the_same(checked: Said, accumulation: int) -> None:
    """4 pictures drawn 8 times each are 32 draws, and 33 with the one that fills the last of eleven batches of 3."""
    said = checked({"repeats": 7}, train_batch_size=3, max_train_steps=100, gradient_accumulation_steps=accumulation)
    found = re.search(
        r"([\d.]+) steps per epoch, 100 steps in all: ([\d.]+) epochs, each of (\d+) draws, (\d+) of", said
    )
    assert found, said
    steps, epochs, draws, filling = map(float, found.groups())
    assert (steps, draws, filling) == (11 / accumulation, 33, 1)
    assert epochs * draws == pytest.approx(100 * accumulation * 3, abs=0.05 * draws)
    assert f"is seen about {100 * accumulation * 3 // 4} times" in said


def test_epochs_that_differ_are_not_told_as_one(checked: Said) -> None:
    drawn = {"repeats": 7}
    ending = checked({**drawn, "end_epoch": 2}, train_batch_size=4, max_train_steps=10)
    assert "8 steps per epoch, 10 steps in all: 1.2 epochs, the first of 32 draws; each of 4 pictures" in ending
    ended = checked({**drawn, "end_epoch": 2}, train_batch_size=4, max_train_steps=100)
    assert "8 steps per epoch, 100 steps in all; WARNING: no dataset may be drawn in epoch 3" in ended
    anew = {"crop": True, "crop_style": "random", "crop_aspect": "square", "vae_cache_clear_each_epoch": True}
    assert "epochs, the first of 32 draws" in checked({**drawn, **anew}, train_batch_size=4, max_train_steps=10)
