"""metrics.jsonl: whole lines, whatever was killed or full before."""

import json
import threading
from pathlib import Path

import pytest
from conftest import Python

from simpletuner.reporting.json_lines import append
from simpletuner.reporting.metrics import MetricsFile


@pytest.mark.parametrize("before", ["", '{"a": 1}\n', '{"a": 1}\n{"b'])
def test_a_half_line_of_a_killed_run_spoils_no_other(tmp_path: Path, before: str) -> None:
    path = tmp_path / "lines"
    path.write_text(before)
    append(path, '{"c": 3}\n')
    assert path.read_text() == before + ("\n" if before.endswith("b") else "") + '{"c": 3}\n'


def test_what_does_not_fit_is_left_out_whole(python: Python, tmp_path: Path) -> None:
    program = """
import resource, sys
from pathlib import Path
from simpletuner.reporting.json_lines import append
path = Path("lines")
append(path, "first\\n")
resource.setrlimit(resource.RLIMIT_FSIZE, (20, resource.RLIM_INFINITY))
try:
    append(path, "a line that is too long for it\\n")
except OSError as error:
    print(error.strerror)
append(path, "last\\n")
"""
    done = python(program, folder=tmp_path)
    assert done.returncode == 0 and done.stdout, done.stderr
    assert (tmp_path / "lines").read_text() == "first\nlast\n"


def test_lines_wait_while_the_disk_takes_none(tmp_path: Path) -> None:
    path, said = tmp_path / "metrics.jsonl", list[str]()
    metrics = MetricsFile(path, say=said.append)
    path.mkdir()  # nothing can be written there
    for step in (1, 2):
        metrics.write("step", {"step": step})
    assert len(said) == 1 and "training goes on" in said[0]
    assert [line["step"] for line in metrics.read("step")] == [1, 2]
    path.rmdir()
    metrics.write("step", {"step": 3})
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1, 2, 3]
    assert [line["step"] for line in metrics.read("step")] == [1, 2, 3]


def test_two_threads_write_each_line_once(tmp_path: Path) -> None:
    """The one that trains, and the listener that looks at the machine."""
    metrics = MetricsFile(tmp_path / "metrics.jsonl")

    def write(kind: str) -> None:
        for step in range(1000):
            metrics.write(kind, {"step": step})

    other = threading.Thread(target=write, args=("system",))
    other.start()
    write("step")
    other.join()
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 2000
    for kind in ("step", "system"):
        assert [line["step"] for line in metrics.read(kind)] == list(range(1000))


@pytest.mark.parametrize(
    "line", ["5", "[1]", '{"kind": "step"}', '{"kind": "step", "step": "x"}', '{"kind": "st', "\x00\xff"]
)
def test_lines_that_nobody_wrote_are_passed_over(tmp_path: Path, line: str) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(line.encode("latin-1") + b"\n")
    metrics = MetricsFile(path)
    metrics.write("step", {"step": 1})
    assert [found["step"] for found in metrics.read("step")] == [1]
