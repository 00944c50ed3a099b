"""What the pages read: growing files, figures, pictures and the state of a run."""

import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from written_run import draw, picture_line, step_line, write_run

from simpletuner.reporting.json_lines import JsonLines
from simpletuner.reporting.masking import DOTS, masked
from simpletuner.reporting.metrics import MetricsFile
from simpletuner.reporting.run_folder import RunFolder, alive, confined
from simpletuner.reporting.series import MOST_POINTS, Series, overfitting, smoothed, thinned


def test_a_half_written_line_waits_for_its_end(tmp_path: Path) -> None:
    path = tmp_path / "lines"
    followed = JsonLines(path)
    assert followed.poll() == (False, [])
    path.write_text('{"a": 1}\n{"a": ')
    assert followed.poll() == (False, [{"a": 1}])
    assert followed.poll() == (False, [])
    with open(path, "a") as file:
        file.write('2}\nno json\n[1]\n{"a": 3}\n')
    assert followed.poll() == (False, [{"a": 2}, {"a": 3}])


@pytest.mark.parametrize("text", ['{"b": 1}\n', '{"b": 1, "more": "than there was before in this file"}\n{"b": 2}\n'])
def test_a_file_written_anew_is_read_from_its_front(tmp_path: Path, text: str) -> None:
    path = tmp_path / "lines"
    path.write_text('{"a": 1}\n{"a": 2}\n')
    followed = JsonLines(path)
    followed.poll()
    path.write_text(text)
    anew, lines = followed.poll()
    assert anew
    assert lines[0]["b"] == 1


def test_a_step_trained_twice_counts_once() -> None:
    series = Series()
    for step in (1, 2, 3, 4):
        series.add({"kind": "step", **step_line(step, float(step))})
    series.add({"kind": "eval", "step": 4, "loss": 1.0})
    before = series.generation
    series.add({"kind": "step", **step_line(3, 33.0)})
    assert list(series.steps) == [1, 2, 3]
    assert list(series.columns["loss"]) == [1.0, 2.0, 33.0]
    assert series.evals == []
    assert series.generation > before


def test_only_time_in_which_the_run_was_running_counts() -> None:
    """Two sittings with a night between them; the second trains a step again, draws, and its clock is put back once."""
    series = Series()
    lines = [("start", 0, 100.0), ("picture", 0, 103.0), ("step", 1, 104.0), ("step", 2, 105.0), ("start", 1, 9000.0),
             ("step", 2, 9001.5), ("step", 3, 9001.0), ("picture", 3, 9004.0)]  # fmt: skip
    for kind, step, moment in lines:
        series.add({"kind": kind, "step": step, "time": moment})
    assert series.running_s == 5 + 1.5 + 3
    series.clear()
    assert series.running_s == 0
    series.add({"kind": "step", "step": 1, "time": None})
    assert series.running_s == 0


def test_odd_lines_are_left_alone() -> None:
    series = Series()
    for line in ({}, {"kind": "step"}, {"kind": "step", "step": "1"}, {"kind": "step", "step": True}, {"step": 2**70}):
        series.add(line)
    series.add({"kind": "step", "step": 1, "loss": None, "seconds": 0, "samples": "x"})
    told = series.since(0, {})
    assert told["count"] == 1
    assert told["columns"]["loss"] == [None]
    assert json.loads(json.dumps(told, allow_nan=False)) == told


def test_many_points_are_thinned_and_increments_are_whole() -> None:
    series = Series()
    for step in range(1, MOST_POINTS + 5001):
        series.add({"kind": "step", **step_line(step, 9.0 if step == 7777 else 1.0)})
    whole = series.since(0, {})
    assert len(whole["columns"]["step"]) <= MOST_POINTS
    assert max(whole["columns"]["loss"]) == 9.0, "a spike must stay"
    assert series.since(MOST_POINTS + 4990, {})["columns"]["step"] == list(
        range(MOST_POINTS + 4991, MOST_POINTS + 5001)
    )


@settings(max_examples=30, deadline=None)
@given(st.lists(st.one_of(st.floats(-10, 10), st.just(math.nan)), min_size=1, max_size=300), st.integers(4, 60))
def test_thinning_keeps_ends_and_extremes(values: list[float], most: int) -> None:
    chosen = thinned(np.asarray(values), most)
    assert len(chosen) <= max(most, 4)
    assert chosen[0] == 0
    assert chosen[-1] == len(values) - 1
    assert list(chosen) == sorted(set(chosen))
    known = [v for v in values if not math.isnan(v)]
    if known and len(values) > most:
        kept = [values[i] for i in chosen if not math.isnan(values[i])]
        assert (min(kept), max(kept)) == (min(known), max(known))


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(-5, 5), min_size=1, max_size=50), st.floats(0, 0.99))
def test_smoothing_stays_between_the_values(values: list[float], keep: float) -> None:
    out = smoothed(values, keep)
    assert out[0] == pytest.approx(values[0])
    assert all(min(values) - 1e-9 <= v <= max(values) + 1e-9 for v in out)


def test_overfitting_is_what_the_run_wrote_down_last(tmp_path: Path) -> None:
    folder = RunFolder(write_run(tmp_path / "run"))
    folder.refresh()
    told = overfitting(folder.series.evals)
    assert told is not None and (told["low"], told["held_out"]) == (10, [0.8, 1.0])
    assert folder.state()["best"] == {"checkpoint": "checkpoint-15", "step": 15, "held_out_loss": 0.9}
    rising = [{"kind": "eval", "step": i, "loss": i} for i in range(9)]
    assert overfitting(rising) is None, "pages have no rule of their own"
    assert overfitting([{"kind": "eval", "step": 9, "overfitting": told}, {"kind": "eval_live", "step": 9}]) == told
    for damaged in (3, {}, {"low": 3}, {**told, "training": [1]}, {**told, "held_out": [1, "x"]}):
        assert overfitting([{"kind": "eval", "step": 9, "overfitting": damaged}]) is None


def columns(run: Path) -> dict[str, int]:
    folder = RunFolder(run)
    folder.refresh()
    return {shot.path: shot.column for shot in folder.shots()}


def test_the_base_models_pictures_are_known_as_such(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    kept = run / "benchmarks" / "base_model" / "fox_0_64x64.png"
    kept.parent.mkdir(parents=True)
    first = run / "validation_images" / "step_0_fox_0_64x64.png"
    shutil.copy(first, kept)
    told = columns(run)
    name, copy = "validation_images/step_0_fox_0_64x64.png", "benchmarks/base_model/fox_0_64x64.png"
    assert told[name] == -1 and copy not in told, "a copy of what is shown"
    first.unlink()
    told = columns(run)
    assert told[copy] == -1 and name not in told


def test_where_an_adapter_was_given_step_0_is_not_the_base_model(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    name, base = "validation_images/step_0_fox_0_64x64.png", "benchmarks/base_model/fox_0_64x64.png"
    (run / base).parent.mkdir(parents=True)
    shutil.copy(run / name, run / base)
    MetricsFile(run / "metrics.jsonl").write("picture", picture_line(0, "fox", "a fox", base) | {"label": "base"})
    told = columns(run)
    assert told[name] == 0 and told[base] == -1


def test_pictures_are_known_by_lines_or_by_names(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    draw(run, "step_30_old_style_1_64x64_ema.png", (1, 2, 3))
    draw(run, "step_30_grid.png", (1, 2, 3))
    folder = RunFolder(run)
    folder.refresh()
    shots = {(s.nickname, s.step): s for s in folder.shots()}
    assert len(shots) == 7
    assert shots["fox", 20].prompt == "a fox"
    old = shots["old_style", 30]
    assert (old.label, old.index, old.width) == ("ema", 1, 64)


def test_states(tmp_path: Path) -> None:
    folder = RunFolder(write_run(tmp_path / "run", running=True))
    folder.refresh()
    state = folder.state()
    assert (state["status"], state["step"], state["total"]) == ("running", 30, 30)
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    for values, status in (
        ({"status": "running", "pid": ended.pid}, "died"),
        ({"status": "running", "pid": os.getpid(), "started": "2001-01-01T00:00:00+00:00"}, "died"),
        ({"status": "running", "pid": None, "host": "another"}, "running"),
        ({"status": "failed", "error": "no room at https://a:secret@host"}, "failed"),
    ):
        (folder.root / "run.json").write_text(json.dumps(values))
        assert folder.state()["status"] == status, values
    assert "secret" not in folder.state()["message"]
    (folder.root / "run.json").write_text("{half")
    assert folder.state()["status"] == "unknown"
    assert not alive(True)
    assert not alive("1")


def test_an_empty_folder_is_a_run_without_anything(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.refresh()
    assert folder.state()["status"] == "unknown"
    assert folder.shots() == folder.previews() == []
    assert folder.config() == folder.dataset() == {}


@pytest.mark.parametrize(
    "name", ["../secret.png", "/etc/hostname", "link.png", "a\0b", "", "..", "folder/link/secret.png"]
)
def test_nothing_outside_is_reached(tmp_path: Path, name: str) -> None:
    run = tmp_path / "run"
    (run / "folder").mkdir(parents=True)
    (tmp_path / "secret.png").write_bytes(b"x")
    (run / "link.png").symlink_to(tmp_path / "secret.png")
    (run / "folder" / "link").symlink_to(tmp_path)
    assert confined(run, name) is None


def test_secrets_are_dots() -> None:
    shown = masked(
        {
            "hub_token": "abc",
            "tokenizer_max_length": 300,
            "webhook_config": [{"webhook_url": "https://x/y", "auth_token": "t", "log_level": "info"}],
            "aws_secret_access_key": "k",
            "path": "s3://user:pass@host/x?X-Amz-Signature=abc&y=1",
            "words": "see hf_abcdefghijkl",
        }
    )
    assert shown["tokenizer_max_length"] == 300
    assert shown["hub_token"] == shown["aws_secret_access_key"] == DOTS
    assert shown["webhook_config"] == [{"webhook_url": DOTS, "auth_token": DOTS, "log_level": "info"}]
    assert shown["path"] == f"s3://{DOTS}@host/x?X-Amz-Signature={DOTS}&y=1"
    assert shown["words"] == f"see {DOTS}"
