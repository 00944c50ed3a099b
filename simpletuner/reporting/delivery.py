"""One message to one receiver, whatever that receiver does: every wait, every byte and every hop has a bound.

In: a body. Out: nothing, or a DeliveryError whose words hold neither the address beyond its host nor a token.
"""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any
from urllib.request import getproxies, proxy_bypass

import httpx2

from simpletuner.errors import TunerError
from simpletuner.reporting.addresses import literal, permitted, refusal

TIMEOUT_S = 5.0  # to connect, and between two bytes
DEADLINE_S = 10.0  # for one try as a whole
ANSWER_BYTES = 64 * 1024  # of an answer that are read; only its status counts
TRIES = 3
PAUSE_S = 0.5  # before the second try, twice as long before each further one
LONGEST_PAUSE_S = 30.0  # however long the receiver asks to wait
HOPS = 3
REDIRECTS = (301, 302, 307, 308)
WORTH_ANOTHER_TRY = (408, 425, 429, 500, 502, 503, 504)


class DeliveryError(TunerError):
    """A message was not taken.

    Attributes:
        again: Whether another try may help.
        wait: Seconds that the receiver asks to wait.
    """

    def __init__(self, reason: str, again: bool = False, wait: float = 0.0) -> None:
        self.again, self.wait = again, wait
        super().__init__(reason)


@dataclass(frozen=True, slots=True)
class Receiver:
    """Who receives.

    Attributes:
        url: May hold a secret.
        auth_token: Sent as X-API-Key, to this very origin only.
        verify: Whether its certificate must be valid.
        allow_redirects: Whether it may send messages elsewhere.
        allow_private: Whether this machine and its own network may receive.
    """

    url: str = field(repr=False)
    auth_token: str | None = field(default=None, repr=False)
    verify: bool = True
    allow_redirects: bool = False
    allow_private: bool = True


@dataclass(frozen=True, slots=True)
class Body:
    """What is sent: JSON bytes, or a form with files."""

    content: bytes | None = None
    form: Mapping[str, str] = field(default_factory=dict)
    files: Mapping[str, tuple[str, bytes, str]] = field(default_factory=dict)

    @classmethod
    def of_json(cls, value: Any) -> Body:
        """UTF-8 JSON."""
        return cls(json.dumps(value, allow_nan=False, default=str).encode())

    def arguments(self) -> dict[str, Any]:
        """For the client."""
        if self.content is not None:
            return {"content": self.content}
        return {"data": dict(self.form), "files": dict(self.files)} if self.files else {"data": dict(self.form)}


def origin(url: httpx2.URL) -> str:
    """Scheme, host and port: what may be said of an address."""
    port = f":{url.port}" if url.port else ""
    return f"{url.scheme}://{url.host}{port}"


class Courier:
    """Carries messages to one receiver."""

    def __init__(self, receiver: Receiver) -> None:
        """Nothing is looked up or sent yet."""
        self._receiver = receiver
        self._url = httpx2.URL(receiver.url)
        self.name = origin(self._url)
        self._tls = httpx2.create_ssl_context(verify=receiver.verify)

    def send(self, body: Body, ending: threading.Event) -> None:
        """Deliver, with up to ``TRIES`` tries; a single one once ``ending`` is set.

        Raises:
            DeliveryError: It was not taken.
        """
        for attempt in range(TRIES):
            try:
                return self._try(body)
            except DeliveryError as error:
                if not error.again or attempt == TRIES - 1:
                    raise
                pause = max(PAUSE_S * 2**attempt, min(error.wait, LONGEST_PAUSE_S))
                if ending.wait(pause):
                    raise

    def _try(self, body: Body) -> None:
        url = self._url
        for _ in range(HOPS + 1):
            following = self._post(url, body)
            if following is None:
                return
            url = following
        raise DeliveryError("it redirects on and on")

    def _post(self, url: httpx2.URL, body: Body) -> httpx2.URL | None:
        """One request; the address it redirects to, if it does and may."""
        proxy = _proxy(url)
        headers = {"User-Agent": "simpletuner", "Accept-Encoding": "identity"}
        if body.content is not None:
            headers["Content-Type"] = "application/json"
        if self._receiver.auth_token and _same_or_safer(self._url, url):
            headers["X-API-Key"] = self._receiver.auth_token
        target = url
        extensions: dict[str, Any] = {}
        if proxy is None:
            target = self._judged(url)
            headers["Host"] = url.netloc.decode("ascii")
            extensions["sni_hostname"] = url.raw_host.decode("ascii")
        elif (address := literal(url.host)) and (reason := refusal(address, self._receiver.allow_private)):
            raise DeliveryError(f"nothing is sent to {origin(url)}: {reason}")
        try:
            with (
                _deadline(extensions),
                httpx2.Client(verify=self._tls, trust_env=False, proxy=proxy, timeout=TIMEOUT_S) as client,
                client.stream("POST", target, headers=headers, extensions=extensions, **body.arguments()) as answer,
            ):
                _read_a_little(answer)
                return self._judge(url, answer)
        except (httpx2.HTTPError, httpx2.InvalidURL, httpx2.StreamError, OSError, ValueError) as error:
            raise DeliveryError(
                _in_words(error, url.scheme), again=True
            ) from None  # the cause may name the whole address

    def _judged(self, url: httpx2.URL) -> httpx2.URL:
        """The same with the address it is sent to instead of the name, if that may receive."""
        port = url.port or {"http": 80, "https": 443}[url.scheme]
        try:
            address = permitted(url.raw_host.decode("ascii"), port, self._receiver.allow_private)
        except PermissionError as error:
            raise DeliveryError(f"nothing is sent to {origin(url)}: {error}") from None
        except (OSError, UnicodeError):
            raise DeliveryError(f"there is no host {url.host}", again=True) from None
        return url.copy_with(host=address)

    def _judge(self, url: httpx2.URL, answer: httpx2.Response) -> httpx2.URL | None:
        status = answer.status_code
        if answer.is_success or status == 303:  # "see other": it was taken
            return None
        if status in REDIRECTS:
            if not self._receiver.allow_redirects:
                raise DeliveryError(
                    f"it redirects (status {status}), which allow_redirects does not allow: give the final address"
                )
            try:
                following = url.join(answer.headers.get("Location", ""))
            except (httpx2.InvalidURL, ValueError):
                raise DeliveryError("it redirects to no address") from None
            if following.scheme not in ("http", "https") or not following.host:
                raise DeliveryError("it redirects to no web address")
            if url.scheme == "https" and following.scheme == "http":
                raise DeliveryError("it redirects from https to http, where all could read along")
            return following
        wait = answer.headers.get("Retry-After", "")
        seconds = float(wait) if wait.replace(".", "", 1).isdigit() else 0.0
        raise DeliveryError(f"it answered with status {status}", again=status in WORTH_ANOTHER_TRY, wait=seconds)


def _proxy(url: httpx2.URL) -> str | None:
    """The proxy that the environment names for this address."""
    return None if proxy_bypass(url.host) else getproxies().get(url.scheme)


def _same_or_safer(first: httpx2.URL, now: httpx2.URL) -> bool:
    """Whether a token for ``first`` may go to ``now``: the same origin, or the same host by https."""
    if origin(first) == origin(now):
        return True
    return first.host == now.host and first.scheme == "http" and now.scheme == "https"


def _read_a_little(answer: httpx2.Response) -> None:
    """Some of the body, so that the receiver is not cut off in the middle of a short answer."""
    read = 0
    for chunk in answer.iter_raw():
        read += len(chunk)
        if read > ANSWER_BYTES:
            return


@contextmanager
def _deadline(extensions: dict[str, Any]) -> Iterator[None]:
    """Cut the connection after ``DEADLINE_S``: a receiver that sends a byte every few seconds never times out.

    The socket is duplicated, since TLS takes the first one over; a shutdown of either ends the connection.
    """
    sockets: list[socket.socket] = []

    def trace(name: str, info: Mapping[str, Any]) -> None:
        if name == "connection.connect_tcp.complete":
            sockets.append(info["return_value"].get_extra_info("socket").dup())

    def cut() -> None:
        for sock in sockets:
            with suppress(OSError):  # it is closed already
                sock.shutdown(socket.SHUT_RDWR)

    extensions["trace"] = trace
    timer = threading.Timer(DEADLINE_S, cut)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        for sock in sockets:
            sock.close()


def _in_words(error: Exception, scheme: str) -> str:
    """What went wrong, without the address."""
    if isinstance(error, httpx2.TimeoutException):
        return "it did not answer in time"
    if isinstance(error, httpx2.ConnectError):
        certificate = ", or its certificate is not valid (ssl_no_verify)" if scheme == "https" else ""
        return f"it cannot be reached{certificate}"
    return f"the connection broke off ({type(error).__name__})"
