import csv
import json
import sys
import unicodedata
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from simpletuner.data.captions import CaptionRules, captions_for
from simpletuner.data.tables import TableSource, read_table
from simpletuner.errors import DataError

ROWS: list[dict[str, Any]] = [
    {"file": "a.png", "text": "an apple", "short": "x"},
    {"file": "deep\\b.jpg", "text": "", "short": "a boat"},
    {"file": unicodedata.normalize("NFC", "é.png"), "text": " an accent ", "short": None},
    {"file": "v1.5 cat.png", "text": "a cat", "short": None},
    {"file": "a.png", "text": "another apple", "short": None},
    {"file": "empty.png", "text": "", "short": None},
    {"file": "none.png", "text": None, "short": None},
]


def write(path: Path, rows: list[dict[str, Any]] = ROWS) -> Path:
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif path.suffix == ".jsonl":
        path.write_text("\n".join(json.dumps(row) for row in rows) + "\n\n", encoding="utf-8")
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows), encoding="utf-8")
    else:
        with open(path, "w", newline="", encoding="utf-8-sig") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    return path


def source(path: Path, **fields: Any) -> TableSource:
    return TableSource(path, "file", "text", **{"fallback_caption_column": "short", **fields})


@pytest.mark.parametrize("ending", [".parquet", ".jsonl", ".json", ".csv"])
@pytest.mark.parametrize("with_ending", [True, False])
def test_every_kind_of_table_gives_the_same_captions(tmp_path: Path, ending: str, with_ending: bool) -> None:
    table = read_table(source(write(tmp_path / f"t{ending}"), includes_extension=with_ending), tmp_path)
    rules = CaptionRules("parquet", table=table)
    assert captions_for(tmp_path / "a.png", rules) == ("an apple", "another apple")
    assert captions_for(tmp_path / "deep" / "b.jpg", rules) == ("a boat",)
    assert captions_for(tmp_path / unicodedata.normalize("NFD", "é.png"), rules) == ("an accent",)
    assert captions_for(tmp_path / "v1.5 cat.png", rules) == ("a cat",)
    with pytest.raises(DataError, match="no row"):
        captions_for(tmp_path / "b.jpg", rules)  # the row is that of deep/b.jpg
    assert captions_for(tmp_path / "empty.png", rules) == ("",), "an empty caption is a caption"
    if ending != ".csv":  # where there is a way to say that there is none
        with pytest.raises(DataError, match=r"it has no caption in t.* \(no text in text\)"):
            captions_for(tmp_path / "none.png", rules)
    if with_ending:
        with pytest.raises(DataError, match="no row"):
            captions_for(tmp_path / "a.webp", rules)


def test_names_without_ending_find_their_pictures(tmp_path: Path) -> None:
    write(tmp_path / "t.jsonl", [{"file": "sub/a", "text": "an apple"}, {"file": "v1.5 cat", "text": "a cat"}])
    table = read_table(TableSource(tmp_path / "t.jsonl", "file", "text"), tmp_path)
    assert table.captions(tmp_path / "sub" / "a.webp") == ("an apple",)
    assert table.captions(tmp_path / "v1.5 cat.png") == ("a cat",)


def test_lists_are_alternatives(tmp_path: Path) -> None:
    rows = [{"file": "a.png", "text": ["one", "", "two", "one"]}, {"file": "b.png", "text": ["three"]}]
    rows += [{"file": "c.png", "text": ["", " "]}, {"file": "d.png", "text": []}, {"file": "b.png", "text": [""]}]
    for ending in (".parquet", ".jsonl"):
        table = read_table(TableSource(write(tmp_path / f"t{ending}", rows), "file", "text"), tmp_path)
        assert table.captions(tmp_path / "a.png") == ("one", "two")
        assert table.captions(tmp_path / "b.png") == ("three",) and table.captions(tmp_path / "c.png") == ("",)
        assert table.rows["d"] == ()


@pytest.mark.parametrize("ending", [".parquet", ".jsonl", ".json", ".csv"])
def test_a_wrong_column_is_named_with_those_that_exist(tmp_path: Path, ending: str) -> None:
    path = write(tmp_path / f"t{ending}")
    with pytest.raises(DataError, match=r"no column 'caption'; it has .*file"):
        read_table(TableSource(path, "file", "caption"), tmp_path)


@pytest.mark.parametrize(
    ("name", "content"),
    [("t.jsonl", "{broken"), ("t.json", '{"a": 1}'), ("t.parquet", "no parquet"), ("t.jsonl", "[1]")],
)
def test_a_broken_table_is_one_sentence(tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match="cannot be read"):
        read_table(source(tmp_path / name), tmp_path)
    with pytest.raises(DataError, match="no table that can be read"):
        read_table(source(tmp_path / "t.xlsx"), tmp_path)


@pytest.mark.parametrize("ending", [".parquet", ".csv"])
@pytest.mark.parametrize("with_ending", [True, False])
def test_names_that_are_no_picture_are_told_as_they_are_written(tmp_path: Path, ending: str, with_ending: bool) -> None:
    table = read_table(source(write(tmp_path / f"t{ending}"), includes_extension=with_ending), tmp_path)
    here = [tmp_path / name for name in ("a.png", unicodedata.normalize("NFD", "é.png"), "none.png", "b.jpg")]
    assert table.without_picture(here) == ["deep\\b.jpg", "v1.5 cat.png", "empty.png"]
    assert ("a.png" in table.without_picture([tmp_path / "a.webp"])) is with_ending


@pytest.mark.parametrize("ending", [".parquet", ".jsonl", ".json", ".csv"])
def test_a_missing_table_is_told_before_what_reading_it_needs(
    tmp_path: Path, ending: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)  # as where it is not installed
    path = tmp_path / f"nope{ending}"
    with pytest.raises(DataError) as missing:
        read_table(source(path), tmp_path)
    assert str(missing.value) == f"{path} is no table of captions: it does not exist. Make it, or correct its path."
    path.mkdir()
    with pytest.raises(DataError, match="it is no file"):
        read_table(source(path), tmp_path)
