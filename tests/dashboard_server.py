"""The real dashboard command as a process, and a small client for it."""

from __future__ import annotations

import http.client
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from conftest import started


@dataclass(frozen=True)
class Dashboard:
    """Where it answers."""

    address: str
    process: subprocess.Popen[str]

    @property
    def port(self) -> int:
        return urlsplit(self.address).port or 0

    @property
    def token(self) -> str:
        return parse_qs(urlsplit(self.address).query)["token"][0]

    def ask(
        self, path: str, method: str = "GET", cookie: bool = True, **headers: str
    ) -> tuple[int, http.client.HTTPMessage, bytes]:
        """One request exactly as given: no redirects, no made-up headers but the cookie."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        own = {"Cookie": f"simpletuner_{self.port}={self.token}"} if cookie else {}
        connection.putrequest(method, path, skip_host="Host" in headers, skip_accept_encoding=True)
        for name, value in {**own, **headers}.items():
            connection.putheader(name.replace("_", "-"), value)
        connection.endheaders()
        answer = connection.getresponse()
        body = answer.read()
        connection.close()
        return answer.status, answer.headers, body

    @property
    def acting(self) -> dict[str, str]:
        """Headers of a request that acts, as the page sends them."""
        return {"Origin": f"http://127.0.0.1:{self.port}", "X_SimpleTuner": "1"}


@contextmanager
def serving(*folders: Path) -> Iterator[Dashboard]:
    """Serve these runs on any free port."""
    with started("dashboard", "--port=0", "--no-open", *folders) as process:
        assert process.stdout
        line = process.stdout.readline()
        assert line.startswith("Dashboard: "), line + process.stdout.read()
        yield Dashboard(line.removeprefix("Dashboard: ").strip(), process)
        process.terminate()
        process.wait(10)
