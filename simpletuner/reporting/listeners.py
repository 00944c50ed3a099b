"""Who hears of a run's events, each in a thread of its own that can never hold the run up.

In: events, from the threads that train. Out: the same, in the thread of each listener. Where a listener cannot keep up, the
least important of what waits is dropped and counted.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import Protocol, runtime_checkable

from simpletuner.errors import TunerError
from simpletuner.reporting.events import Event
from simpletuner.wording import counted

CAPACITY = 1000  # events that wait for one listener
CAPACITY_BYTES = 64 * 2**20  # of pictures in them
CLOSING_S = 10.0


class Listener(Protocol):
    """Hears of events in a thread of its own; whatever it does, training goes on."""

    name: str

    def wants(self, event: Event) -> bool:
        """Whether to hear of this one. Called where the event happens, so it must take no time."""

    def handle(self, event: Event, ending: threading.Event) -> None:
        """Tell it on; an exception is said once. Once ``ending`` is set the run waits for this thread: no long pauses."""

    def finish(self) -> None:
        """After the last event, in the same thread."""


@runtime_checkable
class Keeper(Protocol):
    """A listener that needs what a file holds at the moment of the event: later it holds something else, or is gone."""

    def kept(self, event: Event) -> Event:
        """What waits for it: the event, or one that has the file's content as its ``weight``."""


class Channel:
    """The events on their way to one listener, never more than ``capacity`` (and ``CAPACITY_BYTES``), and a thread for them.

    Where it is full, the oldest of the least important goes: first progress that is said again anyway, then facts, and
    errors and the end of the run only among themselves.
    """

    def __init__(self, listener: Listener, say: Callable[[str], None], capacity: int = CAPACITY) -> None:
        """Start the thread; ``say`` is told of a first failure."""
        self.listener = listener
        self._say, self._capacity = say, capacity
        self._waiting: tuple[deque[tuple[int, Event]], ...] = (deque(), deque(), deque())
        self._keeper = listener if isinstance(listener, Keeper) else None
        self._size = self._bytes = self._number = self.dropped = 0
        self.failed = 0
        # One that its own thread may take twice: Ctrl-C says a sentence wherever the training thread is, also in ``put``.
        self._changed = threading.Condition(threading.RLock())
        self._closed = False
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"listener {listener.name}", daemon=True)
        self._thread.start()

    def put(self, event: Event) -> None:
        """Leave an event; never waits for the listener."""
        event = self._keeper.kept(event) if self._keeper else event
        with self._changed:
            if self._closed:
                return
            self._waiting[event.importance].append((self._number, event))
            self._number += 1
            self._size, self._bytes = self._size + 1, self._bytes + event.weight
            while self._size > self._capacity or self._bytes > CAPACITY_BYTES:
                _, least = next(queue for queue in self._waiting if queue).popleft()
                self._size, self._bytes = self._size - 1, self._bytes - least.weight
                self.dropped += 1
            self._changed.notify()

    def end(self) -> None:
        """No more events; what waits is still handed over."""
        self._ending.set()
        with self._changed:
            self._closed = True
            self._changed.notify()

    def join(self, deadline: float) -> str:
        """Wait for the thread until ``deadline`` (monotonic s); a sentence on what was lost, or nothing."""
        self._thread.join(max(0.0, deadline - time.monotonic()))
        with self._changed:
            left = self._size
        parts = []
        if self.dropped:
            parts.append(f"{counted(self.dropped, 'event was', 'events were')} dropped because it could not keep up")
        if self.failed:
            parts.append(
                f"{counted(self.failed, 'event was', 'events were')} not taken, so what they tell is missing there"
            )
        if self._thread.is_alive():
            waiting = (
                f"{counted(left, 'event', 'events')} still waiting" if left else "the last event may be missing there"
            )
            parts.append(f"it did not finish in time, {waiting}")
        return f"{self.listener.name}: {'; '.join(parts)}. Training was not affected." if parts else ""

    def _next(self) -> Event | None:
        """The oldest event, or None at the end."""
        with self._changed:
            while not self._size and not self._closed:
                self._changed.wait()
            if not self._size:
                return None
            event = min((queue for queue in self._waiting if queue), key=lambda queue: queue[0][0]).popleft()[1]
            self._size, self._bytes = self._size - 1, self._bytes - event.weight
            return event

    def _run(self) -> None:
        while (event := self._next()) is not None:
            self._guarded(self.listener.handle, event, self._ending)
        self._guarded(self.listener.finish)

    def _guarded(self, work: Callable[..., None], *arguments: object) -> None:
        try:
            work(*arguments)
        except Exception as error:  # noqa: BLE001 - a listener can never end training
            self.failed += 1
            if self.failed == 1:
                reason = (str(error).strip().splitlines() or [""])[0][:300]
                what = reason if isinstance(error, TunerError) else f"{type(error).__name__}: {reason}"
                self._say(f"{self.listener.name}: {what} (said once; training goes on)")


class Listeners:
    """All listeners of a run; none until ``start``."""

    def __init__(self) -> None:
        """Nobody listens."""
        self._channels: list[Channel] = []

    def start(self, listeners: Iterable[Listener], say: Callable[[str], None]) -> None:
        """Each gets a queue and a thread; ``say`` is told of the first failure of each."""
        self._channels += [Channel(listener, say) for listener in listeners]

    def emit(self, event: Event) -> None:
        """Tell everybody who wants to know; never waits and never raises."""
        for channel in self._channels:
            try:
                if channel.listener.wants(event):
                    channel.put(event)
            except Exception:  # noqa: BLE001 - a listener can never end training
                channel.failed += 1

    def close(self, timeout: float = CLOSING_S) -> list[str]:
        """Hand over what waits, at most ``timeout`` seconds for all together.

        Returns:
            A sentence for each listener that lost something.
        """
        deadline = time.monotonic() + timeout
        channels, self._channels = self._channels, []
        for channel in channels:
            channel.end()
        return [lost for channel in channels if (lost := channel.join(deadline))]
