"""What every caption strategy must do; a new one is tested at once."""

from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest

from simpletuner.config.datasets import ImageDataset
from simpletuner.config.options import DataOptions
from simpletuner.data.captions import CaptionRules, Shuffle, Strategy, captions_for
from simpletuner.data.tables import CaptionTable, TableSource

STRATEGIES: tuple[Strategy, ...] = get_args(Strategy)
# What each strategy makes of the picture below.
EXPECTED: dict[str, tuple[str, ...]] = {
    "filename": ("red house, trees",),
    "textfile": ("first line, here", "second line, there"),
    "instanceprompt": ("sks thing",),
    "parquet": ("from a table, first", "from a table, second"),
    "null": ("",),
}


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "red_house,_trees.png"
    path.with_suffix(".txt").write_text("first line, here\nsecond line, there\n", encoding="utf-8")
    return path


@pytest.fixture(params=STRATEGIES)
def strategy(request: pytest.FixtureRequest) -> Strategy:
    value: Strategy = request.param
    return value


@pytest.fixture
def rules(strategy: Strategy, picture: Path) -> CaptionRules:
    source = TableSource(Path("captions.csv"), "filename", "caption")
    table = CaptionTable(source, picture.parent, {picture.stem: EXPECTED["parquet"]}, {})
    return CaptionRules(strategy, ("sks thing",), table=table)


# Read as a table once the data set is a local folder: training/translate.py (tests/integration/test_hub_dataset.py).
TRANSLATED = {"huggingface", "csv", "webdataset"}
ONE_DATASET = {"csv", "webdataset"}  # names the files of one dataset, so it is no default for all


def test_the_options_offer_exactly_the_strategies() -> None:
    offered = {m: set(get_args(m.model_fields["caption_strategy"].annotation)) for m in (ImageDataset, DataOptions)}
    assert offered[ImageDataset] == {*STRATEGIES, *TRANSLATED}
    assert offered[DataOptions] == offered[ImageDataset] - ONE_DATASET


def test_every_strategy_is_expected_here() -> None:
    assert set(EXPECTED) == set(STRATEGIES), "a new strategy needs a line in EXPECTED"


def test_it_gives_distinct_alternatives_and_always_the_same(
    strategy: Strategy, rules: CaptionRules, picture: Path
) -> None:
    found = captions_for(picture, rules)
    assert found == EXPECTED[strategy] and captions_for(picture, rules) == found
    assert isinstance(found, tuple) and len(set(found)) == len(found) >= 1
    assert all(isinstance(caption, str) and caption == caption.strip() for caption in found)


def test_it_writes_nothing_beside_the_picture(rules: CaptionRules, picture: Path) -> None:
    before = sorted(picture.parent.iterdir())
    captions_for(picture, rules)
    assert sorted(picture.parent.iterdir()) == before


def test_the_instance_prompt_alone(rules: CaptionRules, picture: Path) -> None:
    assert captions_for(picture, replace(rules, only_instance_prompt=True)) == ("sks thing",)


def test_the_instance_prompt_before_each_caption(strategy: Strategy, rules: CaptionRules, picture: Path) -> None:
    found = captions_for(picture, replace(rules, prepend_instance_prompt=True))
    if strategy == "instanceprompt":
        assert found == ("sks thing",), "not twice"
    else:
        assert found == tuple(f"sks thing {caption}".strip() for caption in EXPECTED[strategy])


def test_what_the_filter_lists_is_in_no_caption(strategy: Strategy, rules: CaptionRules, picture: Path) -> None:
    found = captions_for(picture, replace(rules, remove=("line", "s/house/hut/", "table")))
    if strategy != "instanceprompt":  # the user's own prompt is taken as it is
        assert not any(word in caption for caption in found for word in ("line", "house", "table"))
    assert found and all(caption == caption.strip() for caption in found)


def test_shuffled_alternatives_keep_their_words(strategy: Strategy, rules: CaptionRules, picture: Path) -> None:
    found = captions_for(picture, replace(rules, shuffle=Shuffle(count=4)))
    assert set(EXPECTED[strategy]) <= set(found)
    assert {tuple(sorted(c.split(", "))) for c in found} == {tuple(sorted(c.split(", "))) for c in EXPECTED[strategy]}
