"""A receiver of webhooks in a process of its own, good or bad by the path that is asked: run as a script.

Prints its port, then one line of JSON for each request that arrived whole.
"""

from __future__ import annotations

import json
import re
import ssl
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import processes


class Handler(BaseHTTPRequestHandler):
    """Each path is a way to behave."""

    failures = 0

    def do_POST(self) -> None:
        """Note the request, and answer as the path says."""
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        note = {"path": self.path, "headers": dict(self.headers), "body": body.decode("latin-1")}
        print(json.dumps(note), flush=True)
        kind = re.split("[/?]", self.path.strip("/"))[0]
        getattr(self, f"_{kind}", self._ok)()

    do_GET = do_POST

    def log_message(self, *_: object) -> None:
        """Nothing."""

    def _answer(self, status: int, **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": "0", **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()

    def _ok(self) -> None:
        self._answer(204)

    def _fails(self) -> None:
        self._answer(500)

    def _refuses(self) -> None:
        self._answer(404)

    def _twice(self) -> None:
        """Busy at first, then well."""
        Handler.failures += 1
        self._answer(429 if Handler.failures == 1 else 204, Retry_After="0.1")

    def _redirect(self) -> None:
        """To what stands behind redirect/ in the path."""
        self._answer(307, Location=self.path.removeprefix("/redirect/"))

    def _loop(self) -> None:
        self._answer(307, Location=self.path)

    def _slow(self) -> None:
        time.sleep(60)

    def _close(self) -> None:
        self.connection.close()

    def _endless(self) -> None:
        self.send_response(200)
        self.end_headers()
        while True:
            self.wfile.write(b"x" * 65536)

    def _drip(self) -> None:
        """A header that never ends, a byte at a time."""
        self.wfile.write(b"HTTP/1.1 200 OK\r\nX-Slow: ")
        while True:
            self.wfile.write(b"x")
            time.sleep(0.05)


class Server(ThreadingHTTPServer):
    """Quiet about connections that break off."""

    daemon_threads = True

    def handle_error(self, *_: object) -> None:
        """Nothing."""


class Receiver:
    """Its address, and what arrived."""

    def __init__(self, url: str, requests: list[dict[str, Any]]) -> None:
        self.url, self.requests = url, requests

    def wait(self, count: int, seconds: float = 10.0) -> list[dict[str, Any]]:
        """Until ``count`` requests have arrived."""
        deadline = time.monotonic() + seconds
        while len(self.requests) < count and time.monotonic() < deadline:
            time.sleep(0.01)
        return self.requests

    def json(self) -> list[dict[str, Any]]:
        """Bodies that are JSON."""
        return [json.loads(request["body"]) for request in self.requests]


@contextmanager
def receiving(certificate: Path | None = None) -> Iterator[Receiver]:
    """A process that receives, as long as a test needs it."""
    scheme = "https" if certificate else "http"
    with processes.server(__file__, *([certificate] if certificate else [])) as running:
        yield Receiver(f"{scheme}://127.0.0.1:{running.port}", running.requests)


if __name__ == "__main__":
    server = Server(("127.0.0.1", 0), Handler)
    if len(sys.argv) > 1:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(sys.argv[1])
        server.socket = context.wrap_socket(server.socket, server_side=True)
    print(server.server_port, flush=True)
    server.serve_forever()
