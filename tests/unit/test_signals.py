"""Who handles signals, and for how long."""

import os
import signal
import threading
from types import FrameType

import pytest

from simpletuner.signals import handled


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
