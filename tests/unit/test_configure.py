"""`simpletuner configure`: what is proposed, guarded and written; pure parts by themselves."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Callable
from dataclasses import replace
from itertools import zip_longest
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simpletuner.cli.configuring import content, drafting, fresh, pictures, writing
from simpletuner.cli.configuring.answers import Answers, answers
from simpletuner.cli.configuring.estimates import Model, budget, lines, load_from, subject
from simpletuner.cli.configuring.pictures import Pictures, Seen
from simpletuner.cli.configuring.proposal import (
    SETTINGS,
    SHARE,
    Machine,
    Proposal,
    Rung,
    Shape,
    captions,
    ladder,
    problems,
    propose,
    validation_share,
)
from simpletuner.config.catalogue import FLAVOURS
from simpletuner.config.own_output import holds_a_run
from simpletuner.config.read import RunConfig
from simpletuner.data.sampler import Bucket, Drawing, shortfalls
from simpletuner.data.types import Size
from simpletuner.errors import ConfigError, DataError, TunerError
from simpletuner.models.base import LoadSource
from simpletuner.models.families import FAMILIES
from simpletuner.models.sana import published
from simpletuner.training import memory_ways
from simpletuner.training.memory_choice import Choice
from simpletuner.training.memory_estimate import GIB
from simpletuner.training.translate_memory import Subject

ROOT = Path(__file__).resolve().parents[2]
SANA = Shape(1024, 32)
ALL = frozenset({"torchao", "bitsandbytes"})


def folder_of(*sizes: tuple[int, int], captions: int | tuple[str, ...] = 0, name: str = "{}") -> Pictures:
    """Pictures of these sizes; the first of them with so many captions, or with these."""
    texts = captions if isinstance(captions, tuple) else tuple(f"caption {n}" for n in range(captions))
    each = zip_longest(sizes, texts, fillvalue="")
    usable = [Seen(Path(f"{name.format(n)}.png"), Size(*size), text) for n, (size, text) in enumerate(each)]
    return Pictures(Path("datasets/my-fox"), tuple(usable))


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
    few = proposed(Answers(kind="subject", model="pocket"), folder_of(*[(128, 128)] * 11), Machine(0), shape=POCKET)
    assert few.choices["train_batch_size"].why == "as many as there are pictures; the preset has 16"
    assert [rung.method for rung in rungs].index("lora") == 1 + 4 * 3
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


@pytest.mark.parametrize(
    ("kind", "edge", "taught"),
    [
        ("style", 1024, (1024, 512)),
        ("subject", 1024, (1024, 512)),
        ("domain", 1024, (1024,)),
        ("style", 512, (512,)),  # the model does not know 256
        ("style", 1000, (1000,)),  # no bucket is made of 500
    ],
)
def test_one_decision_says_at_which_sizes_pictures_are_taught(kind: Any, edge: int, taught: tuple[int, ...]) -> None:
    said, found = Answers(kind=kind, resolution=edge), folder_of(*[(1000, 1000)] * 8)
    proposal = proposed(said, found, Machine(24.0))
    files = content.files(proposal, said, found, SANA, Path("config"))
    written = [entry["resolution"] for entry in files[content.DATASETS] if "resolution" in entry]
    assert proposal.edges == taught == tuple(written)
    why = proposal.choices["resolution"].why
    assert ("trained at 512 as well" in why) is (len(taught) == 2)


def test_no_size_is_lost_that_a_preset_has_no_dataset_for() -> None:
    said, found = Answers(kind="domain"), folder_of(*[(1000, 1000)] * 8)
    proposal = proposed(said, found, Machine(24.0))
    with pytest.raises(ValueError, match=r"1 datasets of pictures for the sizes \(1024, 512\)"):
        content.files(replace(proposal, edges=(1024, 512)), said, found, SANA, Path("config"))


def test_repeats_follow_the_datasets_that_are_written() -> None:
    said = Answers(kind="style", resolution=512, train_batch_size=8, model="sana1.0-1.6b-1024")
    found = folder_of(*[(836, 1000)] * 7, (884, 1000))
    assert min(found.buckets(512, 32).values()) == 8 and min(found.buckets(256, 32).values()) == 1
    proposal = proposed(said, found, Machine(24.0))
    assert proposal.repeats == 0, "one bucket of 512 px holds a batch; those of 256 px are nobody's"
    entries = content.files(proposal, said, found, SANA, Path("config"))[content.DATASETS]
    usual = content.preset("sana-style-lora", content.DATASETS)[0]["repeats"]
    assert [entry["repeats"] for entry in entries if "repeats" in entry] == [usual]


def test_what_it_takes_is_estimated_for_the_card_that_is_named(tmp_path: Path) -> None:
    flavour, folder = "sana1.0-600m-512", tmp_path / "model"
    said = Answers(kind="style", method="lora", model=flavour)
    found = replace(folder_of(*[(512, 512)] * 8), folder=tmp_path)
    published.write(flavour, folder)
    model = Model(str(folder), FAMILIES["sana"].peek(LoadSource(str(folder))))
    files = content.files(proposed(said, found, Machine(24.0), shape=model.shape), said, found, model.shape, tmp_path)
    asked = subject(load_from(files, tmp_path), model, found.sizes)
    for gib, told in ((24.0, "; 24 GiB are there"), (2.0, "at least: MORE than the 2 GiB that are there")):
        memory, time, disk = lines(asked, Machine(gib))
        assert memory.startswith("Memory: ") and memory.endswith(told)
        assert time.startswith("Time: ") and disk.startswith("Disk: about ")
    assert lines(asked, Machine(0.0))[0].startswith("Memory: on an NVIDIA card it would take ")


def test_a_run_without_memory_auto_is_estimated_as_it_is_set(tmp_path: Path) -> None:
    """Nothing is chosen for it, so no block is recomputed where the card is too small, either."""
    folder = tmp_path / "model"
    said = Answers(kind="style", method="lora", model="sana1.0-600m-512", train_batch_size=32)
    found = replace(folder_of(*[(512, 512)] * 32), folder=tmp_path)
    published.write("sana1.0-600m-512", folder)
    model = Model(str(folder), FAMILIES["sana"].peek(LoadSource(str(folder))))
    files = content.files(proposed(said, found, Machine(24.0), shape=model.shape), said, found, model.shape, tmp_path)

    def asked(**memory: Any) -> Subject:
        config = {key: value for key, value in files[content.CONFIG].items() if key != "memory"}
        return subject(load_from({**files, content.CONFIG: config | memory}, tmp_path), model, found.sizes)

    auto, as_set = asked(memory="auto"), asked(gradient_checkpointing=False)
    way = memory_ways.quickest(auto, budget(Machine(24.0)))
    most, least = (way.estimate(choice).peak / GIB for choice in (Choice(0, False, 4), way.smallest))
    assert most > 1.2 * least
    for gib, told in (
        (24.0, "; 24 GiB are there"),
        (most * 0.99, f": MORE than the {most * 0.99:g} GiB that are there"),
    ):
        memory = lines(as_set, Machine(gib))[0]
        assert memory.startswith(f"Memory: about {most:.1f} GiB") and memory.endswith(told) and "at least" not in memory
    small = lines(auto, Machine(most * 0.99))[0]
    assert "MORE" not in small and not small.startswith(f"Memory: about {most:.1f} GiB")


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
        ({"kind": "style", "what": "dog"}, "what = 'dog': only a subject is a kind of thing"),
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
    (folder / "cut.png").write_bytes((folder / "picture_1.png").read_bytes()[:-60])
    assert "cut.png: it cannot be decoded" in " ".join(pictures.saw(pictures.look(folder)))
    (folder / "cut.png").unlink()
    assert found.only_captioned().count == 3 and found.only_captioned().usable == found.usable[1:]
    assert not found.usable[0].caption and len(found.captions) == 3
    assert "4 pictures in" in said and "4 wide" in said and "broken.png" in said and "3 have a caption" in said
    assert found.strategy(subject=True) == "textfile" and found.edge == 78
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before
    for name in ("picture_1.txt", "picture_2.txt"):
        (folder / name).unlink()
    assert pictures.look(folder).strategy(subject=True) == "instanceprompt"
    with pytest.raises(DataError, match="it does not exist"):
        pictures.look(folder / "nothing")
    (folder.parent / "empty").mkdir()
    with pytest.raises(DataError, match="empty holds no pictures"):
        pictures.look(folder.parent / "empty")


@pytest.fixture
def pictures_in(pictures: Callable[..., Path]) -> Callable[..., Path]:
    return pictures


def test_names_that_say_something_are_captions() -> None:
    found = folder_of(*[(9, 9)] * 4, name="old fox asleep {}")
    assert found.strategy(subject=False) == "filename" and found.strategy(subject=True) == "instanceprompt"
    others = folder_of(*[(9, 9)] * 5, name="a fox {}")
    assert replace(found, usable=found.usable + others.usable).strategy(subject=False) == "instanceprompt"


def test_it_is_told_where_captions_come_from_and_which_are_not_read() -> None:
    four = [(9, 9)] * 4
    for found, entry, said in (
        (folder_of(*four, captions=2), "textfile", "the text files beside the pictures: at least half"),
        (folder_of(*four, name="old fox asleep {}"), "filename", "the names of the files"),
        (folder_of(*four, captions=1), "instanceprompt", "1 of 4 pictures have a caption file: fewer than half"),
    ):
        choice = captions(Answers(kind="subject" if entry == "instanceprompt" else "style"), found)
        assert choice.value == entry and said in choice.why
    assert captions(Answers(captions="textfile"), folder_of(*four, captions=1)).asked
    assert content.told({"caption_strategy": "instanceprompt", "instance_prompt": "a fox"}).startswith(
        "Captions: 'a fox'"
    )


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
    done, before = [], signal.getsignal(signal.SIGINT)  # in a background job SIGINT is ignored
    with pytest.raises(KeyboardInterrupt), writing.uninterrupted():
        signal.raise_signal(signal.SIGINT)
        done.append(1)
    assert done and signal.getsignal(signal.SIGINT) is before


POCKET = Shape(128, 16)
SNAPS = [(432, 336)] * 19


@pytest.mark.parametrize(("method", "expect"), [("full", "a rough likeness"), ("lora", "method full learns more")])
def test_the_pocket_gets_the_steps_that_photographs_need_and_says_what_to_expect(method: Any, expect: str) -> None:
    said, found = Answers(method=method), folder_of(*SNAPS)
    proposal = proposed(said, found, Machine(0), shape=POCKET)
    steps = proposal.choices["max_train_steps"]
    assert steps.value == 400 and expect in steps.why and "seen 337 times" in steps.why
    assert "trained at 64 as well" in proposal.choices["resolution"].why
    config = content.files(proposal, said, found, POCKET, Path("config"))[content.CONFIG]
    assert config["checkpoint_step_interval"] == 100 and config["validation_step_interval"] >= 100
    assert proposed(said, folder_of(*SNAPS[:6]), Machine(0), shape=POCKET).value("max_train_steps") == 400
    assert proposed(Answers(max_train_steps=60), found, Machine(0), shape=POCKET).value("max_train_steps") == 60
    domain = proposed(Answers(kind="domain"), found, Machine(0), shape=POCKET)
    assert "as well" not in domain.choices["resolution"].why


@pytest.mark.parametrize(
    ("words", "what", "kind", "named"),
    [
        ("sks dog", None, "dog", "sks dog"),
        ("sks pipo", None, "", "sks pipo"),
        ("pipo", "toy bird", "toy bird", "pipo"),
        (None, "owl", "owl", "sks owl"),
        (None, None, "", "my fox"),
        ("dog", None, "dog", "dog"),
    ],
)
def test_prompts_say_what_kind_of_thing_it_is_only_where_it_is_known(
    words: str | None, what: str | None, kind: str, named: str
) -> None:
    said, found = Answers(words=words, what=what), folder_of(*SNAPS, captions=4)
    assert content.kind_of_thing(said) == kind and content.words(said, found) == named
    proposal = proposed(said, found, Machine(0), shape=POCKET)
    library = content.prompts(proposal, said, found, named)
    assert ("of_its_kind" in library) == (kind not in ("", named)) and "own_caption" not in library
    if kind == "owl":
        assert library["of_its_kind"] == "a photo of an owl in a garden"


def test_a_caption_becomes_a_prompt_only_where_captions_are_read() -> None:
    said, found = Answers(captions="textfile"), folder_of(*SNAPS, captions=4).only_captioned()
    proposal = proposed(said, found, Machine(0), shape=POCKET)
    assert content.prompts(proposal, said, found, "sks dog") == {"own_caption": "caption 0"}
    files = content.files(proposal, said, found, POCKET, Path("config"))
    assert files[content.CONFIG]["validation_prompt"] == "caption 0", "none of them names the subject"
    told = folder_of(*SNAPS, captions=("My Fox asleep", "two foxes")).only_captioned()
    files = content.files(proposal, said, told, POCKET, Path("config"))
    assert files[content.CONFIG]["validation_prompt"] == "a photo of my fox"
    assert files[content.PROMPTS].keys() == {"close_up", "own_caption"}
    names = Answers(captions="filename", words="sks dog")
    made = content.files(proposed(names, found, Machine(0), shape=POCKET), names, found, POCKET, Path("config"))
    assert made[content.CONFIG]["validation_prompt"] == "0" and made[content.PROMPTS].keys() == {"of_its_kind"}
    style = Answers(kind="style", captions="textfile")
    assert not content.untold(proposed(style, found, Machine(0), shape=POCKET), style, found)


def test_a_folder_with_another_run_gets_a_fresh_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    there, usual = Path("config"), "output/my-fox-full"

    def drafted(folder: str = "my-fox", written: bool = False, **said: Any) -> tuple[Proposal, RunConfig]:
        """A proposal and how it is read; ``written`` puts its files into their place."""
        answered = Answers(words=said.pop("words", "sks dog"), **said)
        (Path("datasets") / folder).mkdir(parents=True, exist_ok=True)
        found = replace(folder_of(*SNAPS), folder=Path("datasets") / folder)
        proposal = proposed(answered, found, Machine(0), shape=POCKET)

        def made(proposal: Proposal) -> dict[str, Any]:
            return content.files(proposal, answered, found, POCKET, there)

        proposal = fresh.placed(proposal, load_from(made(proposal), tmp_path), there)
        if written:
            writing.write(writing.texts(made(proposal), there / content.CONFIG))
        return proposal, load_from(made(proposal), tmp_path)

    def train(config: RunConfig) -> None:
        """What a run leaves of its settings."""
        home = config.options.checkpoints.output_dir
        home.mkdir(parents=True, exist_ok=True)
        (home / "run.json").write_text("{}")
        (home / "config.resolved.json").write_text(json.dumps(config.raw))
        (home / "datasets.resolved.json").write_text(json.dumps(config.datasets.record()))

    def place(proposal: Proposal) -> str:
        return str(proposal.value("output_dir"))

    Path(usual).mkdir(parents=True)
    first, config = drafted(written=True)
    assert place(first) == usual and not holds_a_run(Path(usual)), "a page of check alone"
    train(config)
    longer, _ = drafted(max_train_steps=900)
    assert place(longer) == usual and "same folder of pictures: training goes on" in longer.choices["output_dir"].why
    other, config = drafted(words="sks cat")
    assert place(other) == f"{usual}-2" and "other settings or another folder" in other.choices["output_dir"].why
    train(config)
    assert place(drafted(words="sks cat")[0]) == f"{usual}-2", "its own run is found by its number"
    # Another folder's pictures are sent there by a person, but are not trained; nor does it count that they were written.
    into, config = drafted("cats", written=True, output_dir=Path(usual))
    assert place(into) == usual and "go on from its weights" in fresh.note(into, config)
    assert place(drafted("cats")[0]) == "output/cats-full"
    again, config = drafted(output_dir=Path(usual))
    assert not fresh.note(again, config) and not fresh.note(*drafted("cats"))


def test_what_is_drawn_is_told_and_a_guess_is_named() -> None:
    said, found = Answers(), folder_of(*SNAPS)
    files = content.files(proposed(said, found, Machine(0), shape=POCKET), said, found, POCKET, Path("config"))
    shown = drafting.pictured(files)
    assert shown["validation_prompt"].value == "a photo of my fox" and "2 prompts" in shown["validation_prompt"].why
    files[content.CONFIG].pop("validation_step_interval", None)
    assert drafting.pictured(files)["validation_step_interval"].why.endswith("the start and the end only")
    assert drafting.pictured({content.CONFIG: {"validation_disable": True}}) == {}
    guess = drafting._of_names(said, found)
    assert "name ('my fox') is a guess" in guess and 'words="sks toy"' in guess
    assert "what=toy" in drafting._of_names(Answers(words="sks pipo"), found)
    hint = drafting._of_names(Answers(words="sks pipo"), found, dialogue=True)
    assert "what=" not in hint and "`what` under Change something" in hint
    assert not drafting._of_names(Answers(words="sks dog"), found)
    assert not drafting._of_names(Answers(words="sks red teapot"), found)
    assert not drafting._of_names(Answers(kind="style"), found)


@pytest.mark.parametrize(
    ("captions", "answered", "said"),
    [
        (("two birds", "three"), {}, "that name: the first prompt is a caption."),
        (("a bird, " * 40,), {}, "that name: the first prompt is the beginning of a caption."),
        (("two birds",), {"validation_prompt": "my fox asleep"}, "that name: 'my fox asleep' shows nothing of what it"),
        (("two birds",), {"validation_prompt": "a hill"}, "that name."),
        (("two birds",), {"validation": False}, "that name."),
        (("My Fox asleep",), {}, ""),
    ],
)
def test_where_no_caption_says_the_name_it_is_told_what_the_first_prompt_is(
    captions: tuple[str, ...], answered: dict[str, Any], said: str
) -> None:
    answered_ = Answers(captions="textfile", **answered)
    found = folder_of(*SNAPS, captions=captions).only_captioned()
    proposal = proposed(answered_, found, Machine(0), shape=POCKET)
    config = content.files(proposal, answered_, found, POCKET, Path("config"))[content.CONFIG]
    told = drafting._untold(proposal, answered_, found, config)
    assert said in told and bool(said) == bool(told) and (said != "that name." or told.endswith(said))
    assert len(config.get("validation_prompt", "")) <= content._LONGEST
