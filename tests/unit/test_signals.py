"""Who handles signals, and for how long."""

import signal
import threading
from io import StringIO
from pathlib import Path
from types import FrameType

import pytest
from conftest import Python
from processes import hanging_up
from rich.console import Console

from simpletuner.reporting.progress import Reporter
from simpletuner.signals import handled
from simpletuner.training.interrupt import stop_on_interrupt


def test_a_signal_is_handled_inside_and_as_before_after_an_error() -> None:
    came: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        came.append(number)

    asked = (signal.SIGUSR1, signal.SIGUSR2)
    before = [signal.getsignal(number) for number in asked]
    with pytest.raises(ZeroDivisionError), handled(note, *asked):
        for number in asked:
            signal.raise_signal(number)
        raise ZeroDivisionError
    assert came == [*asked] and [signal.getsignal(number) for number in asked] == before


def test_another_thread_changes_nothing() -> None:
    """There it would be an error."""
    seen: list[object] = []

    def work() -> None:
        with handled(lambda number, frame: None, signal.SIGUSR1):
            seen.append(signal.getsignal(signal.SIGUSR1))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [signal.getsignal(signal.SIGUSR1)]


def test_a_closed_terminal_asks_and_never_insists() -> None:
    """It sends SIGHUP, and so does its shell; the end of the session sends SIGTERM too."""
    asked, screen = threading.Event(), StringIO()
    with hanging_up(), stop_on_interrupt(Reporter(Console(file=screen)), asked):
        for number in (signal.SIGHUP, signal.SIGHUP, signal.SIGTERM, signal.SIGHUP):
            signal.raise_signal(number)
        assert asked.is_set() and screen.getvalue().count("Stopping") == 1
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_nohup_stays_in_force() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        asked = threading.Event()
        with stop_on_interrupt(Reporter(Console(quiet=True)), asked):
            signal.raise_signal(signal.SIGHUP)
        assert not asked.is_set()
    finally:
        signal.signal(signal.SIGHUP, before)


def test_who_outlives_what_started_it_is_told(python: Python, tmp_path: Path) -> None:
    """Torchrun killed by force: its processes stop after a step, with a checkpoint, in place of going on unseen."""
    program = """
import os, time
from simpletuner.training.interrupt import left_alone
reading, writing = os.pipe()
if os.fork():
    os.close(writing)
    os.read(reading, 1)
    os._exit(0)
one_of_several, single = left_alone({"TORCHELASTIC_RUN_ID": "x"}), left_alone({})
before = one_of_several(), single()
os.write(writing, b"x")
deadline = time.monotonic() + 30
while not one_of_several() and time.monotonic() < deadline:
    time.sleep(0.01)
print(before, one_of_several(), single(), flush=True)
"""
    done = python(program, folder=tmp_path, ALONE="1")  # in a process of its own, whose output ends with its last child
    assert done.stdout == "(False, False) True False\n", done.stderr
