"""Who may come in: this machine alone, by the token, under the names of this machine, and from the page itself.

A browser can be made to ask 127.0.0.1 by any page it visits. So the name in Host must be one of this machine (a stranger's
name that resolves here is refused), every request needs the token, requests that act must come from our own page, and
the answers tell the browser to run nothing but our files.
"""

from __future__ import annotations

import hmac
from collections.abc import Mapping
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders, QueryParams
from starlette.requests import cookie_parser
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "frame-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
# The page of `simpletuner check` is a file of the run: it may show its own pictures, and nothing of it runs.
SHEET_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; sandbox; frame-ancestors 'self'"
_HOSTS = ("127.0.0.1", "localhost", "[::1]")
_ALWAYS = {
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "permissions-policy": "camera=(), microphone=(), geolocation=()",
}


class Door:
    """ASGI middleware: refuses with 400 (host), 401 (token) or 403 (origin), and sets headers on all answers."""

    def __init__(self, app: ASGIApp, token: str, port: int) -> None:
        """Guard ``app``."""
        self._app, self._token = app, token.encode()
        self._hosts = {f"{host}:{port}" for host in _HOSTS}
        self.cookie = f"simpletuner_{port}"  # cookies are shared by all ports of a host

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let in or refuse."""
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self._app(scope, receive, send)
            return  # no websockets
        headers = Headers(scope=scope)
        refusal = self._refusal(scope, headers)
        by_address = self._knows(QueryParams(scope["query_string"]).get("token", ""))

        async def dressed(message: Message) -> None:
            if message["type"] == "http.response.start":
                answer = MutableHeaders(scope=message)
                for name, value in _ALWAYS.items():
                    answer.setdefault(name, value)
                answer.setdefault("content-security-policy", POLICY)
                answer.setdefault("cache-control", "no-store")
                if by_address and not refusal:
                    answer.append(
                        "set-cookie", f"{self.cookie}={self._token.decode()}; Path=/; HttpOnly; SameSite=Strict"
                    )
            await send(message)

        await (refusal or self._app)(scope, receive, dressed)

    def _refusal(self, scope: Scope, headers: Mapping[str, str]) -> PlainTextResponse | None:
        if headers.get("host", "").lower() not in self._hosts:
            return PlainTextResponse("This page answers to 127.0.0.1 and localhost only.\n", 400)
        given = QueryParams(scope["query_string"]).get("token") or cookie_parser(headers.get("cookie", "")).get(
            self.cookie, ""
        )
        if not self._knows(given):
            return PlainTextResponse(
                "The token is missing or wrong. Open the whole address that `simpletuner dashboard` printed.\n", 401
            )
        if scope["method"] not in ("GET", "HEAD"):
            origin = urlsplit(headers.get("origin", ""))
            if origin.scheme != "http" or origin.netloc.lower() not in self._hosts or "x-simpletuner" not in headers:
                return PlainTextResponse("Only the page itself may ask for that.\n", 403)
        return None

    def _knows(self, given: str) -> bool:
        return hmac.compare_digest(given.encode("utf-8", "surrogateescape"), self._token)
