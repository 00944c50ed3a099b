"""Rooms 1 and 4, elsewhere: how often the network is asked, one request to web servers, and what went wrong in a line.

In: an address. Out: an open answer. What is done with the bytes, and which errors are worth another try, each caller knows.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Any
from urllib.request import Request, urlopen

TRIES = 3
PAUSE_S = 0.2  # before the second try; twice as long before each further one
TIMEOUT_S = 30.0


def attempts() -> Iterator[int]:
    """0, 1 …, one number a try, with a growing pause before each but the first. Leave the loop where it worked."""
    for attempt in range(TRIES):
        if attempt:
            time.sleep(PAUSE_S * 2 ** (attempt - 1))
        yield attempt


def is_web(address: str) -> bool:
    """Whether a web server has it, rather than a store that fsspec knows or this disk."""
    return address.startswith(("http://", "https://"))


def request(url: str, method: str = "GET") -> AbstractContextManager[Any]:
    """Ask a web server; the answer has ``headers`` and is read like a file.

    Raises:
        HTTPError: The server refuses.
        OSError: It cannot be reached, or takes longer than ``TIMEOUT_S``.
    """
    answer: AbstractContextManager[Any] = urlopen(
        Request(url, headers={"User-Agent": "simpletuner"}, method=method), timeout=TIMEOUT_S
    )
    return answer


def check_length(answer: Any, received: int) -> None:
    """Raises OSError if fewer bytes arrived than the server said: a connection that breaks off is no short file."""
    length = answer.headers.get("Content-Length")
    if length and received != int(length):
        raise OSError(f"the connection broke off after {received} of {length} bytes")


def plain(error: Exception) -> str:
    """The first line of what a store says went wrong."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
