"""bench/step.py in small: numerics, rows with ratios, figures beside; and a process whose time is up."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def test_numerics_then_a_table_and_the_same_figures_in_json(tmp_path: Path) -> None:
    figures = tmp_path / "step.json"
    options = ["--tiny", "--variants", "diffusers", "ours", "--batch", "1", "2", "--steps", "2", "--warm-up", "1"]
    command = [sys.executable, str(ROOT / "bench" / "step.py"), *options, "--json", str(figures)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(figures.read_text())
    (check,) = found["numerics"]
    assert check["variant"] == "ours" and check["ok"] and check["float32 worst gradient"] < 1e-5
    assert [(r["variant"], r["batch"], r["steps"]) for r in found["rows"]] == [
        *(("diffusers", 1, 2), ("diffusers", 2, 2), ("ours", 1, 2), ("ours", 2, 2))
    ]
    assert all(r["ms"] >= r["min"] > 0 and r["peak_gib"] > 0.1 for r in found["rows"])
    ours, theirs = ([r["loss"] for r in found["rows"] if r["variant"] == name] for name in ("ours", "diffusers"))
    assert ours == [pytest.approx(losses, rel=0.02) for losses in theirs], "the same data and noise"
    table = [line for line in done.stdout.splitlines() if line.startswith("| ")]
    assert len(table) == 5 and "1.00x" in table[1] and "Numerics right" in done.stdout


def test_rounds_are_put_together_by_the_median_of_their_ratios(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "bench"))
    step = importlib.import_module("step")
    report = step.Report(tmp_path / "step.json", {"job": {"device": "cpu"}})
    for theirs, ours in ((10.0, 8.0), (100.0, 50.0), (12.0, 40.0)):  # a busy machine: each round at another speed
        for variant, least in (("diffusers", theirs), ("ours", ours)):
            row = {"variant": variant, "batch": 2, "ms": 2 * least, "min": least, "pictures_per_s": 1000 / least}
            report.add("rows", {**row, "peak_gib": 0.5, "first_step_s": 1.0, "steps": 8})
    report.add("rows", {"variant": "ours-products", "failed": "not run"})
    step.conclude(report)
    said, found = capsys.readouterr().out, json.loads((tmp_path / "step.json").read_text())["together"]
    assert [(r["ms"], r["min"], r["speed"], r["steps"]) for r in found[:2]] == [(24, 10, 1, 24), (80, 8, 1.25, 24)]
    assert "transformer_forward plain) | 2 | 80.0 | 8.0 | 1.25x | 25.0" in said and "not run" in said
    assert "10.0 times the fastest step" in said


def test_a_process_whose_time_is_up_is_ended_and_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "bench"))
    step = importlib.import_module("step")
    job = {"work": "numerics", "size": "tiny", "device": "cpu", "variants": ["ours"], "seeds": 2}
    assert list(step.lines_of(job, 0.5)) == [{"failed": "ended after 0.5 s"}]
    assert list(step.lines_of({**job, "work": "rest"}, 60)) == [{"failed": "KeyError: 'rest'"}]
