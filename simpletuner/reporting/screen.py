"""A standard stream that may go away: a closed terminal, a pipe whose reader has ended, a full disk behind ``> log``.

In: a stream. Out: the same one, which never raises because of that: what is shown is no reason to lose what is trained.
Everything that is said is in events.jsonl as well.
"""

from __future__ import annotations

import contextlib
import errno
import os
from typing import Any, TextIO

# There may be room again: on the disk, or in a pipe that does not block. What was not written yet waits in the stream.
_PASSES = (errno.ENOSPC, errno.EDQUOT, errno.EAGAIN)


class Screen:
    """A stream for ``rich.console.Console``."""

    def __init__(self, stream: TextIO) -> None:
        """Write to ``stream``."""
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        """All else is the stream's own: its encoding, its descriptor, whether it is a terminal."""
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write, if anybody is there."""
        try:
            return self._stream.write(text)
        except OSError as error:
            self._gone(error)
            return len(text)

    def flush(self) -> None:
        """Flush, if anybody is there."""
        try:
            self._stream.flush()
        except OSError as error:
            self._gone(error)

    def _gone(self, error: OSError) -> None:
        """From now on nothing comes through: else Python itself would complain of the same when it ends."""
        if error.errno in _PASSES:
            return
        with contextlib.suppress(OSError, ValueError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())
            os.close(nowhere)
