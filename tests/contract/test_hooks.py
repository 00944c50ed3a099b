"""What every hook must do: act between steps and leave training as it was. A new hook class is tested at once."""

import importlib
import inspect
import re
from collections.abc import Callable
from io import StringIO
from pathlib import Path

import pytest
import torch
import toy
from PIL import Image
from rich.console import Console

from simpletuner import training
from simpletuner.data.types import Size
from simpletuner.evaluation.eval_loss import EvalResult
from simpletuner.evaluation.pictures import ValidationSettings
from simpletuner.evaluation.validation import Validator
from simpletuner.models.base import EncodedText
from simpletuner.reporting.events import Event
from simpletuner.reporting.metrics import MetricsFile
from simpletuner.reporting.progress import Reporter
from simpletuner.reporting.series import smoothed
from simpletuner.reporting.stages import Stages
from simpletuner.training import control, held_out, hooks, optimizers, telling, validating
from simpletuner.training.interval import Interval
from simpletuner.training.loop import Hook, StepResult, train
from simpletuner.training.trainee import Trainee

MOMENTS = [name for name, _ in inspect.getmembers(Hook, inspect.isfunction) if name.startswith("on_")]
MODULES = [
    importlib.import_module(f"{training.__name__}.{file.stem}")
    for file in sorted(Path(next(iter(training.__path__))).glob("*.py"))
    if re.search(r"^    def on_", file.read_text(encoding="utf-8"), re.MULTILINE)
]
CLASSES = {
    name: cls
    for module in MODULES
    for name, cls in inspect.getmembers(module, inspect.isclass)
    if cls.__module__ == module.__name__ and cls is not Hook and any(attribute in MOMENTS for attribute in dir(cls))
}


class World:
    """A run for one hook to act on: a trainee after a step, whose average has left its weights, and what the hook did."""

    def __init__(self, folder: Path) -> None:
        self.trainee = toy.trainee(ema=True)
        self.trainee.optimizer = torch.optim.AdamW(self.trainee.parameters)
        train(self.trainee, toy.recipe(), iter([toy.batch(2)]), 0, 1, [], lambda: False)
        with torch.no_grad():
            for parameter in self.trainee.parameters:
                parameter.add_(1.0)
        self.trainee.transformer.train()
        self.folder = folder
        self.reporter = Reporter(Console(file=StringIO()))
        self.metrics = MetricsFile(folder / "metrics.jsonl")
        self.acted: list[int] = []  # steps at which the hook did its work
        self.now = 0

    def act(self) -> None:
        if self.now not in self.acted:
            self.acted.append(self.now)

    def save(self, step: int) -> Path:
        assert step == self.now
        self.act()
        return self.folder / f"checkpoint-{step}"

    def measure(self) -> EvalResult:
        self.act()
        return EvalResult(1.0, (1.0,), 2.0, 1)

    def draw(self, **_: object) -> object:
        self.act()
        return type("Result", (), {"images": [Image.new("RGB", (8, 8))]})

    def advance(self, count: int, note: str = "") -> None:
        self.act()


def checkpointing(world: World, interval: int | None) -> Hook:
    return hooks.Checkpointing(interval, 5, world.save, world.reporter)


def held_out_loss(world: World, interval: int | None) -> Hook:
    return held_out.HeldOutLoss(
        Interval(interval), world.measure, world.trainee, world.folder, world.metrics, world.reporter
    )


def progress(world: World, interval: int | None) -> Hook:
    return hooks.Progress(world, world.metrics, world.reporter)


def validation_pictures(world: World, interval: int | None) -> Hook:
    class Pipeline:
        transformer = world.trainee.transformer

        def __call__(self, **arguments: object) -> object:
            assert not self.transformer.training
            return world.draw(**arguments)

    settings = ValidationSettings((("a", "a fox"),), "", 1.0, 1, (Size(8, 8),), 1, 0)
    nothing = EncodedText(torch.zeros(1, 1, 1), torch.ones(1, 1))
    validator = Validator(Pipeline(), settings, lambda *_: nothing, world.folder / "pictures", torch.device("cpu"))
    shown = validating.Shown(world.trainee.ema, benchmark=False)
    return validating.ValidationPictures(
        Interval(interval), True, validator, shown, world.folder, world.metrics, world.reporter
    )


def requests(world: World, interval: int | None) -> Hook:
    """A checkpoint is asked for at every step."""
    folder = world.folder / "control"
    folder.mkdir(exist_ok=True)

    def save(step: int) -> None:
        world.save(step)
        (folder / "save").touch()

    (folder / "save").touch()
    return control.Control(folder, save, None, world.reporter, Stages())


def step_status(world: World, interval: int | None) -> Hook:
    class Noted(Stages):
        def emit(self, event: Event) -> None:
            world.act()

    return telling.StepStatus(Noted(), world.metrics, 5, 2.0, {})


Make = Callable[[World, int | None], Hook]
MAKERS: dict[str, Make] = {
    "Checkpointing": checkpointing,
    "Control": requests,
    "HeldOutLoss": held_out_loss,
    "Progress": progress,
    "StepStatus": step_status,
    "ValidationPictures": validation_pictures,
}
# The steps of a run of 5 at which each acts, with an interval of 2; those that know no interval act at every step.
WHOLE_RUN = {"Checkpointing": [2, 4, 5], "HeldOutLoss": [0, 2, 4, 5], "ValidationPictures": [0, 2, 4, 5]}
EVERY = {name: [1, 2, 3, 4, 5] for name in ("Control", "Progress", "StepStatus")}


@pytest.fixture(autouse=True)
def looking_all_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "LOOK_S", 0.0)


@pytest.fixture(params=list(CLASSES))
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def result(step: int, skipped: str | None = None) -> StepResult:
    return StepResult(step, 1.0, 1.0, 1e-3, 0.1, 2, skipped)


def drive(world: World, hook: Hook, start: int, last: int, finished: bool = True) -> list[int]:
    """A run from step ``start`` to ``last``; the steps at which the hook acted."""
    world.now = start
    hook.on_start(start)
    for step in range(start + 1, last + 1):
        world.now = step
        hook.acts_at(step)
        hook.on_step_end(result(step))
    hook.on_stop(last, finished)
    return world.acted


def test_every_hook_class_is_found_and_can_be_made() -> None:
    assert len(CLASSES) >= 6 and MOMENTS == ["on_start", "on_step_end", "on_stop"]
    assert set(CLASSES) == set(MAKERS), "a new hook needs a maker here"


def test_it_has_the_three_moments_of_the_protocol(name: str) -> None:
    for moment in MOMENTS:
        expected = inspect.signature(getattr(Hook, moment)).parameters
        assert list(inspect.signature(getattr(CLASSES[name], moment)).parameters) == list(expected)
    own = {attribute for attribute in dir(CLASSES[name]) if attribute.startswith("on_")}
    assert own - {"on_startup"} == set(MOMENTS), "a moment that nobody calls"


def test_it_acts_on_its_interval_and_once_at_the_end(name: str, tmp_path: Path) -> None:
    world = World(tmp_path)
    expected = {**WHOLE_RUN, **EVERY}[name]
    assert drive(world, MAKERS[name](world, 2), 0, 5) == expected


@pytest.mark.parametrize("interval", [None, 0])
def test_without_an_interval_it_acts_at_start_and_end_only(name: str, tmp_path: Path, interval: int | None) -> None:
    world = World(tmp_path)
    expected = {**{key: [s for s in steps if s in (0, 5)] for key, steps in WHOLE_RUN.items()}, **EVERY}[name]
    assert drive(world, MAKERS[name](world, interval), 0, 5) == expected


def test_resumed_it_does_not_repeat_its_start(name: str, tmp_path: Path) -> None:
    world = World(tmp_path)
    assert drive(world, MAKERS[name](world, None), 3, 3, finished=False) == []
    assert 3 not in drive(world, MAKERS[name](world, 2), 3, 5)


def test_stopped_on_the_way_only_the_checkpoint_is_made(name: str, tmp_path: Path) -> None:
    world = World(tmp_path)
    acted = drive(world, MAKERS[name](world, None), 2, 3, finished=False)
    assert acted == ([3] if name in ("Checkpointing", *EVERY) else [])


def test_a_skipped_step_is_a_step(name: str, tmp_path: Path) -> None:
    world = World(tmp_path)
    hook = MAKERS[name](world, 1)
    hook.on_start(4)
    world.now = 5
    hook.acts_at(5)
    hook.on_step_end(result(5, skipped="step 5 skipped: its loss is NaN"))
    hook.on_stop(5, True)
    assert world.acted == [5]


def state(trainee: Trainee) -> list[torch.Tensor]:
    """Everything that training goes on from."""
    assert trainee.ema is not None
    tensors, _ = optimizers.pack(trainee.optimizer)
    assert len(tensors) >= 2 * len(trainee.parameters), "moments of all weights"
    weights = [toy.flat(trainee.transformer), *(t.clone() for t in trainee.ema.shadow), torch.get_rng_state()]
    return weights + [tensors[key].clone() for key in sorted(tensors)]


def test_it_leaves_weights_ema_optimizer_mode_and_randomness_as_they_were(name: str, tmp_path: Path) -> None:
    world = World(tmp_path)
    before = state(world.trainee)
    drive(world, MAKERS[name](world, 1), 0, 3)
    after = state(world.trainee)
    assert len(before) == len(after) and all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert world.trainee.transformer.training


def test_training_with_it_gives_the_same_weights(name: str, tmp_path: Path) -> None:
    def weights(hooked: bool) -> torch.Tensor:
        world = World(tmp_path)
        told: list[Hook] = [Clock(world), MAKERS[name](world, 1)] if hooked else []
        train(world.trainee, toy.recipe(), iter([toy.batch(0, 1)] * 3), 0, 3, told, lambda: False)
        return toy.flat(world.trainee.transformer)

    assert torch.equal(weights(True), weights(False))


class Clock:
    """Keeps a world's time."""

    def __init__(self, world: World) -> None:
        self.world = world

    def on_start(self, step: int) -> None:
        self.world.now = step

    def acts_at(self, step: int) -> bool:
        return False

    def on_step_end(self, result: StepResult) -> None:
        self.world.now = result.step

    def on_stop(self, step: int, finished: bool) -> None:
        self.world.now = step


def test_what_it_works_with_may_fail_and_the_run_knows(name: str, tmp_path: Path) -> None:
    """An error is not swallowed, and the live weights are back in the model; a picture is worth less than the run."""
    world = World(tmp_path)
    world.reporter = Reporter(Console(file=(said := StringIO()), width=300))
    hook = MAKERS[name](world, 1)
    hook.on_start(1)
    before = toy.flat(world.trainee.transformer)

    def fail() -> None:
        raise OSError("the disk is full")

    world.act = fail  # type: ignore[method-assign]
    world.now = 2
    hook.acts_at(2)
    if name == "ValidationPictures":
        hook.on_step_end(result(2))
        assert said.getvalue().count("2 validation pictures could not be drawn") == 1
        assert "OSError: the disk is full" in said.getvalue() and not world.metrics.read("picture")
    else:
        with pytest.raises(OSError, match="the disk is full"):
            hook.on_step_end(result(2))
    assert torch.equal(toy.flat(world.trainee.transformer), before)


def test_the_smoothed_loss_goes_on_when_a_run_is_resumed(tmp_path: Path) -> None:
    class Notes:
        def __init__(self) -> None:
            self.said: list[str] = []

        def advance(self, count: int, note: str = "") -> None:
            self.said.append(note.partition("  ")[0])

    def trained(start: int, losses: list[float | None]) -> list[str]:
        bar = Notes()
        hook = hooks.Progress(bar, metrics, Reporter(Console(file=StringIO())))
        hook.on_start(start)
        for step, loss in enumerate(losses, start + 1):
            hook.on_step_end(StepResult(step, loss, 1.0, 1e-3, 0.1, 2, None))
        return bar.said

    losses: list[float | None] = [1.0, 0.2, None, 3.0, 0.5]
    metrics = MetricsFile(tmp_path / "whole.jsonl")
    whole = trained(0, losses)
    metrics = MetricsFile(tmp_path / "parts.jsonl")
    trained(0, [*losses[:3], 100.0])  # killed after step 4; the last checkpoint is that of step 3
    there = [loss for loss in losses if loss is not None]
    assert trained(3, losses[3:]) == whole[3:]
    assert whole[4] == f"smoothed loss {smoothed(there, hooks.SMOOTHING)[-1]:.3f}", "as in report and dashboard"
    assert trained(0, losses) == whole, "a fresh run in the same folder starts afresh"
