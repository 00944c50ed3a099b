"""Ctrl-C and SIGTERM: stop cleanly between two steps, and what takes long between them is given up."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from simpletuner.reporting.progress import Reporter
from simpletuner.signals import handled


class GivenUp(Exception):
    """A person wants the run to stop, so what was begun between two steps is left undone; nothing went wrong."""


@contextmanager
def stop_on_interrupt(reporter: Reporter, asked: threading.Event) -> Iterator[None]:
    """The first Ctrl-C or SIGTERM sets ``asked``, for a clean stop; a second one interrupts at once."""

    def ask(number: int, frame: object) -> None:
        if asked.is_set():
            raise KeyboardInterrupt
        asked.set()
        reporter.say("Stopping once the step or the picture in hand is finished (interrupt again to stop at once)")

    with handled(ask, signal.SIGINT, signal.SIGTERM):
        yield
