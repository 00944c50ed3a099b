"""Benches that measure a GPU say so where there is none, in one sentence and with status 2."""

import importlib
from pathlib import Path

import pytest
import torch

BENCH = Path(__file__).resolve().parents[2] / "bench"


@pytest.mark.parametrize("name", ["cache_build", "listening", "low_memory", "operations", "step", "train_1p6b"])
def test_one_sentence(name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.syspath_prepend(str(BENCH))
    monkeypatch.syspath_prepend(str(BENCH.parent / "tools"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr("sys.argv", [f"{name}.py", *(["--gpu"] if name == "listening" else [])])
    bench = importlib.import_module(name)
    with pytest.raises(SystemExit) as stopped:
        raise SystemExit(bench.main())
    assert stopped.value.code == 2
    (said,) = capsys.readouterr().out.splitlines()
    assert "NVIDIA GPU" in said and "What to do: " in said


def test_what_being_watched_costs_counts_steady_steps_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCH))
    listening = importlib.import_module("listening")
    # 10 ms a step, each half as much of the processor; 1 s where something acts, and while warming up.
    slow = {1, 2, 3, 4, 5, 20, 40}
    notes, now, work = [], 0.0, 0.0
    for step in range(1, 51):
        notes.append((step, now, work))
        now += 1.0 if step in slow else 0.01
        work += 0.005
    found = listening.steady(notes, 20)
    assert (found["median"], found["mean"], found["processor"]) == pytest.approx((10, 10, 5))
    assert found["count"] == 50 - 2 - 1 - 5 - 5 - 5, "without the last, the first and those around 20 and 40"
