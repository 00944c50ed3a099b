"""The report: one file, nothing of which runs or asks for anything."""

import json
import math
import re
from collections.abc import Callable
from html.parser import HTMLParser
from io import StringIO
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from rich.console import Console
from written_run import HOSTILE, draw, step_line, write_run

from simpletuner.cli.report import report as command
from simpletuner.config.options import defaults
from simpletuner.config.read import load
from simpletuner.data.survey import Picture, Survey
from simpletuner.data.types import Size
from simpletuner.errors import TunerError
from simpletuner.reporting import dataset_sheet
from simpletuner.reporting.drawing import Line, chart, nice_ticks, short
from simpletuner.reporting.metrics import MetricsFile
from simpletuner.reporting.model_card import USAGE
from simpletuner.reporting.progress import Reporter
from simpletuner.reporting.report import page, what_was_trained, write
from simpletuner.reporting.run_folder import RunFolder, read_object
from simpletuner.reporting.settings import with_defaults
from simpletuner.training.finish import reported
from simpletuner.training.run import train
from simpletuner.training.session import open_session


class Tags(HTMLParser):
    """Names of all elements, and everything that could be fetched."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()
        self.addresses: list[str] = []
        self.handlers: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.add(tag)
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "action", "data")]
        self.handlers += [name for name, _ in attrs if name.startswith("on") or name == "style"]


def seen(text: str) -> Tags:
    tags = Tags()
    tags.feed(text)
    return tags


def test_a_report_that_was_named_is_written_whatever_comes_after(
    tmp_path: Path, pocket_run: Callable[..., Path]
) -> None:
    """A folder stands where the lines for using the model go: by then the report has been named."""
    out, said = tmp_path / "out", StringIO()
    (out / USAGE).mkdir(parents=True)
    config = load(str(pocket_run(max_train_steps=1, report_to="none")), environ={})
    with pytest.raises(TunerError, match=f"cannot write .*{USAGE}"):
        train(config, Reporter(Console(file=said, width=400)))
    (named,) = re.findall(r"^ +report +(\S+) \(curves", said.getvalue(), re.MULTILINE)
    assert named == str(out / "report.html")
    assert f"cannot write {out / USAGE}" in Path(named).read_text(encoding="utf-8"), "it says why the run failed"


def test_a_report_is_written_where_it_is_wanted_of_what_was_exported(
    tmp_path: Path, pocket_run: Callable[..., Path]
) -> None:
    for wanted, exported in ((True, False), (False, True), (True, True)):
        name = f"{wanted} {exported}"
        config = load(str(pocket_run(report=wanted, output_dir=str(tmp_path / name))), environ={})
        session = open_session(config, Reporter(Console(file=StringIO())), "look")
        with pytest.raises(ZeroDivisionError), reported(session):
            session.exported = exported
            raise ZeroDivisionError
        assert (tmp_path / name / "report.html").is_file() is (wanted and exported), name


def test_a_report_that_cannot_be_written_is_told_and_costs_nothing(
    tmp_path: Path, pocket_run: Callable[..., Path]
) -> None:
    said = StringIO()
    (tmp_path / "out" / "report.html").mkdir(parents=True)
    session = open_session(load(str(pocket_run()), environ={}), Reporter(Console(file=said, width=200)), "look")
    with reported(session):
        session.exported = True
    assert "The report could not be written: Is a directory; `simpletuner report` makes it." in said.getvalue()
    assert not list((tmp_path / "out").glob(".*")), "nothing half done is left behind"


def test_a_report_that_cannot_be_written_names_its_own_file(tmp_path: Path) -> None:
    root = write_run(tmp_path / "run")
    (root / "report.html").mkdir()
    before = sorted(root.iterdir())
    for words, named in (([], root / "report.html"), (["--out", str(root / "run.json" / "a.html")], root / "run.json")):
        with pytest.raises(TunerError) as refused:
            CliRunner().invoke(command, [str(root), *words], catch_exceptions=False, standalone_mode=False)
        assert str(refused.value).startswith(f"cannot write {named}: ") and "--out" in str(refused.value)
    assert sorted(root.iterdir()) == before


def test_hostile_words_are_text(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", words=HOSTILE)
    draw(run, "step_20_fox_0_64x64.png", (1, 2, 3)).write_bytes(b"no picture")
    text = page(RunFolder(run), with_defaults(defaults()))
    tags = seen(text)
    assert not {"script", "iframe", "object", "link", "form", "base"} & tags.names
    assert tags.handlers == []
    assert all(address.startswith("data:image/") for address in tags.addresses)
    assert "hf_abcdefghijkl" not in text
    assert text.count("&lt;script&gt;") >= 4, "caption, prompt, log and setting are all there"


def test_one_picture_is_one() -> None:
    assert "1 picture at a time" in what_was_trained({"train_batch_size": 1})
    assert "4 pictures at a time" in what_was_trained({"train_batch_size": 4})
    assert "Trained every weight of the transformer of pocket/model with" in what_was_trained(
        {"pretrained_model_name_or_path": "somewhere/pocket/model"}
    )


def test_what_stands_in_it(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    file = write(run, with_defaults(defaults()))
    text = file.read_text(encoding="utf-8")
    for words in (
        "Before and after",
        "Pictures over time",
        "Held-out loss by noise level",
        "best 0.9",
        "Scores",
        "31.5",
    ):
        assert words in text, words
    assert "rose from 0.8 at step 10 to 1 while training loss fell from 0.5 to 0.25" in text
    assert "fox at step 20 repeats a fox" in text
    assert "every weight of the transformer" in text
    assert len(seen(text).addresses) == 4 + 6 + 1, "before and after, the course, and the sheet"
    assert file.stat().st_size < 200_000
    where = {"step": 25, "nickname": "fox", "label": "", "width": 64, "height": 64, "index": 0}
    later = {"name": "nearest_distance", "value": 0.7, "memorised": False, "nearest": "a fox"}
    MetricsFile(run / "metrics.jsonl").write("score", where | later)
    assert "repeats a fox" not in page(RunFolder(run), ()), "an early alarm is over"


def test_the_loss_of_regularisation_is_a_line_of_its_own_where_there_is_one(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    plain = page(RunFolder(run), ())
    assert "regularisation, smoothed" not in plain
    metrics = MetricsFile(run / "metrics.jsonl")
    for step in range(31, 41):  # of every two steps one has such samples
        metrics.write("step", step_line(step, 0.2) | ({"regularisation_loss": 0.5} if step % 2 else {}))
    wild = {"skipped": "its loss is too large", "regularisation_loss": 1e9}
    metrics.write("step", step_line(41, 0.2) | wild)
    drawn = page(RunFolder(run), ())
    assert drawn.count("regularisation, smoothed") == 1
    assert drawn.count('class="line c2 dashed"') == plain.count('class="line c2 dashed"') + 1
    folder = RunFolder(run)
    folder.refresh()
    values = folder.series.columns["regularisation_loss"]
    assert values[30] == 0.5 and math.isnan(values[31]) and math.isnan(values[40]), "a skipped step has no figure"


def test_settings_are_those_that_acted(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    settings_ = {"resolution": 1024.0, "caption_strategy": "filename", "vae_batch_size": 4, "lora_alpha": 16.5}
    (run / "config.resolved.json").write_text(json.dumps(settings_))

    def shown(datasets: object) -> dict[str, str]:
        (run / "datasets.resolved.json").write_text(json.dumps(datasets))
        text = page(RunFolder(run), with_defaults(defaults()))
        return dict(re.findall(r"<tr><th>(\w+)</th><td>([^<]*)</td></tr>", text.partition("All settings")[2]))

    alone = {"resolution": "1024", "caption_strategy": "filename", "vae_batch_size": "4", "lora_alpha": "16.5"}
    assert shown([]) == shown({"no": "list"}) == shown([1, {"id": "half a dataset"}]) == alone
    sets = [
        {"id": name, "resolution": edge, "caption_strategy": "textfile", "vae_batch_size": 4, "lora_alpha": 1}
        for name, edge in (("large", 128.0), ("small", 64.0))
    ]
    assert shown(sets) == alone | {"resolution": "128 (large), 64 (small)", "caption_strategy": "textfile"}
    assert shown(sets[:1])["resolution"] == "128"
    (run / "config.resolved.json").write_text(json.dumps({"instance_prompt": None}))
    prompts = [{**sets[0], "instance_prompt": None}, {**sets[1], "instance_prompt": "a fox"}]
    assert shown(prompts) == {"instance_prompt": "a fox (small)"}, "nothing is said of those that have none"


def test_halves_of_a_run_make_a_page(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"kind": "eval", "step": 0, "loss": 1.0, "by_sigma": "?"}\n{"kind": "sc')
    (tmp_path / "dataset_sheet.json").write_text('{"datasets": [1, {"pictures": [2, {"thumbnail": "https://x"}]}]}')
    tags = seen(page(RunFolder(tmp_path), ()))
    assert tags.addresses == []


def test_a_failed_run_says_why(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    (run / "run.json").write_text('{"status": "failed", "error": "no space left <on the disk>"}')
    assert "no space left &lt;on the disk&gt;" in page(RunFolder(run), ())


def test_the_command_says_where_and_what_is_missing(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    done = CliRunner().invoke(command, [str(run), "--out", str(tmp_path / "new" / "page.html")])
    assert done.exit_code == 0, done.output
    assert "page.html" in done.output
    assert (tmp_path / "new" / "page.html").is_file()
    empty = tmp_path / "empty"
    empty.mkdir()
    done = CliRunner().invoke(command, [str(empty)])
    assert isinstance(done.exception, TunerError)
    assert "holds no run" in str(done.exception)


@settings(max_examples=50, deadline=None)
@given(st.floats(-1e6, 1e6), st.floats(1e-6, 1e6), st.integers(2, 8))
def test_ticks_are_round_and_inside(low: float, length: float, about: int) -> None:
    high = low + length
    ticks = nice_ticks(low, high, about)
    assert 1 <= len(ticks) <= 2 * about + 2 or length < 1e-9 * abs(low)
    assert all(low - 1e-6 * length <= t <= high + 1e-6 * length for t in ticks)


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (0.8847, "0.8847"), (60, "60"), (1e-5, "1e-5"), (20_000, "20,000"), (2.5e7, "2.5e7"), (math.nan, "–")],
)
def test_numbers_are_short(value: float, text: str) -> None:
    assert short(value) == text


def test_curves_stay_in_the_drawing_and_gaps_are_bridged() -> None:
    ys = [math.nan, 3.0, math.inf, 1.0, 2.0]
    svg = chart([Line("a", range(5), ys, dots=True)], (300, 200), star=(3, 1.0, "best <b>"))
    numbers = [tuple(map(float, pair.split())) for pair in re.findall(r"[ML]([\d.]+ [\d.]+)", svg)]
    curve = re.search(r'class="line c1" d="M([^"]+)"', svg)
    assert curve
    assert len(curve[1].split("L")) == 3
    assert all(0 <= x <= 300 and 0 <= y <= 200 for x, y in numbers)
    assert "<b>" not in svg
    assert "No figures" in chart([Line("a", [1], [math.nan])])
    assert "<svg" in chart([Line("a", [5], [0.0])])


def test_the_sheet_shows_some_pictures_and_leaves_broken_ones_out(tmp_path: Path) -> None:
    pictures = []
    for number in range(130):
        path = tmp_path / f"{number}.png"
        if number in (0, 2):
            Image.new("RGB", (300, 200), (number, 9, 9)).save(path)
        size = Size(300, 200)
        pictures.append(Picture(path, size, Size(288, 192), (0, 0, 1, 1), 1.0, (f"caption {number}",)))
    dataset_sheet.write(tmp_path / "out", [Survey("mine", tmp_path, "image", pictures, [])])
    (entry,) = read_object(tmp_path / "out" / dataset_sheet.NAME)["datasets"]
    assert (entry["used"], entry["buckets"]) == (130, [["288x192", 130]])
    assert [p["captions"] for p in entry["pictures"]] == [["caption 0"], ["caption 2"]]
    assert entry["pictures"][0]["thumbnail"].startswith("data:image/jpeg;base64,")
    assert "128 more are used and not shown here" in page(RunFolder(tmp_path / "out"), ())
