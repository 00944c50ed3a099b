"""A fork is what a process started anew would be: words, folder, output, status; and nothing of the one before."""

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import Python, own_environment
from forked_command import Forker

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="commands are started anew there")
TELL = "import os, sys; print(sys.argv, os.getcwd(), __name__, sys.stdin.read()); print('aside', file=sys.stderr)"


@pytest.fixture
def forker() -> Iterator[Forker]:
    running = Forker(own_environment(), "import json")
    yield running
    running.end()


def test_words_folder_output_and_status(forker: Forker, tmp_path: Path) -> None:
    done = forker.run(f"{TELL}; sys.exit(3)", ["--a", "b c"], tmp_path)
    assert (done.returncode, done.stderr) == (3, "aside\n")
    assert done.stdout == f"['-c', '--a', 'b c'] {tmp_path} __main__ \n"
    assert forker.run("raise ValueError('ä')", [], tmp_path).stderr.endswith("ValueError: ä\n")


def test_nothing_is_left_for_the_next(forker: Forker, tmp_path: Path) -> None:
    program = "import atexit, json, os; print(hasattr(json, 'mine')); json.mine = 1; os.environ['MINE'] = '1'"
    names = forker.run("print([name for name in globals() if not name.startswith('__')])", [], tmp_path)
    assert names.stdout == "[]\n", "not even the names that the first process imported"
    for _ in range(2):
        done = forker.run(f"{program}; atexit.register(print, 'end')", [], tmp_path)
        assert done.stdout == "False\nend\n"
    assert forker.run("import os; print('MINE' in os.environ)", [], tmp_path).stdout == "False\n"


def test_a_command_that_is_killed_and_a_forker_that_is(forker: Forker, tmp_path: Path) -> None:
    killed = forker.run("import os; os.kill(os.getpid(), 9)", [], tmp_path)
    assert killed.returncode == -signal.SIGKILL
    assert forker.process
    os.kill(forker.process.pid, signal.SIGKILL)
    forker.process.wait()
    assert forker.run("print('again')", [], tmp_path).stdout == "again\n"


def test_the_libraries_are_there_and_nothing_of_this_program(python: Python, tmp_path: Path) -> None:
    program = (
        "import sys; print([name in sys.modules for name in ('torch', 'diffusers', 'simpletuner', 'bitsandbytes')])"
    )
    assert python(program, folder=tmp_path).stdout == "[True, True, False, False]\n"
