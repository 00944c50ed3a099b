"""Requests by file between two steps: save, draw, stop; seen at once, done once, with figures read first."""

import json
import threading
from collections.abc import Callable, Sequence
from io import StringIO
from pathlib import Path

import pytest
import toy
from conftest import Command
from rich.console import Console

from simpletuner.reporting.progress import Reporter
from simpletuner.reporting.stages import Stages
from simpletuner.training import control
from simpletuner.training.control import Control, forget
from simpletuner.training.loop import BANDS, Hook, StepResult, by_sigma, train


class Run:
    """A toy run under a Control, in which requests are made at given steps."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, validates: bool = True) -> None:
        monkeypatch.setattr(control, "LOOK_S", 0.0)
        self.folder, self.did = folder, list[str]()
        self.output = StringIO()
        reporter = Reporter(Console(file=self.output))
        draw = (lambda step: self.did.append(f"drawn {step}")) if validates else None
        self.control = Control(folder, lambda step: self.did.append(f"saved {step}"), draw, reporter, Stages())

    def steps(self, requests: dict[int, list[str]], total: int = 6, before: Sequence[Hook] = ()) -> int:
        """Train, with hooks ``before`` the control; ``requests`` lie there when the step of that number begins."""

        def batches() -> object:
            for step in range(1, total + 1):
                for name in requests.get(step, []):
                    self.folder.mkdir(exist_ok=True)
                    (self.folder / name).touch()
                yield toy.batch(0)

        return train(
            toy.trainee(),
            toy.recipe(),
            batches(),
            0,
            total,
            [*before, self.control],
            lambda: self.control.stopping,  # type: ignore[arg-type]
        )


def test_requests_are_done_after_their_step_and_only_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(tmp_path / "control", monkeypatch)
    assert run.steps({2: ["save"], 4: ["validate", "save"], 5: ["stop"]}) == 5
    assert run.did == ["saved 2", "saved 4", "drawn 4"] and run.control.stopping
    assert list((tmp_path / "control").iterdir()) == []


def test_without_a_folder_or_a_request_nothing_happens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(tmp_path / "control", monkeypatch, validates=False)
    assert run.steps({}) == 6 and run.did == []
    assert run.steps({3: ["validate", "other"]}) == 6 and run.did == []
    assert "no validation pictures" in run.output.getvalue() and (tmp_path / "control" / "other").exists()


def test_the_folder_is_looked_at_a_few_times_a_second(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(tmp_path, monkeypatch)
    monkeypatch.setattr(control, "LOOK_S", 3600.0)
    looks = list[int]()
    monkeypatch.setattr(run.control, "_take", lambda: looks.append(1))
    assert run.steps({}) == 6 and looks == [1]


def test_figures_that_come_late_do_not_make_it_act_twice_or_early(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run(tmp_path, monkeypatch)
    (tmp_path / "save").touch()
    assert not run.control.on_start(0) and run.control.acts_at(3) and run.control.acts_at(3)
    for step in (1, 2, 3, 3):
        run.control.on_step_end(StepResult(step, 1.0, 1.0, 1e-3, 0.1, 2))
    assert run.did == ["saved 3"] and not run.control.acts_at(4)


def test_it_is_asked_where_another_hook_acts_at_every_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(tmp_path / "control", monkeypatch)

    class Busy(Control):
        def acts_at(self, step: int) -> bool:
            return True

    busy = Busy(tmp_path / "none", print, None, Reporter(Console(file=StringIO())), Stages())
    assert run.steps({2: ["save"], 3: ["stop"]}, before=[busy]) == 3 and run.did == ["saved 2"]


def test_what_was_asked_of_an_earlier_run_is_forgotten(tmp_path: Path) -> None:
    for name in control.REQUESTS:
        (tmp_path / name).touch()
    forget(tmp_path)
    forget(tmp_path / "none")
    assert list(tmp_path.iterdir()) == []


def test_losses_by_sigma_are_means_of_ordinary_samples() -> None:
    means, counts = by_sigma([1.0, 3.0, 5.0, 7.0, 9.0], [0.0, 0.19, 0.2, 1.0, 0.5], [False, False, False, False, True])
    assert means == (2.0, 5.0, None, None, 7.0) and counts == (2, 1, 0, 0, 1) and len(means) == BANDS


def test_a_step_tells_the_sigmas_its_losses_belong_to() -> None:
    trainee, told = toy.trainee(), list[StepResult]()
    hook = type("Ear", (Control,), {"on_step_end": lambda self, result: told.append(result)})
    ear = hook(Path("none"), print, None, Reporter(Console(file=StringIO())), Stages())
    train(trainee, toy.recipe(accumulation=2), iter([toy.batch(0, 1), toy.batch(2, 3)]), 0, 1, [ear], lambda: False)
    (result,) = told
    shown = [sigma for _, sigmas, _ in trainee.family.shown for sigma in sigmas.tolist()]  # type: ignore[attr-defined]
    counts = [sum(min(int(s * BANDS), BANDS - 1) == band for s in shown) for band in range(BANDS)]
    assert result.samples_by_sigma == tuple(counts) and sum(counts) == 4
    total = sum(mean * count for mean, count in zip(result.by_sigma, counts, strict=True) if mean is not None)
    assert total / 4 == pytest.approx(result.loss)


def test_a_real_run_stops_cleanly_and_goes_on(
    pocket_run: Callable[..., Path], simpletuner: Command, tmp_path: Path
) -> None:
    config, output = pocket_run(max_train_steps=100_000), tmp_path / "out"

    def ask() -> None:
        while not (output / "metrics.jsonl").is_file() and not done.wait(0.02):
            pass
        (output / "control").mkdir(exist_ok=True)
        (output / "control" / "save").touch()
        (output / "control" / "stop").touch()

    done = threading.Event()
    asking = threading.Thread(target=ask)
    asking.start()
    try:
        said = simpletuner("train", "--config", config)
    finally:
        done.set()
        asking.join()
    recorded = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    lines = [line for line in recorded if line["kind"] == "step"]
    step = lines[-1]["step"]
    assert said.returncode == 0 and f"Stopped at step {step} of 100000" in said.stdout
    assert (output / f"checkpoint-{step}").is_dir() and not (output / "pipeline").exists()
    assert json.loads((output / "run.json").read_text())["status"] == "interrupted"
    assert len(lines[-1]["by_sigma"]) == BANDS
