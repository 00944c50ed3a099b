"""What is drawn, in which order and until when; which prompts there are; what fails and what is told of it."""

import json
from collections.abc import Callable
from contextlib import contextmanager
from fractions import Fraction
from io import StringIO
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import toy
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from rich.console import Console

from simpletuner.config.prompt_library import LIBRARY
from simpletuner.config.read import RunConfig, load
from simpletuner.data.sampler import Bucket, Drawing, Plan, Turn
from simpletuner.data.types import Size
from simpletuner.errors import ConfigError
from simpletuner.evaluation.grid import grid
from simpletuner.evaluation.history import over_time, thinned
from simpletuner.evaluation.pictures import ValidationSettings, groups, in_turn
from simpletuner.evaluation.scores import Judge, Reference
from simpletuner.evaluation.validation import Validator
from simpletuner.models.base import EncodedText
from simpletuner.reporting.metrics import MetricsFile
from simpletuner.reporting.progress import Reporter
from simpletuner.training import translate_memory
from simpletuner.training.interrupt import GivenUp
from simpletuner.training.interval import Interval
from simpletuner.training.judging import Judging
from simpletuner.training.loop import StepResult
from simpletuner.training.validating import Shown, ValidationPictures

Load = Callable[..., RunConfig]


class Pipeline:
    """Draws grey squares, in a second each; fails where ``fails`` says so. Keeps what it was asked for: (pictures, first seed)."""

    def __init__(self, fails: Callable[[int], Exception | None] = lambda count: None) -> None:
        self.transformer = toy.ToyTransformer()
        self.fails = fails
        self.calls: list[tuple[int, list[int]]] = []
        self.now = 0.0

    def clock(self) -> float:
        return self.now

    def __call__(self, prompt_embeds: torch.Tensor, generator: list[torch.Generator], **arguments: Any) -> Any:
        assert not self.transformer.training and arguments["negative_prompt_embeds"].shape == prompt_embeds.shape
        self.now += len(prompt_embeds)
        self.calls.append((len(prompt_embeds), [g.initial_seed() for g in generator]))
        if error := self.fails(len(prompt_embeds)):
            raise error
        size = (arguments["width"], arguments["height"])
        return type("Result", (), {"images": [Image.new("L", size, 80) for _ in generator]})


def validator(folder: Path, pipeline: Pipeline, nicknames: str = "abc", **changes: Any) -> Validator:
    values: dict[str, Any] = {"sizes": (Size(8, 8),), "images_per_prompt": 1, "seed": 5, **changes}
    prompts = tuple((nick, f"a {nick}") for nick in nicknames)
    chosen = ValidationSettings(prompts, "", 2.0, 1, **values)
    nothing = EncodedText(torch.zeros(1, 1, 1), torch.ones(1, 1))
    return Validator(
        pipeline, chosen, lambda *_: nothing, folder / "validation_images", torch.device("cpu"), clock=pipeline.clock
    )


class Run:
    """A run that only validates."""

    def __init__(self, folder: Path, validator: Validator, **changes: Any) -> None:
        self.folder, self.validator = folder, validator
        self.said = StringIO()
        self.metrics = MetricsFile(folder / "metrics.jsonl")
        values: dict[str, Any] = {"interval": Interval(1), "on_startup": True, "shown": Shown(), **changes}
        self.hook = ValidationPictures(
            **values,
            validator=validator,
            output_dir=folder,
            metrics=self.metrics,
            reporter=Reporter(Console(file=self.said, width=300)),
        )

    def steps(self, *steps: int) -> list[list[str]]:
        """What is drawn at each step, in the order of drawing."""
        drawn = []
        for step in steps:
            before = len(self.metrics.read("picture"))
            self.hook.on_step_end(StepResult(step, 1.0, 1.0, 1e-3, 0.1, 2))
            drawn.append([f"{p['nickname']}{p['index']}" for p in self.metrics.read("picture")[before:]])
        return drawn


def test_the_main_prompt_is_first_then_what_was_drawn_longest_ago(tmp_path: Path) -> None:
    pictures = validator(tmp_path, Pipeline(), images_per_prompt=2).expected(3)

    def order(last: dict[str, int]) -> str:
        ordered = in_turn(
            pictures, {p.key: last[f"{p.nickname}{p.index}"] for p in pictures if f"{p.nickname}{p.index}" in last}
        )
        return " ".join(f"{p.nickname}{p.index}" for p in ordered)

    assert order({}) == "a0 b0 c0 a1 b1 c1"
    assert order({"a0": 2, "b0": 2}) == "a0 c0 a1 b1 c1 b0"
    assert order({name: 2 for name in ("a0", "b0", "c0", "a1")}) == "a0 b1 c1 b0 c0 a1"


@settings(max_examples=25)
@given(st.integers(1, 4), st.lists(st.sampled_from("xyz"), max_size=12))
def test_groups_keep_order_and_are_alike(most: int, kinds: list[str]) -> None:
    found = list(groups(kinds, most, lambda kind: kind))  # type: ignore[type-var, arg-type]
    assert [kind for group in found for kind in group] == kinds
    assert all(len(set(group)) == 1 and len(group) <= most for group in found)


def test_a_time_budget_ends_a_validation_and_the_rest_is_first_next_time(tmp_path: Path) -> None:
    run = Run(tmp_path, validator(tmp_path, Pipeline(), "abcde", time_budget=3.0))
    assert run.steps(1, 2, 3) == [["a0", "b0", "c0"], ["a0", "d0", "e0"], ["a0", "b0", "c0"]]
    assert "left 2 pictures for the next time, first of all then: d, e" in run.said.getvalue()
    other = Run(tmp_path, validator(tmp_path, Pipeline(), "abcde", time_budget=3.0))
    other.hook.on_start(3)  # resumed: the metrics know what was drawn
    assert other.steps(4) == [["a0", "d0", "e0"]]
    assert Run(tmp_path, validator(tmp_path, Pipeline(), "abcde", time_budget=0.1)).steps(5) == [["a0"]]


def test_a_run_that_is_to_stop_leaves_the_rest_and_scores_nothing(tmp_path: Path) -> None:
    """What says whether to stop is one for both, as in a session."""
    pipeline, most, ema = Pipeline(), 2, toy.trainee(ema=True).ema

    def stopping() -> bool:
        return len(pipeline.calls) >= most

    def go_on() -> None:
        if stopping():
            raise GivenUp

    run = Run(tmp_path, validator(tmp_path, pipeline, "abcd"), shown=Shown(ema), stop=stopping)
    judge = Judge(lambda: Reference.gather([("training.png", torch.zeros(3, 8, 8))], 1))
    run.hook.judging = Judging(judge, run.metrics, run.hook.reporter, go_on)
    assert run.steps(1) == [["a0", "b0"]] and run.metrics.read("score") == []
    said = " ".join(run.said.getvalue().split())
    assert "step 1: 4 pictures left undrawn, as the run is to stop; the next validation begins with them" in said
    assert said.count("the pictures are not scored") == 1, "of pictures that were not drawn there is nothing to say"
    assert "time_budget" not in said and run.steps(2) == [[]], "asked before the first as well"
    pipeline.calls.clear()
    assert run.steps(3) == [["a0", "c0"]] and run.metrics.read("score") == []
    most = 99
    run.steps(4)
    assert {(line["step"], line["label"]) for line in run.metrics.read("score")} == {(4, ""), (4, "ema")}


def test_both_kinds_of_weights_share_the_time_and_draw_the_same(tmp_path: Path) -> None:
    shown = Shown(toy.trainee(ema=True).ema)
    run = Run(tmp_path, validator(tmp_path, Pipeline(), "abcde", time_budget=4.0), shown=shown)
    run.steps(1)
    assert [(p["nickname"], p["label"]) for p in run.metrics.read("picture")] == [
        ("a", ""), ("b", ""), ("a", "ema"), ("b", "ema"),
    ]  # fmt: skip


def test_a_sheet_that_cannot_be_written_does_not_end_the_run(tmp_path: Path) -> None:
    """Nor the base model's picture that is kept beside the later ones."""
    run = Run(tmp_path, validator(tmp_path, Pipeline()))
    for name in ("grids", "benchmarks"):
        (tmp_path / name).write_text("in the way")
    run.hook.on_start(0)
    assert run.steps(1) == [["a0", "b0", "c0"]]
    said = " ".join(run.said.getvalue().split())
    assert "step 0: the base model's picture could not be written: " in said
    assert "step 1: a sheet of the pictures could not be written: " in said and said.count("training goes on") >= 2


def test_one_prompt_that_fails_does_not_stop_the_others_and_is_told_once(tmp_path: Path) -> None:
    pipeline = Pipeline()
    pipeline.fails = lambda count: ValueError("a cat\nwalked over it") if len(pipeline.calls) in (2, 3) else None
    run = Run(tmp_path, validator(tmp_path, pipeline, "abcd"))
    pipeline.transformer.train()
    assert run.steps(1) == [["a0", "d0"]] and pipeline.transformer.training
    said = run.said.getvalue()
    assert said.count("WARNING") == 1 and "2 validation pictures could not be drawn ('b' at 8x8, …)" in said
    assert "ValueError: a cat. 2 were; training goes on." in said and "What to do" not in said


def test_a_picture_that_is_no_picture_is_told_and_not_written(tmp_path: Path) -> None:
    pipeline = Pipeline()

    def cast(count: int) -> None:  # as diffusers makes a picture of an array
        if len(pipeline.calls) == 2:
            np.full((1, 8, 8, 3), np.nan).round().astype("uint8")

    pipeline.fails = cast
    run = Run(tmp_path, validator(tmp_path, pipeline, "abc"))
    assert run.steps(1) == [["a0", "c0"]]
    assert (
        "1 validation picture could not be drawn ('b' at 8x8, …): its pixels are not numbers (NaN)"
        in run.said.getvalue()
    )


def test_a_group_without_room_is_drawn_one_by_one_and_says_what_to_lower(tmp_path: Path) -> None:
    def hidden(count: int) -> Exception | None:
        try:
            raise torch.OutOfMemoryError("CUDA out of memory")
        except torch.OutOfMemoryError as error:
            warning = UserWarning("Try to use VAE tiling for large images")
            warning.__context__ = error
            return warning

    pipeline = Pipeline(lambda count: torch.OutOfMemoryError("no room") if count > 1 else None)
    run = Run(tmp_path, validator(tmp_path, pipeline, "abc", batch_size=2))
    assert run.steps(1) == [["a0", "b0", "c0"]] and [count for count, _ in pipeline.calls] == [2, 1, 1, 1]
    pipeline.fails = hidden
    assert run.steps(2) == [[]]
    assert "What to do: lower validation_resolution or validation_batch_size" in run.said.getvalue()


def test_a_picture_without_room_is_decoded_in_less_from_then_on(tmp_path: Path) -> None:
    asked: list[bool] = []

    def smaller() -> bool:
        asked.append(not asked)
        return asked[-1]

    pipeline = Pipeline(lambda count: None if asked else torch.OutOfMemoryError("no room"))
    drawing = validator(tmp_path, pipeline, "ab")
    drawing._decode_smaller = smaller
    run = Run(tmp_path, drawing)
    assert run.steps(1, 2) == [["a0", "b0"], ["a0", "b0"]] and asked == [True]
    assert run.said.getvalue().count("overlapping tiles") == 1 and "WARNING" not in run.said.getvalue()
    pipeline.fails = lambda count: torch.OutOfMemoryError("no room")
    assert run.steps(3) == [[]] and asked == [True, False, False], "what does not help is told"
    said = run.said.getvalue()
    assert "What to do: lower" in said and said.count("overlapping tiles") == 1 and "set vae_enable_tiling" not in said


def test_tiles_that_do_not_help_are_told_when_a_picture_is_drawn_in_them(tmp_path: Path) -> None:
    pipeline = Pipeline(lambda count: torch.OutOfMemoryError("no room"))
    drawing = validator(tmp_path, pipeline, "a")
    tiled: list[bool] = []
    drawing._decode_smaller = lambda: not tiled and not tiled.append(True)
    run = Run(tmp_path, drawing)
    assert run.steps(1) == [[]] and tiled == [True] and "tiles" not in run.said.getvalue()
    pipeline.fails = lambda count: None
    assert run.steps(2, 3) == [["a0"], ["a0"]] and run.said.getvalue().count("step 2: memory was too short") == 1


def test_a_stop_between_two_kinds_of_weights_spoils_no_sheet(tmp_path: Path) -> None:
    pipeline = Pipeline()
    run = Run(
        tmp_path,
        validator(tmp_path, pipeline, "abc"),
        shown=Shown(toy.trainee(ema=True).ema),
        stop=lambda: len(pipeline.calls) >= 13,
        last=2,
    )
    run.hook.on_start(0)  # 3
    run.steps(1)  # 6
    both = tmp_path / "before_after.png"
    good = both.read_bytes()
    both.write_bytes(b"the good one")
    run.steps(2)  # live, and the first with EMA
    assert both.read_bytes() == b"the good one" and good
    sheets = [tmp_path / "validation_images" / f"step_{step}_grid.png" for step in (1, 2)]
    with Image.open(sheets[0]) as first, Image.open(sheets[1]) as second:
        assert (second.width, second.height) == (first.width, first.height - 168), "no row of EMA"
    said = " ".join(run.said.getvalue().split())
    assert "step 2: 2 pictures left undrawn, as the run is to stop; this was the last step" in said


def test_a_batch_has_the_seeds_of_its_pictures_and_one_size_and_strength(tmp_path: Path) -> None:
    pipeline = Pipeline()
    sizes = (Size(8, 8), Size(16, 8))
    drawing = validator(tmp_path, pipeline, "abc", batch_size=8, sizes=sizes, images_per_prompt=2, strengths={"b": 0.5})
    acting: list[float | None] = []

    @contextmanager
    def strength(own: float | None) -> Any:
        acting.append(own)
        yield

    result = drawing.render(drawing.expected(1), lambda *_: None, strength=strength)
    assert len(result.drawn) == 12 and acting == [None, None, 0.5, 0.5, None, None]
    assert pipeline.calls == [(2, [5, 6])] * 6
    for picture in result.drawn:
        with Image.open(picture.path) as written:
            assert written.size == tuple(picture.size)


def test_another_seed_for_each_validation(tmp_path: Path) -> None:
    same, other = (validator(tmp_path, Pipeline(), randomize=on, images_per_prompt=2) for on in (False, True))
    assert [p.seed for p in same.expected(3)] == [5, 6] * 3
    seeds = {step: [p.seed for p in other.expected(step)] for step in (0, 3, 4)}
    assert len({tuple(s) for s in seeds.values()}) == 3 and seeds[3][1] == seeds[3][0] + 1
    assert seeds[3] == [p.seed for p in other.expected(3, "ema")]


def test_lines_and_grids_are_kept_over_time(tmp_path: Path) -> None:
    shown = Shown(toy.trainee(ema=True).ema)
    run = Run(tmp_path, validator(tmp_path, Pipeline(), "a"), shown=shown)
    run.hook.on_start(0)
    run.steps(1, 2)
    lines = run.metrics.read("picture")
    assert lines[1].items() >= {
        "step": 1, "nickname": "a", "prompt": "a a", "width": 8, "height": 8, "index": 0, "label": "", "seed": 5,
        "path": "validation_images/step_1_a_0_8x8.png",
    }.items()  # fmt: skip
    assert all((tmp_path / line["path"]).is_file() for line in lines)
    assert (tmp_path / "benchmarks/base_model/a_0_8x8.png").read_bytes() == (tmp_path / lines[0]["path"]).read_bytes()
    with Image.open(tmp_path / "grids" / "a.png") as sheet:
        assert sheet.width > 3 * 160 and sheet.height > 2 * 160  # three columns; trained and EMA
    rows, captions = over_time(lines, tmp_path, until=1)
    assert captions == ["step 0", "step 1"] and [name for name, _ in rows] == ["trained", "EMA"]
    assert rows[1][1] == [tmp_path / lines[0]["path"], tmp_path / "validation_images/step_1_a_0_8x8_ema.png"]


def test_an_adapter_that_goes_on_from_a_file_has_base_pictures_of_its_own(tmp_path: Path) -> None:
    class Switch:
        acted: list[Any] = []  # noqa: RUF012 - one for the test

        @contextmanager
        def disabled(self) -> Any:
            self.acted.append("off")
            yield

        @contextmanager
        def scaled(self, strength: float) -> Any:
            self.acted.append(strength)
            yield

    adapter: Any = Switch()
    run = Run(
        tmp_path,
        validator(tmp_path, Pipeline(), "ab", strengths={"b": 0.25}),
        shown=Shown(adapter=adapter, strength=0.75, continued=True),
    )
    run.hook.on_start(0)
    assert adapter.acted == ["off", "off", 0.75, 0.25]
    run.steps(1)
    rows, captions = over_time([p for p in run.metrics.read("picture") if p["nickname"] == "b"], tmp_path, 1)
    assert (
        captions == ["base model", "step 0", "step 1"]
        and rows[0][1][0] == tmp_path / "benchmarks/base_model/b_0_8x8.png"
    )


@settings(max_examples=40)
@given(st.integers(0, 60), st.integers(2, 12))
def test_thinned_keeps_first_and_last_and_spreads_evenly(count: int, most: int) -> None:
    kept = thinned(range(count), most)
    assert len(kept) == min(count, most) and kept == sorted(set(kept))
    if count:
        assert kept[0] == 0 and kept[-1] == count - 1
    gaps = [b - a for a, b in pairwise(kept)]
    assert not gaps or max(gaps) - min(gaps) <= 1


def due(interval: Interval, steps: int = 12) -> list[int]:
    return [step for step in range(1, steps + 1) if interval.due(step)]


def test_intervals_of_steps_and_epochs() -> None:
    plan = Plan([Bucket("a", Size(64, 64), tuple(range(10)))], Drawing(2), 3)  # 5 micro-batches an epoch

    def epochs(of: Fraction, accumulation: int = 1, **more: Any) -> list[int]:
        return due(Interval(epochs=of, epochs_done=lambda step: plan.epochs_before(step * accumulation), **more))

    assert due(Interval(4)) == [4, 8, 12] and due(Interval()) == [] and due(Interval(0)) == []
    assert due(Interval(4, after_step=5)) == [8, 12]
    assert epochs(Fraction(1)) == [5, 10] and epochs(Fraction(2)) == [10]
    assert epochs(Fraction(1), accumulation=2) == [3, 5, 8, 10]  # the epoch ends within steps 3 and 8
    assert epochs(Fraction(1, 5)) == list(range(1, 13)) and epochs(Fraction(2, 5)) == [2, 4, 6, 8, 10, 12]
    assert epochs(Fraction(1), after_epoch=2) == [10] and epochs(Fraction(1), steps=4) == [4, 5, 8, 10, 12]


def test_epochs_of_different_length_are_counted(tmp_path: Path) -> None:
    buckets = [Bucket("a", Size(64, 64), (0, 1, 2, 3)), Bucket("b", Size(64, 64), (4, 5))]
    plan = Plan(buckets, Drawing(2, turns={"b": Turn(start_epoch=2)}), 3)  # 2 micro-batches, then 3
    done = [plan.epochs_before(position) for position in range(6)]
    assert done == [0, Fraction(1, 2), 1, Fraction(4, 3), Fraction(5, 3), 2]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Load:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pictures").mkdir()
    entries = [{"id": "a", "instance_data_dir": "pictures"}, {"id": "t", "dataset_type": "text_embeds"}]
    (tmp_path / "multidatabackend.json").write_text(json.dumps(entries))

    def make(library: object = None, **options: Any) -> RunConfig:
        if library is not None:
            (tmp_path / "library.json").write_text(json.dumps(library))
            options["user_prompt_library"] = "library.json"
        (tmp_path / "config.json").write_text(json.dumps({"max_train_steps": 5, **options}))
        return load(environ={})

    return make


def test_a_library_may_hold_objects(write: Load) -> None:
    library = {
        "plain": "a fox", "object": {"prompt": "a cat", "adapter_strength": 0.5}, "caption": {"caption": "a dog"},
        "tags": {"tags": ["red", "round"], "bbox_entities": []}, "text": {"tags": "blue, flat"},
    }  # fmt: skip
    config = write(library, validation_prompt="main", model_type="lora")
    assert dict(config.prompts) == {
        "validation": "main", "plain": "a fox", "object": "a cat", "caption": "a dog", "tags": "red, round",
        "text": "blue, flat",
    }  # fmt: skip
    assert config.prompts[0] == ("validation", "main") and config.strengths == {"object": 0.5}
    (told,) = [notice for notice in config.notices if "bbox_entities" in notice]
    assert "tags has bbox_entities, which means nothing here" in told
    (told,) = [notice for notice in write(library).notices if "adapter_strength" in notice and "bbox" not in notice]
    assert told == (
        "adapter_strength (object) changes nothing: it acts on an adapter, and this run (model_type full) has none"
    )


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ({"prompt": "a", "caption": "b"}, "which are the same"),
        ({"promt": "a"}, "a prompt must be text"),
        ({"prompt": "a", "adapter_strength": -1}, "0 or more"),
        ({"prompt": "a", "adapter_strength": True}, "0 or more"),
        ({"tags": ["a", 1]}, "must be text"),
        (7, "must be text"),
    ],
)
def test_what_is_wrong_in_a_library_is_said(write: Load, entry: object, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        write({"x": entry})


def test_the_built_in_library_and_the_empty_prompt(write: Load) -> None:
    config = write({"portrait": "mine"}, validation_prompt_library="default", validation_disable_unconditional=False)
    prompts = dict(config.prompts)
    assert len(LIBRARY) == 20 and set(prompts) == {*LIBRARY, "unconditional"} and prompts["portrait"] == "mine"
    assert config.prompts[-1] == ("unconditional", "") and len(set(LIBRARY.values())) == 20
    with pytest.raises(ConfigError, match="user_prompt_library"):
        write(validation_prompt_library="audio")


def test_what_changes_no_picture_is_told(write: Load) -> None:
    def told(**options: Any) -> str:
        return "\n".join(write(**options).notices)

    assert "validation_guidance, validation_seed: nothing is drawn" in told(validation_guidance=2, validation_seed=1)
    late = {"validation_prompt": "x", "validate_after_step": 3}
    assert "validate_after_step: it acts only with" in told(**late)
    assert "validate_after_step" not in told(**late, validation_epoch_interval=1)
    negative = {"validation_prompt": "x", "validation_negative_prompt": "blurry"}
    assert "above 1" in told(**negative, validation_guidance=1) and "above 1" not in told(**negative)


def test_the_samplers_that_can_draw_and_why_others_cannot(write: Load) -> None:
    assert write(validation_noise_scheduler="flow-match").options.validation.validation_noise_scheduler == "flow_match"
    with pytest.raises(ConfigError, match="no sampler of flow matching"):
        write(validation_noise_scheduler="ddim")
    for key in ("validation_guidance_rescale", "validation_using_datasets", "validation_torch_compile"):
        assert write(**{key: False})
        with pytest.raises(ConfigError, match=f"{key}.*refused"):
            write(**{key: True})


def test_the_memory_estimate_counts_pictures_that_are_decoded_together(write: Load) -> None:
    def decoding(**options: Any) -> int:
        config = write(validation_prompt="a fox", validation_resolution="64x64,128x64", **options)
        family = SimpleNamespace(vae_activations=lambda source, width, height, decode: width * height)
        subject: Any = SimpleNamespace(options=config.options, config=config, family=family, source=None)
        return translate_memory.decoding_bytes(subject)

    assert decoding() == 128 * 64 and decoding(validation_batch_size=3) == 3 * 128 * 64
    assert decoding(validation_batch_size=3, vae_enable_slicing=True) == 128 * 64
    assert decoding(validation_disable=True) == 0


def test_a_sheet_shows_what_was_drawn_at_its_step_and_no_empty_columns(tmp_path: Path) -> None:
    run = Run(tmp_path, validator(tmp_path, Pipeline(), "abcde", sizes=(Size(16, 8),), time_budget=2.0))
    run.hook.on_start(0)
    run.steps(1)  # a and c
    with Image.open(tmp_path / "validation_images" / "step_1_grid.png") as sheet:
        assert sheet.size == (110 + 2 * 168 + 8, 40 + 2 * 88), "rows are as tall as their pictures"


def test_what_is_no_picture_leaves_its_cell_empty(tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"no picture")
    out = grid(
        [("row", [tmp_path / "broken.png", None, tmp_path / "missing.png"])], ["a", "b", "c"], tmp_path / "grid.png"
    )
    with Image.open(out) as sheet:
        assert sheet.size == (110 + 3 * 168 + 8, 24 + 88)
