"""`simpletuner configure`: what is proposed, guarded and written; pure parts by themselves."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simpletuner.cli.configuring import content, pictures, writing
from simpletuner.cli.configuring.answers import Answers, answers
from simpletuner.cli.configuring.pictures import Pictures
from simpletuner.cli.configuring.proposal import (
    SETTINGS,
    SHARE,
    Machine,
    Proposal,
    Rung,
    Shape,
    ladder,
    problems,
    propose,
    validation_share,
)
from simpletuner.config.catalogue import FLAVOURS
from simpletuner.data.sampler import Bucket, Drawing, shortfalls
from simpletuner.data.types import Size
from simpletuner.errors import ConfigError, DataError, TunerError
from simpletuner.models.base import LoadSource
from simpletuner.models.families import FAMILIES
from simpletuner.models.sana import published

ROOT = Path(__file__).resolve().parents[2]
SANA = Shape(1024, 32)
ALL = frozenset({"torchao", "bitsandbytes"})


def folder_of(*sizes: tuple[int, int], captions: int = 0) -> Pictures:
    made = tuple(Size(*size) for size in sizes)
    paths = tuple(Path(f"{n}.png") for n in range(len(made)))
    return Pictures(Path("datasets/my-fox"), paths, made, (), tuple(f"caption {n}" for n in range(captions)), 0)


def proposed(said: Answers, found: Pictures, machine: Machine, fits: Any = None, shape: Shape = SANA) -> Proposal:
    return propose(said, found, machine, shape, content.preset, fits or (lambda proposal: True))


@settings(max_examples=40)
@given(
    st.lists(st.tuples(st.integers(300, 3000), st.integers(300, 3000)), min_size=1, max_size=25),
    st.sampled_from(["subject", "style", "domain"]),
    st.sampled_from([0.0, 6.0, 12.0, 24.0, 80.0]),
    st.integers(0, 25),
    st.sampled_from([None, 9]),
)
def test_what_is_proposed_breaks_no_guard_and_fills_every_bucket(
    sizes: list[tuple[int, int]], kind: Any, gib: float, captions: int, batch: int | None
) -> None:
    asked = min(batch, len(sizes)) if batch else None
    found, said = folder_of(*sizes, captions=min(captions, len(sizes))), Answers(kind=kind, train_batch_size=asked)
    shape = SANA if gib else Shape(128, 16)
    proposal = proposed(said, found, Machine(gib, packages=ALL), shape=shape)
    assert not list(problems(proposal, found, shape))
    files = content.files(proposal, said, found, shape, Path("config"))
    config, entries = files[content.CONFIG], files[content.DATASETS]
    assert config["max_train_steps"] * config["train_batch_size"] <= max(
        100 * config["train_batch_size"], 401 * len(sizes)
    )
    for entry in entries[:-1]:
        counts = found.buckets(entry["resolution"], shape.alignment)
        buckets = [Bucket("x", size, tuple(range(n)), entry["repeats"]) for size, n in counts.items()]
        assert not shortfalls(buckets, Drawing(config["train_batch_size"])) or config["allow_dataset_oversubscription"]
    drawn = len(files[content.PROMPTS]) + 1
    assert "validation_step_interval" not in config or content.share(config, entries, drawn, shape) <= SHARE
    assert all(choice.why for choice in proposal.choices.values()) and proposal.settings.keys() <= SETTINGS.keys()


def test_less_memory_is_found_rung_by_rung_until_only_an_adapter_is_left() -> None:
    rungs = list(ladder(Answers(kind="style"), "full", 4, Machine(24, packages=ALL)))
    assert rungs[0] == Rung("full", 4, {}, "of the preset")
    assert [rung.method for rung in rungs].index("lora") == 1 + 3 * 3
    assert {"optimizer": "ao-adamw8bit"}.items() <= rungs[9].settings.items()
    assert rungs[-1].settings["base_model_precision"] == "nf4-bnb"
    plain = list(ladder(Answers(kind="style", method="full", train_batch_size=8), "full", 4, Machine(24)))
    assert {rung.batch for rung in plain} == {8} and {rung.method for rung in plain} == {"full"}
    assert all("optimizer" not in rung.settings for rung in plain), "its package is not there"
    for rung in rungs:
        assert rung.settings.keys() - {"optimizer"} <= SETTINGS.keys()


def test_the_first_that_fits_is_taken_and_the_last_where_none_does() -> None:
    found = folder_of(*[(1024, 1024)] * 30)
    said = Answers(kind="style")

    def only_adapters(proposal: Proposal) -> bool:
        return proposal.value("method") == "lora" and proposal.value("train_batch_size") <= 2

    taken = proposed(said, found, Machine(24, packages=ALL), only_adapters)
    assert taken.fits and taken.preset == "sana-style-lora" and taken.value("train_batch_size") == 2
    assert "does not fit into 24 GiB" in taken.choices["method"].why
    none = proposed(said, found, Machine(24), lambda proposal: False)
    assert none.fits is False and none.value("train_batch_size") == 1


def test_what_a_person_said_stays() -> None:
    said = answers(
        {"kind": "style", "model": "sana1.0-600m-1024", "method": "lokr", "resolution": 512, "train_batch_size": 3,
         "mixed_precision": "no", "optimizer": "torch-adamw", "learning_rate": 3e-5, "max_train_steps": 7,
         "output_dir": "out", "card": "24 GiB", "validation_prompt": "a hill"}, "test",
    )  # fmt: skip
    found = folder_of(*[(700, 500)] * 9, captions=9)
    proposal = proposed(said, found, Machine(24.0))
    for name in ("model", "method", "resolution", "train_batch_size", "optimizer", "learning_rate", "max_train_steps"):
        assert proposal.value(name) == getattr(said, name) and proposal.choices[name].asked
    config = content.files(proposal, said, found, SANA, Path("here"))[content.CONFIG]
    assert config["lycoris_config"] == "here/lycoris_config.json" and config["model_flavour"] == "sana1.0-600m-1024"
    assert config["validation_prompt"] == "a hill" and config["lr_warmup_steps"] == 1
    silent = replace_validation(said)
    off = content.files(proposal, silent, found, SANA, Path("here"))[content.CONFIG]
    assert off["validation_disable"] and "validation_prompt" not in off


def replace_validation(said: Answers) -> Answers:
    return said.model_copy(update={"validation": False})


def test_guards() -> None:
    found = folder_of((1024, 1024), (1024, 1024))
    said = Answers(model="sana1.0-1.6b-1024", resolution=2048, train_batch_size=5)
    rows = {row[0]: row for row in problems(proposed(said, found, Machine(24.0)), found, SANA)}
    assert "sana1.0-1.6b-2048" in rows["resolution"][3] and "2 pictures" in rows["train_batch_size"][2]
    fine = said.model_copy(update={"resolution": 512, "train_batch_size": 2})
    assert not list(problems(proposed(fine, found, Machine(24.0)), found, SANA))


def test_how_long_validation_takes() -> None:
    config = {"train_batch_size": 1, "validation_num_inference_steps": 30, "validation_guidance": 4.5,
              "gradient_checkpointing": False}  # fmt: skip
    assert validation_share(config, 1, 100, 100, 40) == pytest.approx(2 * 30 * 2 / (3 * 40))
    often = {**config, "validation_step_interval": 10, "use_ema": True, "validation_guidance": 1}
    assert validation_share(often, 3, 100, 50, 40) == pytest.approx(5 * 3 * 2 * 30 * 0.5 / (3 * 40))


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"knd": "style"}, "did you mean 'kind'?"),
        ({"kind": "stile"}, "did you mean 'style'?"),
        ({"card": "big"}, "it must be a number"),
        ({"train_batch_size": 0}, "it must be 1 or more"),
        ({"optimizer": "adamw"}, "optimizer"),
    ],
)
def test_wrong_answers_are_named(values: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match="test: ") as caught:
        answers(values, "test")
    assert said in str(caught.value)


def test_a_folder_is_looked_at_and_left_alone(pictures_in: Callable[..., Path]) -> None:
    folder = pictures_in(count=4, size=(96, 64))
    (folder / "broken.png").write_bytes(b"no picture")
    (folder / "picture_0.txt").unlink()
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    found = pictures.look(folder)
    said = " ".join(pictures.saw(found))
    assert "4 pictures in" in said and "4 wide" in said and "broken.png" in said and "3 have a caption" in said
    assert found.strategy(subject=True) == "textfile" and found.edge == 78
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before
    for name in ("picture_1.txt", "picture_2.txt"):
        (folder / name).unlink()
    assert pictures.look(folder).strategy(subject=True) == "instanceprompt"
    with pytest.raises(DataError, match="it does not exist"):
        pictures.look(folder / "nothing")
    (folder.parent / "empty").mkdir()
    with pytest.raises(DataError, match="no images detected"):
        pictures.look(folder.parent / "empty")


@pytest.fixture
def pictures_in(pictures: Callable[..., Path]) -> Callable[..., Path]:
    return pictures


def test_names_that_say_something_are_captions() -> None:
    found = replace(folder_of(*[(9, 9)] * 4), telling_names=3)
    assert found.strategy(subject=False) == "filename" and found.strategy(subject=True) == "instanceprompt"


def test_it_is_told_where_captions_come_from_and_which_are_not_read() -> None:
    four = [(9, 9)] * 4
    for found, entry, said in (
        (folder_of(*four, captions=3), {"caption_strategy": "textfile"}, "Captions: the text file beside each picture"),
        (folder_of(*four), {"caption_strategy": "filename"}, "Captions: the names of the files"),
        (
            folder_of(*four, captions=1),
            {"caption_strategy": "instanceprompt", "instance_prompt": "a photo of my fox"},
            "Captions: 'a photo of my fox' for every picture; 1 caption file is too few and not read",
        ),
    ):
        assert content.told(entry, found) == said


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_published_configurations_are_those_of_the_flavours(flavour: str, tmp_path: Path) -> None:
    sys.path.insert(0, str(ROOT / "tools"))
    from random_sana import transformer_config, vae_config

    facts = FAMILIES["sana"].peek(LoadSource(str(published.write(flavour, tmp_path / "m"))))
    assert facts.native_resolution == int(flavour.rpartition("-")[2]) and facts.stride == 32
    ours = published.transformer(flavour)
    size = {"1.6b": "1.6b", "600m": "0.6b", "4.8b": "4.8b"}[flavour.split("-")[1]]
    theirs = transformer_config(size) | {"sample_size": facts.native_resolution // 32}
    for key in theirs.keys() - {"interpolation_scale", "qk_norm"}:
        assert ours[key] == theirs[key], key
    vae = json.loads((tmp_path / "m" / "vae" / "config.json").read_text())
    assert json.loads(json.dumps(vae_config(size))).items() <= vae.items()


def test_the_published_counts_of_weights(tmp_path: Path) -> None:
    for flavour, billions in (("sana1.0-1.6b-1024", 1.60), ("sana1.0-600m-512", 0.59), ("sana1.5-4.8b-1024", 4.7)):
        counted = FAMILIES["sana"].footprint(LoadSource(str(published.write(flavour, tmp_path / flavour))))
        assert counted.weights / 1e9 == pytest.approx(billions, rel=0.02)
    with pytest.raises(ValueError, match="no published flavour"):
        published.transformer("pocket")


def test_files_are_written_together_or_not_at_all(tmp_path: Path) -> None:
    config = tmp_path / "config" / "config.json"
    first = writing.texts({content.CONFIG: {"a": 1}, content.DATASETS: []}, config)
    assert not writing.difference(first)
    writing.write(first)
    assert json.loads(config.read_text()) == {"a": 1} and not writing.difference(first)
    (tmp_path / "config" / "lycoris_config.json").mkdir()
    second = writing.texts({content.CONFIG: {"a": 2}, content.DATASETS: [], content.LYCORIS: {}}, config)
    assert '+  "a": 2' in writing.difference(first | {config: second[config]})
    with pytest.raises(TunerError, match="cannot write"):
        writing.write(second)
    assert json.loads(config.read_text()) == {"a": 1}, "what was there stays"
    assert sorted(p.name for p in config.parent.iterdir()) == [
        "config.json", "lycoris_config.json", "multidatabackend.json"
    ]  # fmt: skip


def test_ctrl_c_waits_until_all_files_are_in_their_places() -> None:
    done = []
    with pytest.raises(KeyboardInterrupt), writing.uninterrupted():
        signal.raise_signal(signal.SIGINT)
        done.append(1)
    assert done and signal.getsignal(signal.SIGINT) is signal.default_int_handler
