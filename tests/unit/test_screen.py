"""Standard output may go away; what is trained does not go with it."""

import contextlib
import os
from pathlib import Path
from typing import TextIO

import pytest
from conftest import Python

from simpletuner.reporting.progress import Reporter
from simpletuner.reporting.screen import Screen


def without_reader() -> TextIO:
    """The writing end of a pipe whose reader has ended: ``| head -1``, or ``| tee`` after Ctrl-C."""
    reading, writing = os.pipe()
    os.close(reading)
    return os.fdopen(writing, "w")


def test_a_pipe_without_a_reader_raises_nothing_then_or_at_the_end() -> None:
    with without_reader() as stream:
        screen = Screen(stream)
        for _ in range(2):
            screen.write("step 1\n")
            screen.flush()
        stream.write("what Python flushes when it ends")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device of Linux")
def test_a_full_disk_is_tried_again() -> None:
    with contextlib.suppress(OSError), open("/dev/full", "w") as stream:  # closing it raises
        screen = Screen(stream)
        screen.write("step 1\n")
        screen.flush()
        assert os.path.samestat(os.fstat(stream.fileno()), os.stat("/dev/full"))


def test_a_full_pipe_that_does_not_block_is_tried_again() -> None:
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    with os.fdopen(reading, "rb", buffering=0) as reader, os.fdopen(writing, "w") as stream:
        screen = Screen(stream)
        for _ in range(40):
            screen.write("x" * 4095 + "\n")
            screen.flush()
        reader.read(2**20)
        screen.write("later\n")
        screen.flush()
        assert reader.read(2**20).endswith(b"later\n")


def test_bars_and_sentences_need_no_reader(monkeypatch: pytest.MonkeyPatch) -> None:
    with without_reader() as stream:
        monkeypatch.setattr("sys.stdout", stream)
        reporter = Reporter()
        with reporter.bar("Training", 1) as bar:
            reporter.say("a sentence")
            bar.advance(1)


def test_letters_that_the_terminal_lacks_are_no_reason_to_end(python: Python, tmp_path: Path) -> None:
    program = "from simpletuner.cli import app\n@app.app.command()\ndef say():\n    print('2 \u00d7 21')\napp.main()"
    done = python(program, "say", folder=tmp_path, PYTHONIOENCODING="ascii")
    assert done.returncode == 0 and done.stdout == "2 ? 21\n", done.stderr


def test_no_columns_are_no_width(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("COLUMNS", "0")
    Reporter().say("a sentence")
    assert capsys.readouterr().out == "a sentence\n"


@pytest.mark.parametrize(
    ("raised", "status", "said"),
    [
        (
            "raise OSError(28, 'No space left on device', 'a/b')",
            1,
            "Error: cannot write a/b: No space left on device. ",
        ),
        (
            "import pathlib; pathlib.Path('~nobody-here/x').expanduser()",
            1,
            "Error: a path begins with ~, and there is no",
        ),
        ("raise RuntimeError('Error calling __set_name__') from KeyboardInterrupt()", 130, "Interrupted.\n"),
    ],
)
def test_full_disks_strange_paths_and_interrupts_are_no_fault_of_the_program(
    python: Python, tmp_path: Path, raised: str, status: int, said: str
) -> None:
    program = f"from simpletuner.cli import app\n@app.app.command()\ndef wrong():\n    {raised}\napp.main()"
    done = python(program, "wrong", folder=tmp_path)
    assert done.returncode == status and done.stderr.startswith(said), done.stderr
    assert "fault of the program" not in done.stderr
