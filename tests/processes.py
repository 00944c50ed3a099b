"""Processes that tests start. Each is ended with the block it belongs to, whatever happens there, and so are those it has then."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import psutil

PATIENCE_S = 120


@contextmanager
def ended(process: subprocess.Popen[str]) -> Iterator[subprocess.Popen[str]]:
    """The process, until the block is left."""
    try:
        yield process
    finally:
        family = []
        if process.poll() is None:
            with suppress(psutil.NoSuchProcess):
                family = psutil.Process(process.pid).children(recursive=True)
        process.kill()
        for child in family:
            with suppress(psutil.NoSuchProcess):
                child.kill()
        process.wait()
        if process.stdout:
            process.stdout.close()


@contextmanager
def hanging_up() -> Iterator[None]:
    """SIGHUP is heard here, and by what is started here: tests that ``nohup`` has started have it ignored."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGHUP, before)


def until(reached: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    """Wait for something that a process does; it may have ended with that."""
    deadline = time.monotonic() + PATIENCE_S
    while not reached():
        if process.poll() is not None:
            assert reached(), process.communicate()[0]
        assert time.monotonic() < deadline, f"not in {PATIENCE_S} s"
        time.sleep(0.005)


@dataclass(frozen=True)
class Server:
    """A server's process, and the requests it has told of, the newest last."""

    port: int
    process: subprocess.Popen[str]
    requests: list[dict[str, Any]]


@contextmanager
def server(script: str, *words: object) -> Iterator[Server]:
    """Run a script that prints its port, and then one line of JSON for each request."""
    command = [sys.executable, script, *map(str, words)]
    with ended(subprocess.Popen(command, stdout=subprocess.PIPE, text=True)) as process:
        assert process.stdout
        first = process.stdout.readline()
        assert first, f"{script} has ended before it could be asked"
        running, lines = Server(int(first), process, []), map(json.loads, process.stdout)
        reading = threading.Thread(target=lambda: running.requests.extend(lines), daemon=True)
        reading.start()
        try:
            yield running
        finally:
            process.kill()
            reading.join(10)
