"""Adding to a file so that it stays readable on a full disk: all of what is added is there, or none of it."""

from __future__ import annotations

import contextlib
import errno
import os
from io import FileIO


def add_whole(file: FileIO, data: bytes) -> None:
    """Write at the end of a file.

    Args:
        file: Open for writing, without a buffer of its own.
        data: What is added.

    Raises:
        OSError: The disk takes nothing more; the file is as it was.
    """
    end = file.seek(0, os.SEEK_END)
    try:
        if file.write(data) < len(data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), file.name)
    except OSError:
        with contextlib.suppress(OSError):
            file.truncate(end)
        raise
