"""The reference pages are what tools/make_docs.py would write now, and they name every key."""

from __future__ import annotations

import sys
from types import ModuleType

import pytest
from conftest import ROOT

from simpletuner.config.catalogue import ALIASES, CATALOGUE
from simpletuner.config.datasets import FIELD_CATALOGUE, ImageDataset, MaskDataset, TextEmbedsDataset
from simpletuner.config.options import section_of


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    sys.path.insert(0, str(ROOT / "tools"))
    try:
        import make_docs
    finally:
        sys.path.pop(0)
    return make_docs


@pytest.mark.parametrize("name", ["options.md", "dataloader.md", "migrating.md"])
def test_it_is_fresh(tool: ModuleType, name: str) -> None:
    assert set(tool.PAGES) >= {name}
    written = (ROOT / "docs" / name).read_text(encoding="utf-8")
    assert written == tool.PAGES[name](), f"docs/{name} is stale: run python tools/make_docs.py"


def test_every_option_has_its_row_with_its_default(tool: ModuleType) -> None:
    page = tool.options()
    assert all(page.count(f'<a id="{key}"></a>`{key}`') == 1 for key in section_of())
    for row in ("`train_batch_size` | whole number ≥ 1 | `4` |", "`use_ema` | `true`, `false` | `false` |",
                "`learning_rate` | number > 0 | `1e-05` |", "`validation_resolution` | `WxH`, several with commas | `1024x1024` |",
                "`init_lora` | path |  |", "`memory` | `as_set`, `auto` or number > 0 | `as_set` |"):  # fmt: skip
        assert row in page


def test_every_field_of_a_dataset_has_its_row(tool: ModuleType) -> None:
    page = tool.dataloader()
    for prefix, cls in (("image", ImageDataset), ("mask", MaskDataset), ("text", TextEmbedsDataset)):
        for key in cls.model_fields:
            if key not in tool.DERIVED and (prefix != "text" or key not in tool.S3):
                assert f'<a id="{prefix}-{key}"></a>`{key}`' in page
    assert not any(f"`{key}`" in page for key in tool.DERIVED)


def test_every_known_key_has_its_fate(tool: ModuleType) -> None:
    page = tool.migrating()
    for key in {*CATALOGUE, *ALIASES, *FIELD_CATALOGUE, *section_of()} - tool.departures.OURS:
        assert f"`{key}`" in page, key
    for fate in ("supported", "changed", "satisfied", "refused"):
        assert f"| {fate} |" in page


def test_departures_are_about_keys_that_there_are(tool: ModuleType) -> None:
    assert set(tool.departures.OURS) <= set(section_of())
    assert set(tool.departures.CHANGED) <= set(section_of()) - tool.departures.OURS
    assert set(tool.departures.CHANGED_FIELDS) <= set(ImageDataset.model_fields)
