"""What a run tells: frozen events, and the listeners that hear of them without ever holding the run up.

In: events, from the threads that train. Out: the same, in the thread of each listener. An event has no tensors and no
pictures, only names of files; nothing here can reach the model.
"""

from __future__ import annotations

import math
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol

from simpletuner.errors import TunerError
from simpletuner.wording import counted

Severity = Literal["debug", "info", "warning", "error", "critical"]
StageStatus = Literal["running", "completed", "failed", "skipped", "cancelled"]

PASSING, LASTING, GRAVE = 0, 1, 2  # how much is lost with an event: the next one says it again; a fact; an error or end
CAPACITY = 1000  # events that wait for one listener
CLOSING_S = 10.0


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def finite(value: Any) -> Any:
    """NaN and infinity become null: no JSON reader has to take them."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: finite(item) for key, item in value.items()}
    return [finite(item) for item in value] if isinstance(value, list | tuple) else value


def _job_id() -> str | None:
    return os.environ.get("SIMPLETUNER_JOB_ID") or None


@dataclass(frozen=True, slots=True)
class Done:
    """How far something is.

    Attributes:
        label: What is counted.
        current: Units done.
        total: Units in all.
        eta_seconds: Time left, or None where it cannot be told.
        metrics: Figures beside it.
    """

    label: str
    current: int
    total: int
    eta_seconds: float | None = None
    metrics: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """With the share in percent."""
        eta = None if self.eta_seconds is None else round(self.eta_seconds, 1)
        percent = round(100 * self.current / self.total, 2) if self.total else 100.0
        return {
            "label": self.label,
            "current": self.current,
            "total": self.total,
            "percent": percent,
            "eta_seconds": eta,
            "metrics": dict(self.metrics),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """What all events have.

    Attributes:
        type: Its name in messages.
        title: A few words.
        message: A sentence for people.
        severity: How grave it is.
        timestamp: ISO 8601, UTC.
        job_id: SIMPLETUNER_JOB_ID of the environment, for whoever started many runs.
    """

    type: ClassVar[str] = ""
    title: str = ""
    message: str = ""
    severity: Severity = "info"
    timestamp: str = field(default_factory=_now)
    job_id: str | None = field(default_factory=_job_id)

    @property
    def importance(self) -> int:
        """``PASSING``, ``LASTING`` or ``GRAVE``: what is dropped first where a listener cannot keep up."""
        return GRAVE if self.severity in ("error", "critical") else LASTING

    def extra(self, path: Callable[[Path], str]) -> dict[str, Any]:
        """The fields of its own type; ``path`` writes a file's name."""
        return {}

    def to_json(self, path: Callable[[Path], str] = str) -> dict[str, Any]:
        """All that a message says; empty title and message are left out.

        Args:
            path: Writes a file's name, e.g. relative to the output folder.
        """
        words = {name: value for name in ("title", "message") if (value := getattr(self, name))}
        head = {"type": self.type, "severity": self.severity, "timestamp": self.timestamp, "job_id": self.job_id}
        whole: dict[str, Any] = finite({**head, **words, **self.extra(path)})
        return whole


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage(Event):
    """A phase of the run begins, goes on or ends."""

    type: ClassVar[str] = "lifecycle.stage"
    key: str
    label: str
    status: StageStatus
    progress: Done | None = None
    ends_run: bool = False

    @property
    def importance(self) -> int:
        """Progress is said again soon; a phase that failed, and the end of the run, are said once."""
        if self.ends_run or self.status == "failed":
            return GRAVE
        return PASSING if self.progress else LASTING

    def extra(self, path: Callable[[Path], str]) -> dict[str, Any]:
        """The phase."""
        stage = {"key": self.key, "label": self.label, "status": self.status}
        return {"stage": stage | ({"progress": self.progress.to_json()} if self.progress else {})}


@dataclass(frozen=True, slots=True, kw_only=True)
class Status(Event):
    """The state of training: ``starting``, ``running`` after each step, then ``completed``, ``failed``, ``interrupted``.

    Attributes:
        state: global_step, epoch and the like.
    """

    type: ClassVar[str] = "training.status"
    status: str
    state: Mapping[str, Any] = field(default_factory=dict)
    progress: Done | None = None

    @property
    def importance(self) -> int:
        """The next step says it again; the end is said once."""
        return {"running": PASSING, "starting": LASTING}.get(self.status, GRAVE)

    def extra(self, path: Callable[[Path], str]) -> dict[str, Any]:
        """State and progress."""
        data = {"data": {"status": self.status, **self.state}}
        return data | ({"progress": self.progress.to_json()} if self.progress else {})


@dataclass(frozen=True, slots=True, kw_only=True)
class Notification(Event):
    """Words for a person; with severity error or critical, a failure."""

    type: ClassVar[str] = "notification"
    data: Mapping[str, Any] = field(default_factory=dict)

    def extra(self, path: Callable[[Path], str]) -> dict[str, Any]:
        """Figures beside the words."""
        return {"data": dict(self.data)} if self.data else {}


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointSaved(Event):
    """A checkpoint is whole on disk."""

    type: ClassVar[str] = "training.checkpoint"
    path: Path
    step: int
    is_final: bool = False

    def extra(self, path: Callable[[Path], str]) -> dict[str, Any]:
        """The checkpoint."""
        where = {"path": path(self.path), "label": self.path.name, "step": self.step, "is_final": self.is_final}
        return {"checkpoint": where}


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptValidated(Event):
    """All pictures of one validation prompt are on disk.

    Attributes:
        step: Optimizer steps done.
        label: ``ema`` or empty.
        pictures: Their files.
    """

    type: ClassVar[str] = "training.validation"
    step: int
    nickname: str
    prompt: str
    label: str = ""
    pictures: tuple[Path, ...] = ()

    def extra(self, path: Callable[[Path], str]) -> dict[str, Any]:
        """Prompt and files."""
        data = {"step": self.step, "nickname": self.nickname, "prompt": self.prompt, "label": self.label}
        return {"data": {**data, "paths": [path(p) for p in self.pictures]}}


@dataclass(frozen=True, slots=True, kw_only=True)
class Preview(Event):
    """A validation picture while it forms; the file is gone once the finished picture is on disk.

    Attributes:
        step: Optimizer steps done.
        sampler_step: Steps of the sampler done, from 1.
        of: Steps of the sampler in all.
        timestep: Where the sampler is, 1000 to 0.
    """

    type: ClassVar[str] = "validation.image"
    step: int
    sampler_step: int
    of: int
    timestep: float
    nickname: str
    prompt: str
    width: int
    height: int
    path: Path
    label: str = ""

    @property
    def importance(self) -> int:
        """A later one shows more."""
        return PASSING

    def extra(self, path: Callable[[Path], str]) -> dict[str, Any]:
        """Place in the sampler's course, prompt and file."""
        data = {
            "step": self.step,
            "sampler_step": self.sampler_step,
            "sampler_steps": self.of,
            "timestep": self.timestep,
            "resolution": [self.width, self.height],
            "validation_type": self.label or "live",
            "nickname": self.nickname,
            "prompt": self.prompt,
            "step_label": f"{self.sampler_step}/{self.of}",
            "path": path(self.path),
        }
        return {"body": self.prompt, "data": data}


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuFault(Event):
    """The card failed, or its memory is full.

    Attributes:
        fault: ``out_of_memory`` or ``device_error``.
        gpu: Index and name.
        action_taken: What the run did.
        exception_type: The error's class.
    """

    type: ClassVar[str] = "gpu.fault"
    fault: str
    gpu: Mapping[str, Any] = field(default_factory=dict)
    action_taken: str = "the run ended"
    exception_type: str = ""

    def extra(self, path: Callable[[Path], str]) -> dict[str, Any]:
        """The fault."""
        words = {"action_taken": self.action_taken, "exception_type": self.exception_type}
        return {"fault": {"type": self.fault, "gpu": dict(self.gpu), **words}}


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures(Event):
    """One line of metrics.jsonl, for trackers; no message is made of it.

    Attributes:
        kind: Of the line.
        values: Of the line.
    """

    type: ClassVar[str] = "figures"
    kind: str
    values: Mapping[str, Any]

    @property
    def importance(self) -> int:
        """There are many steps; the others are rare."""
        return PASSING if self.kind in ("step", "system") else LASTING

    def extra(self, path: Callable[[Path], str]) -> dict[str, Any]:
        """The line."""
        return {"kind": self.kind, "values": dict(self.values)}


class Listener(Protocol):
    """Hears of events in a thread of its own; whatever it does, training goes on."""

    name: str

    def wants(self, event: Event) -> bool:
        """Whether to hear of this one. Called where the event happens, so it must take no time."""

    def handle(self, event: Event, ending: threading.Event) -> None:
        """Tell it on; an exception is said once. Once ``ending`` is set the run waits for this thread: no long pauses."""

    def finish(self) -> None:
        """After the last event, in the same thread."""


class Channel:
    """The events on their way to one listener: never more than ``capacity``, and a thread that hands them over.

    Where it is full, the oldest of the least important goes: first progress that is said again anyway, then facts, and
    errors and the end of the run only among themselves.
    """

    def __init__(self, listener: Listener, say: Callable[[str], None], capacity: int = CAPACITY) -> None:
        """Start the thread; ``say`` is told of a first failure."""
        self.listener = listener
        self._say, self._capacity = say, capacity
        self._waiting: tuple[deque[tuple[int, Event]], ...] = (deque(), deque(), deque())
        self._size = self._number = self.dropped = 0
        self.failed = 0
        self._changed = threading.Condition(threading.Lock())
        self._closed = False
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"listener {listener.name}", daemon=True)
        self._thread.start()

    def put(self, event: Event) -> None:
        """Leave an event; never waits for the listener."""
        with self._changed:
            if self._closed:
                return
            self._waiting[event.importance].append((self._number, event))
            self._number += 1
            self._size += 1
            if self._size > self._capacity:
                next(queue for queue in self._waiting if queue).popleft()
                self._size -= 1
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
            parts.append(f"{counted(self.failed, 'event was', 'events were')} not taken")
        if self._thread.is_alive():
            parts.append(f"it did not finish in time, {counted(left, 'event', 'events')} still waiting")
        return f"{self.listener.name}: {'; '.join(parts)}. Training was not affected." if parts else ""

    def _next(self) -> Event | None:
        """The oldest event, or None at the end."""
        with self._changed:
            while not self._size and not self._closed:
                self._changed.wait()
            if not self._size:
                return None
            self._size -= 1
            return min((queue for queue in self._waiting if queue), key=lambda queue: queue[0][0]).popleft()[1]

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
