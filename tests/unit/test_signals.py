"""Who handles signals, and for how long."""

import os
import signal
import threading
from io import StringIO
from types import FrameType

import pytest
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
            os.kill(os.getpid(), number)
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
    with stop_on_interrupt(Reporter(Console(file=screen)), asked):
        for number in (signal.SIGHUP, signal.SIGHUP, signal.SIGTERM, signal.SIGHUP):
            os.kill(os.getpid(), number)
        assert asked.is_set() and screen.getvalue().count("Stopping") == 1
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_nohup_stays_in_force() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        asked = threading.Event()
        with stop_on_interrupt(Reporter(Console(quiet=True)), asked):
            os.kill(os.getpid(), signal.SIGHUP)
        assert not asked.is_set()
    finally:
        signal.signal(signal.SIGHUP, before)
