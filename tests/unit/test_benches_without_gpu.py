"""Benches that measure a GPU say so where there is none, in one sentence and with status 2."""

import importlib
from pathlib import Path

import pytest
import torch

BENCH = Path(__file__).resolve().parents[2] / "bench"


@pytest.mark.parametrize("name", ["cache_build", "low_memory", "operations", "step", "train_1p6b"])
def test_one_sentence(name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.syspath_prepend(str(BENCH))
    monkeypatch.syspath_prepend(str(BENCH.parent / "tools"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr("sys.argv", [f"{name}.py"])
    bench = importlib.import_module(name)
    with pytest.raises(SystemExit) as stopped:
        raise SystemExit(bench.main())
    assert stopped.value.code == 2
    (said,) = capsys.readouterr().out.splitlines()
    assert "NVIDIA GPU" in said and "What to do: " in said
