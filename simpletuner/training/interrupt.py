"""Ctrl-C, SIGTERM and a closed terminal: stop cleanly between two steps, and what takes long between them is given up."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from simpletuner.reporting.progress import Reporter
from simpletuner.signals import handled, hangup


class GivenUp(Exception):
    """A person wants the run to stop, so what was begun between two steps is left undone; nothing went wrong."""


def left_alone(environ: Mapping[str, str]) -> Callable[[], bool]:
    """A question: has what started this process as one of several ended since? Then nobody can stop them any more.

    False for ever in a run of one process, which may outlive its shell, and where torchrun has not started this one.
    """
    if "TORCHELASTIC_RUN_ID" not in environ:
        return lambda: False
    parent = os.getppid()
    return lambda: os.getppid() != parent


@contextmanager
def stop_on_interrupt(reporter: Reporter, asked: threading.Event) -> Iterator[None]:
    """The first Ctrl-C or SIGTERM sets ``asked``, for a clean stop; a second one interrupts at once.

    SIGHUP only sets it: a terminal that is closed sends it itself, then its shell does, and then SIGTERM may follow.
    """
    insisted = False

    def ask(number: int, frame: object) -> None:
        nonlocal insisted
        if insisted and number not in hangups:
            raise KeyboardInterrupt
        insisted = insisted or number not in hangups
        if not asked.is_set():
            asked.set()
            reporter.say("Stopping once the step or the picture in hand is finished (interrupt again to stop at once)")

    hangups = hangup()
    with handled(ask, signal.SIGINT, signal.SIGTERM, *hangups):
        yield
