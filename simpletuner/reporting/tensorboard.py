"""TensorBoard: one event file a run, written as its own library writes them; no account, no server.

A step's curves go into one record, and pictures go in as the PNG bytes that lie on disk: nothing is decoded.
"""

from __future__ import annotations

import struct
import threading
import time
from pathlib import Path
from typing import Any

from simpletuner.reporting.curves import Curves
from simpletuner.reporting.events import Event, Figures, PromptValidated
from simpletuner.reporting.webhook import pictures_of

FLUSH_S = 10
RGB = 3


class TensorBoard:
    """Writes into ``folder``; a page on the folder above shows each such folder as a run."""

    name = "tensorboard"

    def __init__(self, folder: Path) -> None:
        """Nothing is written yet, and nothing imported."""
        self._folder = folder
        self._writer: Any = None
        self._curves = Curves()

    def wants(self, event: Event) -> bool:
        """Figures and finished pictures."""
        return isinstance(event, Figures | PromptValidated)

    def handle(self, event: Event, ending: threading.Event) -> None:
        """One record."""
        from tensorboard.compat.proto.summary_pb2 import Summary

        if isinstance(event, Figures):
            points = self._curves.points(event.kind, event.values)
            values = [Summary.Value(tag=tag, simple_value=value) for tag, value in points.items()]
            self._add(int(event.values.get("step") or 0), values)
        elif isinstance(event, PromptValidated):
            self._add(event.step, [self._picture(event, i, data) for i, (_, data) in enumerate(pictures_of(event))])

    def finish(self) -> None:
        """Everything is on disk."""
        if self._writer:
            self._writer.close()

    @staticmethod
    def _picture(event: PromptValidated, index: int, data: bytes) -> Any:
        from tensorboard.compat.proto.summary_pb2 import Summary

        width, height = png_size(data)
        label = f" {event.label}" if event.label else ""
        image = Summary.Image(width=width, height=height, colorspace=RGB, encoded_image_string=data)
        return Summary.Value(tag=f"validation/{event.nickname}{label}/{index}_{width}x{height}", image=image)

    def _add(self, step: int, values: list[Any]) -> None:
        if not values:
            return
        from tensorboard.compat.proto.event_pb2 import Event as Record
        from tensorboard.compat.proto.event_pb2 import SessionLog
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        if self._writer is None:
            self._writer = EventFileWriter(str(self._folder), flush_secs=FLUSH_S)
            # What an earlier part of the run wrote from this step on is passed over: it is trained anew.
            start = SessionLog(status=SessionLog.START)
            self._writer.add_event(Record(wall_time=time.time(), step=step, session_log=start))
        self._writer.add_event(Record(wall_time=time.time(), step=step, summary=Summary(value=values)))


def png_size(data: bytes) -> tuple[int, int]:
    """Width and height from the first bytes of a PNG.

    Source: PNG specification, third edition, 11.2.1: IHDR is the first chunk.

    Raises:
        ValueError: It is no PNG.
    """
    if data[:8] != b"\x89PNG\r\n\x1a\n" or len(data) < 24:
        raise ValueError("a validation picture is no PNG")
    width, height = struct.unpack(">II", data[16:24])
    return int(width), int(height)
