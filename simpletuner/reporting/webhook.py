"""Webhooks: a run's events sent to a program (raw) or to a channel of people (Discord).

In: events, in the thread of the listener. Out: HTTP requests. Pictures are read from their files, previews at once: the next
one lies in the same file.
"""

from __future__ import annotations

import base64
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from simpletuner.reporting.delivery import Body, Courier, DeliveryError, Receiver
from simpletuner.reporting.events import (
    GRAVE,
    PASSING,
    CheckpointSaved,
    Event,
    Figures,
    Notification,
    Preview,
    PromptValidated,
    Stage,
    Status,
)

SEVERITIES = ("debug", "info", "warning", "error", "critical")
STATUS_S = 1.0  # between two messages of steps where no interval is given
REST_S = 30.0  # a receiver that fails is left alone for so long, but for what is told only once
FAILURES = 3  # in a row, before that
CHARACTERS = 2000  # of one Discord message
ATTACHMENTS = 10  # of one Discord message
ATTACHED_BYTES = 8 * 2**20  # of one Discord message: servers without a subscription take no more
PICTURE_BYTES = 32 * 2**20  # a larger file is not sent
_INVISIBLE = "\u200b"


@dataclass(frozen=True, slots=True)
class Webhook:
    """One receiver and what it is sent.

    Attributes:
        kind: ``raw`` or ``discord``.
        receiver: Where.
        log_level: The least severity that is sent.
        prefix: Before every text for people.
        every: Steps between two messages of steps, or None for at most one a second.
    """

    kind: Literal["raw", "discord"]
    receiver: Receiver
    log_level: str = "info"
    prefix: str = ""
    every: int | None = None


def listener(webhook: Webhook) -> RawWebhook | DiscordWebhook:
    """What hears of events for it."""
    return RawWebhook(webhook) if webhook.kind == "raw" else DiscordWebhook(webhook)


class _Delivery:
    """Sends while the receiver takes messages; one that fails is left alone for a while."""

    def __init__(self, courier: Courier) -> None:
        self._courier = courier
        self._failures, self._rest_until = 0, 0.0
        self._given_up = False

    def send(self, body: Callable[[], Body], importance: int, ending: threading.Event) -> None:
        """Send a body, which is made only if it is sent. Raises DeliveryError if it is not taken."""
        if self._given_up and importance < GRAVE:
            raise DeliveryError("it was given up at the end of the run")
        if importance == PASSING and time.monotonic() < self._rest_until:
            raise DeliveryError("it is left alone for a while")
        try:
            self._courier.send(body(), ending)
        except DeliveryError:
            self._failures += 1
            if self._failures >= FAILURES:
                self._rest_until = time.monotonic() + REST_S
            self._given_up = ending.is_set()  # the run waits: nothing but its end is tried again
            raise
        self._failures = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class _Seen(Preview):
    """A preview with the PNG that lay in its file when it was told."""

    content: bytes = field(repr=False)

    @property
    def weight(self) -> int:
        """Of the PNG."""
        return len(self.content)


class RawWebhook:
    """Structured events as JSON, pictures as base64 PNG in ``images``."""

    def __init__(self, webhook: Webhook) -> None:
        """Nothing is sent yet."""
        courier = Courier(webhook.receiver)
        self.name = f"webhook {courier.name}"
        self._delivery = _Delivery(courier)
        self._least = SEVERITIES.index(webhook.log_level)
        self._every = webhook.every
        self._last = float("-inf")

    def wants(self, event: Event) -> bool:
        """By severity; steps no more often than asked, and every preview: of these the sampler's interval was asked for."""
        if isinstance(event, Figures) or SEVERITIES.index(event.severity) < self._least:
            return False
        if isinstance(event, Status) and event.status == "running":
            if self._every:
                return int(event.state.get("global_step", 0)) % self._every == 0
            return self._rested()
        return True

    def _rested(self) -> bool:
        now = time.monotonic()
        if now - self._last < STATUS_S:
            return False
        self._last = now
        return True

    def kept(self, event: Event) -> Event:
        """A preview with its picture; one that is gone already goes without."""
        if not isinstance(event, Preview):
            return event
        for _, content in _read([event.path]):
            return _Seen(**{item.name: getattr(event, item.name) for item in fields(event)}, content=content)
        return event

    def handle(self, event: Event, ending: threading.Event) -> None:
        """One request. Raises DeliveryError if it is not taken."""
        self._delivery.send(lambda: Body.of_json(self._message(event)), event.importance, ending)

    def finish(self) -> None:
        """Nothing is left open."""

    @staticmethod
    def _message(event: Event) -> dict[str, Any]:
        images = [base64.b64encode(content).decode("ascii") for _, content in pictures_of(event)]
        return event.to_json() | ({"images": images} if images else {})


class DiscordWebhook:
    """Texts for people, with the validation pictures."""

    def __init__(self, webhook: Webhook) -> None:
        """Nothing is sent yet."""
        courier = Courier(webhook.receiver)
        self.name = f"Discord webhook {courier.name}"
        self._delivery = _Delivery(courier)
        self._least = SEVERITIES.index(webhook.log_level)
        self._prefix = webhook.prefix
        self._step: Status | None = None

    def wants(self, event: Event) -> bool:
        """What has words for people; of steps the last is remembered, for the next checkpoint's line."""
        if isinstance(event, Status) and event.status == "running":
            self._step = event
            return False
        if isinstance(event, Figures | Preview | Stage):
            return False
        return bool(event.message) and SEVERITIES.index(event.severity) >= self._least

    def handle(self, event: Event, ending: threading.Event) -> None:
        """One request, or several for a long text or many pictures. Raises DeliveryError if one is not taken."""
        parts = list(split(f"{self._prefix}{harmless(self._text(event))}", CHARACTERS))
        for text in parts[:-1]:
            self._send(text, [], event, ending)
        first, *others = list(parcels(pictures_of(event))) or [[]]
        self._send(parts[-1], first, event, ending)
        for pictures in others:
            self._send("", pictures, event, ending)

    def _send(self, text: str, pictures: Sequence[tuple[str, bytes]], event: Event, ending: threading.Event) -> None:
        files = {f"files[{i}]": (name, content, "image/png") for i, (name, content) in enumerate(pictures)}
        form = {"content": text} if text else {}
        self._delivery.send(lambda: Body(form=form, files=files), event.importance, ending)

    def finish(self) -> None:
        """Nothing is left open."""

    def _text(self, event: Event) -> str:
        if isinstance(event, CheckpointSaved):
            return f"Checkpoint: `{self._at(event.step)}`"
        if isinstance(event, PromptValidated):
            label = f" ({event.label.upper()})" if event.label else ""
            return f"Validation image for `{event.nickname}`{label}, step {event.step}: {event.prompt}"
        title = event.title if isinstance(event, Notification) else ""
        return f"**{title}** {event.message}" if title else event.message

    def _at(self, step: int) -> str:
        told = self._step.progress if self._step else None
        if told is None or told.current != step:
            return f"Step {step}"
        parts = [f"Step {step} of {told.total}"]
        for label, key, form in (("loss", "loss", ".4f"), ("lr", "learning_rate", ".2e"), ("epoch", "epoch", ".2f")):
            if isinstance(value := told.metrics.get(key), float | int):
                parts.append(f"{label} {value:{form}}")
        return f"{parts[0]}: {', '.join(parts[1:])}"


def pictures_of(event: Event) -> Iterator[tuple[str, bytes]]:
    """(name, PNG bytes) of an event's pictures."""
    if isinstance(event, _Seen):
        yield event.path.name, event.content
    elif isinstance(event, PromptValidated):
        yield from _read(event.pictures)


def _read(paths: Sequence[Path]) -> Iterator[tuple[str, bytes]]:
    """(name, bytes) of those that are there."""
    for path in paths:
        try:
            if path.stat().st_size <= PICTURE_BYTES:
                yield path.name, path.read_bytes()
        except OSError:
            continue


def harmless(text: str) -> str:
    """A text that calls nobody: a caption with ``@everyone`` would reach a whole server."""
    return text.replace("@", f"@{_INVISIBLE}")


def split(text: str, length: int) -> Iterator[str]:
    """Pieces of at most ``length`` characters, at a line's end or a space where there is one."""
    while len(text) > length:
        at = max(text.rfind("\n", length // 2, length), text.rfind(" ", length // 2, length))
        at = at if at > 0 else length
        yield text[:at]
        text = text[at:].lstrip()
    yield text


def parcels(pictures: Iterator[tuple[str, bytes]]) -> Iterator[list[tuple[str, bytes]]]:
    """Groups that one Discord message takes."""
    group: list[tuple[str, bytes]] = []
    size = 0
    for name, content in pictures:
        if group and (len(group) == ATTACHMENTS or size + len(content) > ATTACHED_BYTES):
            yield group
            group, size = [], 0
        group.append((name, content))
        size += len(content)
    if group:
        yield group
