"""`simpletuner check` says of a checkpoint and of the caches' folders what training does, and training before it loads."""

import json
import re
import shutil
from collections.abc import Callable
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from simpletuner.config.read import load
from simpletuner.errors import CacheError, ResumeError, TunerError
from simpletuner.reporting.progress import Reporter
from simpletuner.training.check import check
from simpletuner.training.run import train

LOKR = {"algo": "lokr", "multiplier": 1.0, "linear_dim": 4, "linear_alpha": 1.0, "factor": 4}
Say = Callable[..., str]


@pytest.fixture
def checked(pocket_run: Callable[..., Path]) -> Say:
    """Check in this process; returns what was said."""

    def run(**options: Any) -> str:
        said = StringIO()
        check(load(str(pocket_run(**options)), environ={}), Reporter(Console(file=said, width=600)))
        return said.getvalue()

    return run


@pytest.fixture
def trained(pocket_run: Callable[..., Path]) -> Callable[..., tuple[str, TunerError | None]]:
    """Train in this process; returns what was said, and the error that ended it."""

    def run(**options: Any) -> tuple[str, TunerError | None]:
        said = StringIO()
        try:
            train(load(str(pocket_run(**options)), environ={}), Reporter(Console(file=said, width=600)))
        except TunerError as error:
            return said.getvalue(), error
        return said.getvalue(), None

    return run


def test_another_adapter_and_what_is_left_are_told_before_anything_is_loaded(
    checked: Say, trained: Callable[..., tuple[str, TunerError | None]]
) -> None:
    run = {"model_type": "lora", "lora_rank": 4, "max_train_steps": 2}
    fresh = checked(**run)
    assert "2 steps in all" in fresh and "left" not in fresh and "Training would start." in fresh
    assert trained(**run)[1] is None
    for change in (
        {"lora_rank": 8},
        {"peft_lora_target_modules": ["to_q"]},
        {"lora_init_type": "pissa"},
        {"optimizer": "adamw_schedulefree"},
        {"lora_type": "lycoris", "lycoris_config": {**LOKR, "apply_preset": {"target_module": ["Attention"]}}},
    ):
        said, error = trained(**{**run, **change})
        assert isinstance(error, ResumeError) and "checkpoint-2 was trained with" in str(error)
        assert "Loading the model" not in said and "Loading /" not in said
        looked = checked(**{**run, **change})
        assert str(error) in looked and "Training would not start" in looked and "in all" not in looked
    assert "was trained with lora_rank 4, the configuration says 8" in checked(**{**run, "lora_rank": 8})
    whole = checked(model_type="full", max_train_steps=2, optimizer="torch-adamw")
    assert "was trained with model_type 'lora', the configuration says 'full'" in whole, (
        "what explains the rest is named"
    )
    assert checked(**run, peft_lora_target_modules=["to_x"]).count("matches no layer") == 1
    further = checked(**{**run, "max_train_steps": 6})
    assert "Training goes on from checkpoint-2: 2 of 6 steps done, 4 left" in further
    assert "Training would start." in further
    done = checked(**run)
    words = "Nothing left to train: the checkpoint is at step 2 and the run has 2 steps"
    assert words in done and words in trained(**run)[0]
    assert "Nothing would be trained" in done and "Training would start" not in done and "take about" not in done
    anew = checked(**{**run, "lora_rank": 8}, resume_from_checkpoint="no")
    assert "Training would start." in anew


@pytest.mark.parametrize("where", ["vae", "text"])
def test_a_cache_that_cannot_be_written_is_told_before_anything_is_loaded(
    checked: Say, trained: Callable[..., tuple[str, TunerError | None]], tmp_path: Path, where: str
) -> None:
    run = {"max_train_steps": 1}
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / where).write_text("a file in the way")
    said, error = trained(**run)
    assert isinstance(error, CacheError) and f"cannot write into {tmp_path / 'cache' / where}" in str(error)
    assert "Loading" not in said
    looked = checked(**run)
    assert str(error) in looked and "Training would not start" in looked


def test_a_complete_cache_may_be_read_only(
    checked: Say,
    trained: Callable[..., tuple[str, TunerError | None]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The system's answer for a read-only disk; for root no folder of a test is one."""
    from simpletuner.training import cache_places

    monkeypatch.setattr(cache_places.os, "access", lambda *_: False)
    _, error = trained(max_train_steps=1)
    assert isinstance(error, CacheError) and "0 of 4 pictures are cached" in str(error)
    assert "[set] cache_dir_vae" in str(error) and "cache_dir of the text embeds" in str(error)
    monkeypatch.undo()
    assert trained(max_train_steps=1)[1] is None
    monkeypatch.setattr(cache_places.os, "access", lambda *_: False)
    assert "cannot write into" not in checked(max_train_steps=2)
    assert trained(max_train_steps=2)[1] is None
    shutil.rmtree(next((tmp_path / "cache" / "text").iterdir()))
    assert "cache_dir of the text embeds: cannot write" in checked(max_train_steps=2)


def test_what_matches_nothing_in_this_model_is_told_as_training_tells_it(
    checked: Say, trained: Callable[..., tuple[str, TunerError | None]]
) -> None:
    preset = {"apply_preset": {"target_module": ["Attention", "FeedForward"]}}
    run = {"model_type": "lora", "lora_type": "lycoris", "max_train_steps": 1}
    words = "Note: lycoris_config, target_module: 'FeedForward' matches nothing in this model; in Sana it is called GLUMBConv"
    assert words in checked(**run, lycoris_config={**LOKR, **preset})
    assert words in trained(**run, lycoris_config={**LOKR, **preset})[0]
    nothing = {"apply_preset": {"target_module": ["FeedForward"]}}
    looked = checked(**run, lycoris_config={**LOKR, **nothing}, resume_from_checkpoint="no")
    assert "nothing in this model matches" in looked and "Training would not start" in looked


def test_a_schedule_made_longer_lifts_the_rate_and_that_is_told(
    checked: Say, trained: Callable[..., tuple[str, TunerError | None]], tmp_path: Path
) -> None:
    run = {"lr_scheduler": "polynomial", "learning_rate": 1e-4, "lr_warmup_steps": 0, "lr_power": 1.0}
    assert "learning rate goes from" not in trained(**run, max_train_steps=5)[0]
    longer = {**run, "max_train_steps": 7, "learning_rate": 2e-4}
    words = "the learning rate goes from 2e-05 in step 5 to 5.7e-05 in step 6"
    assert words in checked(**longer)
    state = tmp_path / "out" / "checkpoint-5" / "training_state.json"
    assert json.loads(state.read_text())["plan"]["schedule"]["total_steps"] == 5
    said = trained(**longer)[0]
    assert words in said and "spans 7 steps instead of 5" in said and "lr_scheduler to constant" in said
    steady = checked(**{**run, "max_train_steps": 9, "lr_scheduler": "constant", "learning_rate": 2.857e-5})
    assert "7 of 9 steps done" in steady and "learning rate goes from" not in steady


def test_how_often_a_picture_is_seen_is_told_by_dataset_where_it_differs(
    pocket_run: Callable[..., Path], pictures: Callable[..., Path], tmp_path: Path
) -> None:
    config = pocket_run(max_train_steps=60, train_batch_size=1)
    file = tmp_path / "config" / "multidatabackend.json"
    entries = json.loads(file.read_text())

    def say(*probabilities: float) -> str:
        sets = [
            {**entries[0], "id": f"set{n}", "instance_data_dir": str(pictures(f"set{n}")), "probability": p}
            | {"cache_dir_vae": str(tmp_path / "cache" / f"vae{n}"), "repeats": 29}
            for n, p in enumerate(probabilities)
        ]
        file.write_text(json.dumps([*sets, entries[1]]))
        said = StringIO()
        check(load(str(config), environ={}), Reporter(Console(file=said, width=600)))
        return said.getvalue()

    assert "each of 4 pictures is seen about 15 times" in say(1.0)
    said = say(0.6, 0.3, 0.1)
    found = re.search(r"each picture is seen about (\d+) times in \[set0\], (\d+) times? in \[set1\], (\d+)", said)
    assert found, said
    first, second, third = map(int, found.groups())
    assert first > second > third and abs(first + second + third - 15) <= 1
    assert [first, second, third] == pytest.approx([9, 4.5, 1.5], abs=2.1)


def test_pictures_that_are_all_others_and_held_out_ones_that_are_learned_are_told(
    checked: Say,
    trained: Callable[..., tuple[str, TunerError | None]],
    pictures: Callable[..., Path],
    tmp_path: Path,
) -> None:
    run = {"max_train_steps": 1, "train_batch_size": 1}
    first = trained(**run)[0]
    assert "Done: 1 step" in first and "WARNING" not in first
    entries = json.loads((tmp_path / "config" / "multidatabackend.json").read_text())
    entries[0]["instance_data_dir"] = str(pictures("others", size=(96, 96)))
    apart = pictures("apart", 3)
    (apart / "picture_2.png").write_bytes((tmp_path / "others" / "picture_0.png").read_bytes())
    own = {"id": "apart", "dataset_type": "eval", "instance_data_dir": str(apart), "cache_dir_vae": f"{apart}-cache"}
    file = tmp_path / "others.json"
    file.write_text(json.dumps([*entries, {**entries[0], **own}]))
    others = "WARNING: not one of the pictures that checkpoint-1 was trained on is among those of now: this run goes on"
    learned = "WARNING: [apart] 1 of 3 held-out pictures is trained on as well, in [set]: their"
    for said in (checked(**run, data_backend_config=str(file)), trained(**run, data_backend_config=str(file))[0]):
        assert said.index(learned) < said.index(others) < said.index("Nothing left to train")
    unmeasured = checked(**run, data_backend_config=str(file), eval_loss_disable=True)
    assert others in unmeasured and learned not in unmeasured
    assert "WARNING" not in checked(**run), "the pictures of before"
