"""What a run tells: frozen events. An event has no tensors and no pictures, only names of files.

In: what happened, in plain values. Out: the same, as JSON has it. Who hears of them: ``listeners``.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, ClassVar, Literal

Severity = Literal["debug", "info", "warning", "error", "critical"]
StageStatus = Literal["running", "completed", "failed", "skipped", "cancelled"]

PASSING, LASTING, GRAVE = 0, 1, 2  # how much is lost with an event: the next one says it again; a fact; an error or end


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

    @property
    def weight(self) -> int:
        """Bytes beside the words; none, unless a listener has put them there."""
        return 0

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

    And of uploads: ``uploading_model``, then ``model_available``.

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
        lasting = dict.fromkeys(("starting", "uploading_model", "model_available"), LASTING)
        return {"running": PASSING, **lasting}.get(self.status, GRAVE)

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
