"""What bench/ladder.py, recompute_chart.py and step_beside.py make of figures; the way of batches to the device."""

from __future__ import annotations

import importlib
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from simpletuner.data.types import Batch
from simpletuner.training import fast_path
from simpletuner.training.prefetch import on_device

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def beside(monkeypatch: pytest.MonkeyPatch) -> None:
    for folder in ("bench", "tools"):
        monkeypatch.syspath_prepend(str(ROOT / folder))


def test_a_rung_is_compared_with_what_was_said_before() -> None:
    ladder, real_run = importlib.import_module("ladder"), importlib.import_module("real_run")
    said = (
        "Memory: about 7.9 GiB of GPU memory (pictures 2.4, captions 6.4, steps 7.2, validation 7.9; half a GiB of each is "
        "the driver's; CUDA graphs take up to 3.4 more where they are free)"
    )
    found = real_run.ESTIMATE.search(said)
    assert found is not None and found.groups() == ("7.9", "7.2", "3.4")
    row = ladder.compared({"run": "8", "GiB encoding": 5.0, "GiB steps": 6.9, "GiB end": 7.0, "estimate": 7.9})
    assert row["peak GiB"] == 7.6 and row["ratio"] == 1.039
    line = ladder.table_row("8", ladder.RUNGS["8"], {**row, "it/s": 4.0, "pictures/s": 4.0, "seconds": 41.0})
    assert line == "| 8 | 1.6b | 1024 | 1 | 250 | 4.0 | 7.60 | 7.9 | 1.04 | 41 |"
    assert ladder.table_row("80", ladder.RUNGS["80"], {"failed": "out of memory"}).endswith("| 16 | out of memory |")
    assert list(ladder.RUNGS)[:5] == ["8", "80", "24", "16", "12"], "the most important first"


LADDER = {  # GiB that whole runs took, the driver's share included; bench/RESULTS.md
    "8": 7.35, "12": 11.54, "16": 14.91, "24": 17.53, "80": 43.77, "0.6b": 29.85, "512": 26.74, "2048": 40.39, "4.8b": 43.05,
}  # fmt: skip


@pytest.mark.parametrize("name", LADDER)
def test_every_rung_is_estimated_within_a_tenth(name: str, tmp_path: Path) -> None:
    ladder, memory_table = importlib.import_module("ladder"), importlib.import_module("memory_table")
    rung = ladder.RUNGS[name]
    memory_table.model(tmp_path / "model", rung.model)
    (tmp_path / "pictures").mkdir()
    options = {**rung.options, "vae_batch_size": 1, "mixed_precision": "bf16", "model_type": "full"}
    found = memory_table.estimated(memory_table.Row(name, options, rung.edge), tmp_path, rung.cap * 2**30)
    assert found.peak / 2**30 == pytest.approx(LADDER[name], rel=0.1) and found.peak <= rung.cap * 2**30
    assert found.aside == (name == "8"), "there the picture's decoder has no room beside the weights"


@pytest.mark.parametrize(("gib", "fits"), [(8.0, True), (7.6, True), (7.2, False)])
def test_full_rank_within_8_gib_is_found_by_memory_too(gib: float, fits: bool, tmp_path: Path) -> None:
    """The least there is may come near to the card; what is told to do about less was not done already."""
    from simpletuner.training import memory_ways

    memory_table = importlib.import_module("memory_table")
    memory_table.model(tmp_path / "model")
    (tmp_path / "pictures").mkdir()
    options = {**memory_table.RELEASED, "optimizer": "ao-adamw8bit", "mixed_precision": "bf16", "memory": gib}
    subject = memory_table.subject(memory_table.Row("8", options), tmp_path)
    way = memory_ways.quickest(subject, gib * 2**30)
    assert (way.choice is not None) is fits
    if way.choice:
        assert way.estimate(way.choice).aside and way.estimate(way.choice).peak <= gib * 2**30
    else:
        problem = memory_ways.nothing_fits(subject, way, gib * 2**30)
        assert problem.remedy == "use model_type lora"


def test_the_program_prints_what_the_ladder_reads() -> None:
    from simpletuner.training.memory_estimate import GIB, Estimate, describe

    real_run = importlib.import_module("real_run")
    phases = {"pictures": 4 * GIB, "captions": 6 * GIB, "steps": 12.3 * GIB}
    for graphs, told in ((3 * GIB, "3.0"), (0.0, None)):
        line = f"Memory: {describe(Estimate(phases, graphs))}"
        assert real_run.ESTIMATE.search(line).groups() == ("12.3", "12.3", told)


def test_the_chart_of_recomputation(tmp_path: Path) -> None:
    chart = importlib.import_module("recompute_chart")
    rows: list[dict[str, Any]] = [
        {"interval": i, "batch": b, "ms": 40.0 * b + i, "peak_gib": 20.0 - i} for i in (0, 3, 2) for b in (1, 8)
    ]
    rows.append({"interval": 1, "batch": 8, "failed": "out of memory"})
    lines = chart.table(rows).splitlines()
    assert lines[0] == "| recomputed | B=1: GiB | ms | B=8: GiB | ms |"
    assert lines[3] == "| every 3rd | 17.0 | 43 | 17.0 | 323 |" and lines[5] == "| every block | |  | |  |"
    chart.picture(rows, "a title", tmp_path / "chart.png")
    with Image.open(tmp_path / "chart.png") as made:
        assert made.width > 400 and len(made.convert("RGB").getcolors(1 << 20)) >= 4


def test_the_loader_fails_where_it_costs_too_much(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    step, beside = importlib.import_module("step"), importlib.import_module("step_beside")
    report = step.Report(tmp_path / "step.json", {"job": {"device": "cpu"}})
    job = {"device": "cpu", "size": "tiny", "batches": [1], "limit": 1, "work": "loader"}
    # A process that cannot start: no figure, and status 1.
    assert beside.loader({**job, "shape": None}, report, 0.0) == 1
    assert "failed" in json.loads((tmp_path / "step.json").read_text())["rows"][0]


@pytest.mark.parametrize(("size", "billions"), [("0.6b", 0.5917), ("1.6b", 1.6045), ("4.8b", 4.72)])
def test_other_sizes_of_random_models(size: str, billions: float) -> None:
    from diffusers import SanaTransformer2DModel

    random_sana = importlib.import_module("random_sana")
    with torch.device("meta"):
        model = SanaTransformer2DModel(**random_sana.transformer_config(size))
    count = sum(p.numel() for p in model.parameters())
    assert count / 1e9 == pytest.approx(billions, rel=2e-3)


def test_a_second_size_shares_the_other_parts(tmp_path: Path) -> None:
    random_sana = importlib.import_module("random_sana")
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
    random_sana.write(tmp_path / "first")
    random_sana.write(tmp_path / "second", beside=tmp_path / "first")
    shared = [part.name for part in (tmp_path / "second").iterdir() if part.is_symlink()]
    assert sorted(shared) == ["model_index.json", "scheduler", "text_encoder", "tokenizer", "vae"]


def test_on_a_cpu_batches_stay_what_they_are() -> None:
    batch = Batch(torch.zeros(1, 4, 2, 2), torch.zeros(1, 3, 5), torch.ones(1, 3), ("a",), "set", 0.0)
    assert list(on_device(iter([batch, batch]), torch.device("cpu"))) == [batch, batch]


def test_compiled_code_is_kept_where_caches_are(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("TRITON_CACHE_DIR", "/mine")
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "")
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR")
    fast_path.keep_compiled()
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == str(tmp_path / "simpletuner" / "inductor")
    assert os.environ["TRITON_CACHE_DIR"] == "/mine"
