"""TensorBoard: one event file a run, its records made by its own library; no account, no server.

A step's curves go into one record, and pictures go in as the PNG bytes that lie on disk: nothing is decoded.
The library's own writer has a thread of its own, which ends with a traceback where the disk is full; this one raises OSError.
"""

from __future__ import annotations

import io
import os
import socket
import struct
import threading
import time
from pathlib import Path
from typing import Any

from simpletuner.reporting.appending import add_whole
from simpletuner.reporting.curves import Curves
from simpletuner.reporting.events import Event, Figures, PromptValidated
from simpletuner.reporting.webhook import pictures_of

VERSION = "brain.Event:2"  # of the format, in a file's first record
RGB = 3


class TensorBoard:
    """Writes into ``folder``; a page on the folder above shows each such folder as a run."""

    name = "tensorboard"

    def __init__(self, folder: Path) -> None:
        """Nothing is written yet, and nothing imported."""
        self._folder = folder
        self._file: io.FileIO | None = None
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
        if self._file:
            self._file.close()

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

        now = time.time()
        if self._file is None:
            # What an earlier part of the run wrote from this step on is passed over: it is trained anew.
            start = SessionLog(status=SessionLog.START)
            self._file = self._begun(
                Record(wall_time=now, file_version=VERSION), Record(wall_time=now, step=step, session_log=start)
            )
        add_whole(self._file, _record(Record(wall_time=now, step=step, summary=Summary(value=values))))

    def _begun(self, *records: Any) -> io.FileIO:
        """A file of this process with its first records. Raises OSError where they cannot be written: then there is none."""
        self._folder.mkdir(parents=True, exist_ok=True)
        name = f"events.out.tfevents.{int(time.time()):010d}.{socket.gethostname()}.{os.getpid()}.{time.time_ns()}"
        path = self._folder / name
        file = open(path, "wb", buffering=0)  # noqa: SIM115 - held for the whole run
        try:
            add_whole(file, b"".join(map(_record, records)))
        except OSError:
            file.close()
            path.unlink(missing_ok=True)
            raise
        return file


def _record(record: Any) -> bytes:
    """An event with its length and checksums, as it lies in a file."""
    from tensorboard.summary.writer.record_writer import RecordWriter

    buffer = io.BytesIO()
    RecordWriter(buffer).write(record.SerializeToString())
    return buffer.getvalue()


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
