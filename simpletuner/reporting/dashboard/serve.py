"""The server: one socket on this machine, until somebody asks it to end."""

from __future__ import annotations

import secrets
import socket
import sys
import threading
import webbrowser
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import TextIO

from simpletuner.errors import TunerError
from simpletuner.reporting.settings import Group

HOST = "127.0.0.1"
PORT = 8686  # where none is asked for and it is free


@dataclass(frozen=True, slots=True)
class Serving:
    """What to serve, and how.

    Attributes:
        folders: Output folders of runs.
        groups: Options by section, with defaults.
        port: Exactly this one; None for ``PORT`` or any free one.
        open_browser: Whether to open the page.
        until: A stream whose end ends the server: the pipe of whoever started it. None serves until Ctrl-C.
    """

    folders: Sequence[Path]
    groups: Sequence[Group] = ()
    port: int | None = None
    open_browser: bool = False
    until: TextIO | None = None


def bind(port: int | None) -> socket.socket:
    """A socket on this machine alone.

    Raises:
        TunerError: The port that was asked for is taken.
    """
    for wanted in (port,) if port is not None else (PORT, 0):
        listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        if sys.platform != "win32":  # there it would let two programs share a port
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((HOST, wanted))
            listener.listen(128)  # from here on a browser waits for an answer, also while the server starts
            return listener
        except OSError as error:
            listener.close()
            reason = error.strerror
    raise TunerError(f"port {port} cannot be used: {reason}. What to do: leave --port out, or choose another.")


def serve(serving: Serving, say: Callable[[str], None]) -> None:
    """Serve until Ctrl-C, SIGTERM or the end of ``until``; the address is said first.

    Raises:
        TunerError: A package is missing, or the port is taken.
    """
    try:
        import uvicorn

        from simpletuner.reporting.dashboard.app import Pages, application
        from simpletuner.reporting.dashboard.door import Door
    except ModuleNotFoundError as error:
        raise TunerError(
            f"the dashboard needs the package {error.name}. What to do: pip install starlette uvicorn"
        ) from error
    ending = threading.Event()
    token = secrets.token_urlsafe(24)
    listener = bind(serving.port)
    port = listener.getsockname()[1]
    pages = Pages(serving.folders, serving.groups, ending.is_set)

    class Server(uvicorn.Server):
        """Streams are told to end before their connections are waited for."""

        def handle_exit(self, sig: int, frame: FrameType | None) -> None:
            ending.set()
            super().handle_exit(sig, frame)

    server = Server(
        uvicorn.Config(
            Door(application(pages), token, port),
            log_level="error",
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=2,
            lifespan="off",
        )
    )
    if serving.until is not None:
        threading.Thread(target=_end_with, args=(serving.until, server, ending), daemon=True).start()
    address = f"http://{HOST}:{port}/?token={token}"
    say(f"Dashboard: {address}")
    if serving.open_browser:
        threading.Thread(target=webbrowser.open, args=(address,), daemon=True).start()
    with listener:
        server.run(sockets=[listener])


def _end_with(stream: TextIO, server: object, ending: threading.Event) -> None:
    """Wait for the end of a pipe, then ask the server to end."""
    while stream.readline():
        pass
    ending.set()
    server.should_exit = True  # type: ignore[attr-defined]
