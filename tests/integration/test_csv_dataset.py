"""A CSV file of addresses, through the real command and a real web server that misbehaves."""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import Command
from web import Quiet, serving

from simpletuner.data.tables import read_table
from simpletuner.data.url_list import UrlList, fetch
from simpletuner.errors import DataError

asked: Counter[str] = Counter()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    """Serves the test's pictures; /flaky breaks off once, /cut always, /page is no picture, all else is 404."""
    asked.clear()

    class Handler(Quiet):
        def do_GET(self) -> None:
            asked[self.path] += 1
            kind, _, name = self.path.strip("/").partition("/")
            file = tmp_path / "pictures" / name.partition("?")[0]
            if kind == "page":
                data = b"<html>not found, politely</html>"
            elif not file.is_file():
                self.send_error(404)
                return
            else:
                data = file.read_bytes()
            broken = kind == "cut" or (kind == "flaky" and asked[self.path] == 1)
            self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data[: len(data) // 2] if broken else data)

    with serving(Handler) as address:
        yield address


def write(file: Path, rows: list[tuple[str, str]], header: tuple[str, str] = ("URL", "text")) -> None:
    with open(file, "w", encoding="utf-8-sig", newline="") as opened:
        csv.writer(opened).writerows([header, *rows])


def test_training_from_a_list_of_addresses(
    simpletuner: Command, pocket_run: Callable[..., Path], tmp_path: Path, server: str
) -> None:
    config = pocket_run(max_train_steps=1)
    rows = [
        (f"{server}/ok/picture_0.png", 'a "quoted", long\ncaption'),
        (f"{server}/flaky/picture_1.png", "second"),
        (f"{server}/ok/picture_1.png?size=1", "the same name elsewhere"),
        ("pictures/picture_2.png", ""),
        (f"{server}/ok/picture_0.png", "another caption"),
        (f"{server}/ok/gone.png", "gone"),
        (f"{server}/cut/picture_3.png", "cut"),
        (f"{server}/page/x.png", "a page"),
    ]
    write(tmp_path / "list.csv", rows)
    path = tmp_path / "config" / "multidatabackend.json"
    entries = json.loads(path.read_text())
    del entries[0]["instance_data_dir"]
    entries[0] |= {"type": "csv", "csv_file": "list.csv", "csv_caption_column": "text", "caption_strategy": "csv"}
    entries[0]["csv_cache_dir"] = "fetched"
    path.write_text(json.dumps(entries))
    said = simpletuner("train", "--config", config).stdout
    assert "4 files fetched" in said and "7 pictures found, 4 used" in said and "Done: 1 step." in said
    assert "gone.png" in said and "404" in said and "broke off" in said and "no picture that can be read" in said
    assert len(list((tmp_path / "fetched").glob("*.png"))) == 4
    assert asked["/flaky/picture_1.png"] == 2 and asked["/ok/gone.png"] == 1
    assert "1 picture has an empty caption: picture_2~" in said, "by its address, not by a sum of it"
    page = simpletuner("check", "--config", config)
    assert "0 files fetched, 4 were here" in page.stdout and asked["/ok/picture_0.png"] == 1
    shown = (tmp_path / "out" / "dataset.html").read_text()
    assert "another caption" in shown and "a &quot;quoted&quot;, long" in shown

    entries[0] |= {"csv_file": "missing.csv", "caption_strategy": "textfile"}
    path.write_text(json.dumps(entries))
    failed = simpletuner("train", "--config", config, check=False)
    assert (
        "csv_file" in failed.stderr and "no such file" in failed.stderr and "use csv or instanceprompt" in failed.stderr
    )


def test_edits_of_the_list(tmp_path: Path, pictures: Callable[..., Path]) -> None:
    pictures()
    folder = tmp_path / "kept"
    write(tmp_path / "list.csv", [(f"pictures/picture_{i}.png", f"c{i}") for i in range(3)], ("file_name", "caption"))
    source = UrlList(tmp_path / "list.csv")
    assert fetch(source, folder).fetched == 3
    write(tmp_path / "list.csv", [(f"pictures/picture_{i}.png", f"new{i}") for i in (1, 3)], ("file_name", "caption"))
    done = fetch(source, folder)
    assert (done.fetched, done.kept, done.removed) == (1, 1, 2)
    rows = [json.loads(line) for line in (folder / "captions.jsonl").read_text().splitlines()]
    assert [row["captions"] for row in rows] == [["new1"], ["new3"]]
    assert {row["file"] for row in rows} == {p.name for p in folder.glob("*.png")}


def test_files_are_named_by_their_addresses_and_a_picture_without_a_caption_by_its_own(
    tmp_path: Path, pictures: Callable[..., Path]
) -> None:
    (pictures() / "picture_1.png").rename(tmp_path / "pictures" / ".b c%?.png")
    (tmp_path / "list.csv").write_text("url,caption\npictures/picture_0.png\npictures/.b c%?.png,text\n")
    folder = tmp_path / "kept"
    source = UrlList(tmp_path / "list.csv")
    assert fetch(source, folder).fetched == 2
    second, first = sorted(folder.glob("*.png"))
    assert first.name.startswith("picture_0~") and second.name.startswith("b_c__~")
    table = read_table(source.table(folder), folder)
    assert table.captions(second) == ("text",)
    with pytest.raises(DataError, match=r"^pictures/picture_0.png has no caption in list.csv"):
        table.captions(first)


@pytest.mark.parametrize(
    ("header", "said"),
    [(("address", "caption"), "no column of addresses"), (("url", "words"), "no column 'caption' .*it has url, words")],
)
def test_a_missing_column_is_named(tmp_path: Path, header: tuple[str, str], said: str) -> None:
    write(tmp_path / "list.csv", [("a.png", "b")], header)
    with pytest.raises(DataError, match=said):
        fetch(UrlList(tmp_path / "list.csv"), tmp_path / "kept")
