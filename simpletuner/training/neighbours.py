"""Processes as the machine sees them: whether another is still there, and how this one ends where it was left alone."""

from __future__ import annotations

import contextlib
import faulthandler
import math
import os

import psutil
import torch.distributed as dist

SAME_S = 2.0  # two looks at when a process began differ by less


def let_go() -> None:
    """At the end of a process that was left alone: its GPU may wait for the others, and the end would wait for the GPU."""
    everyone = dist.group.WORLD
    if everyone is not None:
        with contextlib.suppress(RuntimeError):
            everyone.abort()


def is_running(process: psutil.Process) -> bool:
    """Whether it has not ended, waited for or not."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
    except psutil.AccessDenied:
        return True


def beginning(number: int) -> float:
    """When the process of this number began (seconds), NaN where it is not seen: a sandbox may hide all of them, or the clock."""
    with contextlib.suppress(psutil.Error, OSError, RuntimeError):
        return psutil.Process(number).create_time()
    return math.nan


def process_of(number: int, began: float) -> psutil.Process | None:
    """The process of this number and beginning (seconds), if it is seen from here: elsewhere another has its number."""
    with contextlib.suppress(psutil.Error):
        if abs(beginning(number) - began) < SAME_S:
            return psutil.Process(number)
    return None


def leave_within(seconds: float) -> None:
    """End this process then, whatever it waits for: by a thread that needs no Python, and so no end of a call that blocks it."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    faulthandler.dump_traceback_later(seconds, exit=True, file=nowhere)
