"""Trackers: TensorBoard read back with its own reader; the others' lifecycle through a real tracker of accelerate."""

import importlib
import importlib.util
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, GeneralTracker
from conftest import Command, Python
from PIL import Image

from simpletuner.config import reporting_options, reporting_rules
from simpletuner.config.options import Options
from simpletuner.config.reporting_options import TRACKERS, ReportingOptions, installed
from simpletuner.config.reporting_rules import reporting_problems, reporting_without_effect
from simpletuner.reporting.curves import Curves
from simpletuner.reporting.events import Done, Event, Figures, PromptValidated, Status
from simpletuner.reporting.listeners import Listener, Listeners
from simpletuner.reporting.metrics import MetricsFile
from simpletuner.reporting.system import SystemFigures
from simpletuner.reporting.tensorboard import TensorBoard, png_size
from simpletuner.reporting.trackers import AccelerateTracker, Tracking, plain

STEP = {
    "loss": 0.5, "smoothed_loss": 0.6, "grad_norm": 1.5, "learning_rate": 1e-4, "seconds": 0.5, "samples": 4,
    "skipped": None, "by_sigma": [None, 0.25, None, 0.75, None],
}  # fmt: skip


def told(listener: Listener, events: list[Event]) -> list[str]:
    """Hand events over in the listener's own thread; what was said and lost."""
    said: list[str] = []
    listeners = Listeners()
    listeners.start([listener], said.append)
    for event in events:
        listeners.emit(event)
    return said + listeners.close(30)


def events(folder: Path, first: int = 1, last: int = 3) -> list[Event]:
    picture = folder / "a.png"
    Image.new("RGB", (8, 4), "red").save(picture)
    return [
        *(Figures(kind="step", values={**STEP, "step": step, "loss": step / 10}) for step in range(first, last + 1)),
        Figures(kind="eval", values={"step": last, "loss": 0.7, "by_sigma": [0.2, 0.5], "sigmas": [0.25, 0.9]}),
        Figures(kind="system", values={"step": last, "samples_seen": 4 * last, "gpu_memory_gib": 1.5}),
        PromptValidated(step=last, nickname="fox", prompt="a fox", pictures=(picture, folder / "gone.png")),
    ]


def read_back(folder: Path) -> Any:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    return EventAccumulator(str(folder)).Reload()


def test_tensorboard_shows_curves_and_the_very_picture(tmp_path: Path) -> None:
    assert told(TensorBoard(tmp_path / "logs" / "run"), events(tmp_path)) == []
    run = read_back(tmp_path / "logs" / "run")
    losses = [(point.step, pytest.approx(point.value)) for point in run.Scalars("train/loss")]
    assert losses == [(1, 0.1), (2, 0.2), (3, 0.3)]
    value = {name: run.Scalars(name)[-1].value for name in run.Tags()["scalars"]}
    assert value["train/pictures_per_second"] == 8 and value["held_out/loss"] == pytest.approx(0.7)
    assert value["loss_by_sigma/0.2-0.4"] == 0.25 and "loss_by_sigma/0.0-0.2" not in value
    assert value["held_out_by_sigma/0.9"] == 0.5 and value["system/samples_seen"] == 12
    (image,) = run.Images("validation/fox/0_8x4")
    assert image.step == 3 and image.encoded_image_string == (tmp_path / "a.png").read_bytes()


def test_a_resumed_run_replaces_the_steps_it_trains_anew(tmp_path: Path) -> None:
    for first, last in ((1, 6), (4, 5)):
        told(TensorBoard(tmp_path / "run"), events(tmp_path, first, last))
    assert [point.step for point in read_back(tmp_path / "run").Scalars("train/loss")] == [1, 2, 3, 4, 5]


def test_a_full_disk_costs_what_was_to_be_written_and_no_more(python: Python, tmp_path: Path) -> None:
    """Neither a record that ends the file for every reader, nor a traceback out of a thread of the library's own."""
    program = """
import resource, threading
from pathlib import Path
from simpletuner.reporting.events import Figures
from simpletuner.reporting.tensorboard import TensorBoard
board = TensorBoard(Path("run"))
for step in (1, 2, 3, 4):
    written = sum(path.stat().st_size for path in Path("run").glob("*"))
    room = written + 10 if step % 2 else resource.RLIM_INFINITY
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, resource.RLIM_INFINITY))
    try:
        board.handle(Figures(kind="eval", values={"step": step, "loss": 0.5}), threading.Event())
    except OSError:
        print(step, "did not fit")
board.finish()
"""
    done = python(program, folder=tmp_path)
    assert done.returncode == 0 and done.stdout == "1 did not fit\n3 did not fit\n" and not done.stderr, done.stderr
    assert [point.step for point in read_back(tmp_path / "run").Scalars("held_out/loss")] == [2, 4]


def test_nothing_is_written_where_nothing_happens(tmp_path: Path) -> None:
    assert told(TensorBoard(tmp_path / "run"), []) == [] and not (tmp_path / "run").exists()


def test_losses_by_sigma_are_smoothed_and_what_is_no_number_is_left_out() -> None:
    curves = Curves()
    first = curves.points("step", {**STEP, "by_sigma": [1.0, None], "loss": None})
    second = curves.points("step", {**STEP, "by_sigma": [2.0, 3.0], "skipped": "NaN"})
    assert "train/loss" not in first and first["loss_by_sigma/0.0-0.5"] == 1.0
    assert second["loss_by_sigma/0.0-0.5"] == pytest.approx(1.05) and second["loss_by_sigma/0.5-1.0"] == 3.0
    score = {"step": 1, "name": "clip", "nickname": "fox", "label": "ema", "value": 31.5}
    one = {**score, "index": 2, "width": 64, "height": 32, "nearest": "a.png"}
    assert curves.points("score", one) == {"score_by_prompt/clip/ema/fox/2_64x32": 31.5}
    mean = {"step": 1, "name": "clip", "nickname": None, "label": "", "mean": 30.0, "max": 31}
    assert curves.points("score", mean) == {"score/clip/mean": 30.0, "score/clip/max": 31.0}
    parts = curves.points("eval", {"step": 1, "loss": 0.5, "by_dataset": {"a": 0.25}})
    assert parts == {"held_out/loss": 0.5, "held_out/loss/a": 0.25}
    assert curves.points("other", {"step": 1, "x": 2, "y": True, "z": "word"}) == {"other/x": 2.0}


def tracker(folder: Path, kind: str, **more: Any) -> tuple[AccelerateTracker, list[str]]:
    said: list[str] = []
    return AccelerateTracker(Tracking(kind, "project", "run", folder, {"lr": 1e-4}, **more), said.append), said


class FolderTracker(GeneralTracker):
    """A tracker as accelerate knows them, which keeps everything in a folder."""

    name = "folder"
    requires_logging_directory = True
    main_process_only = False

    def __init__(self, project: str, folder: str) -> None:
        super().__init__()
        self.folder = Path(folder) / project

    def start(self) -> None:
        self.folder.mkdir(parents=True)

    @property
    def tracker(self) -> Path:
        return self.folder

    def _note(self, *words: object) -> None:
        with open(self.folder / "notes.jsonl", "a") as file:
            file.write(json.dumps(words) + "\n")

    def store_init_configuration(self, values: dict[str, Any]) -> None:
        self._note("config", values)

    def log(self, values: dict[str, Any], step: int | None = None, **_: Any) -> None:
        self._note(step, values)

    def log_images(self, values: dict[str, Any], step: int | None = None, **_: Any) -> None:
        self._note(step, {key: [image.size for image in images] for key, images in values.items()})

    def finish(self) -> None:
        self._note("finished")


def test_a_tracker_of_accelerate_is_started_told_and_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(LOGGER_TYPE_TO_CLASS, "folder", FolderTracker)
    made, _ = tracker(tmp_path / "logs", "folder")
    late = Figures(kind="system", values={"step": 1, "samples_seen": 4})
    assert told(made, [*events(tmp_path), late]) == []
    notes = [json.loads(line) for line in (tmp_path / "logs" / "project" / "notes.jsonl").read_text().splitlines()]
    assert notes[0] == ["config", {"lr": 1e-4}] and notes[-1] == ["finished"]
    assert [note[0] for note in notes[1:-1]] == [1, 2, 3, 3, 3, 3, 3], "they take no step twice, and none again"
    assert notes[3][1]["train/loss"] == pytest.approx(0.3) and notes[4][1]["held_out/loss"] == 0.7
    assert notes[6][1] == {"validation/fox/0 - 8x4": [[8, 4]]}


@pytest.mark.parametrize("kind", ["trackio", "comet_ml", "swanlab"])
def test_a_tracker_that_cannot_start_says_so_once(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, TRACKERS[kind][0], None)  # not to be imported, wherever it is installed
    made, _ = tracker(tmp_path, kind)
    said, lost = told(made, events(tmp_path))
    assert said.startswith(f"{kind}: ") and "training goes on" in said
    assert "6 events were not taken" in lost and "Training was not affected" in lost


def test_configurations_are_plain_for_trackers() -> None:
    values = {"a": 1, "b": None, "c": [1, 2], "d": True, "e": {"x": 1}}
    assert plain(values) == {"a": 1, "c": "[1, 2]", "d": True, "e": "{'x': 1}"}


def test_what_is_no_png_is_refused() -> None:
    with pytest.raises(ValueError, match="no PNG"):
        png_size(b"GIF89a" + b"x" * 40)


def test_system_figures_are_a_line_now_and_then(tmp_path: Path) -> None:
    metrics = MetricsFile(tmp_path / "metrics.jsonl")
    step = Status(status="running", state={"global_step": 2, "samples_seen": 8}, progress=Done("Training", 2, 9))
    assert told(SystemFigures(metrics.write, torch.device("cpu")), [Status(status="starting"), step, step]) == []
    (line,) = metrics.read("system")
    assert line["step"] == 2 and line["samples_seen"] == 8 and 0.05 < line["process_memory_peak_gib"] < 100


@pytest.mark.parametrize(
    ("given", "expected"),
    [("none", ()), (False, ()), ("tensorboard", ("tensorboard",)), ("tensorboard, wandb", ("tensorboard", "wandb")),
     (["wandb", "wandb"], ("wandb",))],
)  # fmt: skip
def test_trackers_by_name(given: Any, expected: tuple[str, ...]) -> None:
    assert ReportingOptions(report_to=given).trackers() == expected


def test_all_are_those_installed_and_a_mere_folder_is_no_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "a_tracker"  # where one has written runs before
    folder.mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    assert not installed("a_tracker")
    (folder / "__init__.py").touch()
    importlib.invalidate_caches()
    assert installed("a_tracker")
    monkeypatch.setattr(reporting_options, "installed", lambda package: package in ("tensorboard", "comet_ml"))
    assert ReportingOptions(report_to="all").trackers() == ("tensorboard", "comet_ml")


def test_a_missing_package_is_a_problem_with_the_line_that_brings_it(monkeypatch: pytest.MonkeyPatch) -> None:
    options = Options(reporting=ReportingOptions(report_to="tensorboard,comet_ml"))
    monkeypatch.setattr(reporting_rules, "installed", lambda package: package != "comet_ml")
    ((key, value, reason, remedy),) = reporting_problems(options)
    assert (key, value) == ("report_to", "comet_ml") and "needs the package" in reason and "[comet]" in remedy


def test_what_has_no_effect_is_told() -> None:
    quiet = Options(reporting=ReportingOptions(report_to="none", tracker_image_layout="table"))
    keys = ("tracker_project_name", "tracker_run_name", "logging_dir", "webhook_reporting_interval")
    lines = list(reporting_without_effect(quiet, dict.fromkeys(keys, "f")))
    assert len(lines) == 5 and all("no effect" in line for line in lines)
    busy = Options(reporting=ReportingOptions(report_to="wandb", tracker_image_layout="table", webhook_config={}))
    assert list(reporting_without_effect(busy, dict.fromkeys(keys, "f"))) == []


def test_a_run_writes_tensorboard_by_default(
    pocket_run: Callable[..., Path], simpletuner: Command, tmp_path: Path
) -> None:
    simpletuner("train", "--config", pocket_run(max_train_steps=2, tracker_run_name="first try"))
    run = read_back(tmp_path / "out" / "logs" / "first_try")
    recorded = [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in recorded if line["kind"] == "step"]
    assert [point.value for point in run.Scalars("train/loss")] == pytest.approx(losses)
    assert run.Scalars("system/samples_seen")[0].value == 2


def test_where_the_system_tells_no_memory_the_rest_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows has no ``resource``: the module is made again as it would be there."""
    spec = importlib.util.find_spec("simpletuner.reporting.system")
    assert spec and spec.loader
    there = importlib.util.module_from_spec(spec)
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setitem(sys.modules, "resource", None)
    spec.loader.exec_module(there)
    assert there.read(torch.device("cpu")) == {}
