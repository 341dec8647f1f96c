"""Cross-origin resource sharing: which pages may call from a browser, with which headers.

A browser asks by a preflight whether a page may make a call that no form can make:
https://fetch.spec.whatwg.org/#http-cors-protocol. https://connectrpc.com/docs/cors lists the
headers that Connect, gRPC-Web and gRPC need. Credentials in the sense of CORS are cookies and the
like, which the service does not use, and does not allow; a token is a header that the page sets.
"""

import time
from collections.abc import Callable, Collection
from typing import Final

import structlog
from starlette.datastructures import Headers
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.origins import Origins
from server.rpc.error_encoding import RawHeaders
from server.rpc.interceptors.request_id import REQUEST_ID

_METHODS: Final = ("GET", "POST")
_REQUEST_HEADERS: Final = (
    "Authorization",
    "Connect-Protocol-Version",
    "Connect-Timeout-Ms",
    "Connect-Accept-Encoding",
    "Connect-Content-Encoding",
    "Content-Encoding",
    "Content-Type",
    "Grpc-Timeout",
    "Traceparent",
    "Tracestate",
    "X-Grpc-Web",
    "X-User-Agent",
    REQUEST_ID,
)
# Browsers let pages set these for any origin, within limits; beyond the limits they ask.
# https://fetch.spec.whatwg.org/#cors-safelisted-request-header
_SAFELISTED: Final = ("Accept", "Accept-Language", "Content-Language", "Range")
_RESPONSE_HEADERS: Final = (
    "Connect-Content-Encoding",
    "Grpc-Message",
    "Grpc-Status",
    "Grpc-Status-Details-Bin",
    "WWW-Authenticate",
    REQUEST_ID,
)

_MAX_AGE: Final = 7200  # seconds for which a browser keeps a preflight; Chromium keeps none longer

_LOG_INTERVAL: Final = 60.0  # seconds between two log entries for an origin
_MAX_LOGGED: Final = 100  # origins that are logged in that time; a client can invent any number
_MAX_QUOTED: Final = 200  # characters that are quoted of a header


class CorsMiddleware:
    """ASGI middleware that answers preflights, and says which pages may read a response."""

    def __init__(self, app: ASGIApp, origins: Origins, headers: Collection[str] = ()) -> None:
        """``headers`` are those that pages may send besides the headers of the protocols."""
        self._app = app
        self._origins = origins
        allowed = sorted({*_REQUEST_HEADERS, *_SAFELISTED, *headers}, key=str.lower)
        self._names = {name.lower() for name in allowed}
        self._preflight = {
            "Access-Control-Allow-Methods": ", ".join(_METHODS),
            "Access-Control-Allow-Headers": ", ".join(allowed),
            "Access-Control-Max-Age": str(_MAX_AGE),
        }
        self._exposed = (
            b"access-control-expose-headers",
            ", ".join(_RESPONSE_HEADERS).encode(),
        )
        self._refusals = RecentKeys(_LOG_INTERVAL, _MAX_LOGGED)
        self._log = structlog.get_logger().bind()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a preflight, and hand other requests on."""
        # Without ``Headers``: most requests are of no page, and are to cost next to nothing.
        raw_origin = dict(scope.get("headers", ())).get(b"origin")
        origin = None if raw_origin is None else raw_origin.decode("latin-1")
        if origin is not None and scope.get("method") == "OPTIONS":
            headers = Headers(scope=scope)
            if (method := headers.get("access-control-request-method")) is not None:
                await self._answer(origin, method, headers)(scope, receive, send)
                return
        added = self._response_headers(origin)
        if not added:
            await self._app(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message.get("headers", ()), *added]}
            await send(message)

        await self._app(scope, receive, send_with_headers)

    def _response_headers(self, origin: str | None) -> RawHeaders:
        """Return the headers of a response to a page of ``origin``, or without one to others."""
        headers = [] if self._origins.has_all or not self._origins else [(b"vary", b"Origin")]
        if origin is not None and origin in self._origins:
            headers.append((b"access-control-allow-origin", self._allowed(origin).encode()))
            headers.append(self._exposed)
        return headers

    def _answer(self, origin: str, method: str, headers: Headers) -> PlainTextResponse:
        """Return the answer to a preflight.

        A page of an allowed origin gets what is allowed, with a status of success, also where it
        asks for more: only so does the browser's console name the method or header.
        """
        sent = {"Vary": "Origin"}
        if origin not in self._origins:
            reason = f"origin {origin[:_MAX_QUOTED]} is not in LISTINGS_CORS_ORIGINS"
            return PlainTextResponse(self._refused(origin, reason), 400, sent)
        sent |= self._preflight | {"Access-Control-Allow-Origin": self._allowed(origin)}
        # From a page that was loaded from a public address to a private one:
        # https://wicg.github.io/private-network-access/#cors-preflight
        if "access-control-request-private-network" in headers:
            sent["Access-Control-Allow-Private-Network"] = "true"
        requested = ",".join(headers.getlist("access-control-request-headers")).split(",")
        names = {name.strip().lower() for name in requested} - {""}
        if method not in _METHODS:
            reason = f"method {method[:_MAX_QUOTED]} is not one of {', '.join(_METHODS)}"
        elif others := ", ".join(sorted(names - self._names)):
            reason = f"not in LISTINGS_CORS_HEADERS: {others[:_MAX_QUOTED]}"
        else:
            return PlainTextResponse("OK\n", headers=sent)
        return PlainTextResponse(self._refused(origin, reason), headers=sent)

    def _allowed(self, origin: str) -> str:
        return "*" if self._origins.has_all else origin

    def _refused(self, origin: str, reason: str) -> str:
        """Log that a preflight is refused, and return it as a text."""
        if self._refusals.add(origin := origin[:_MAX_QUOTED]):
            self._log.info("CORS preflight refused", origin=origin, reason=reason)
        return f"CORS preflight refused: {reason}\n"


class RecentKeys:
    """Keys that were added in the last seconds, up to a number of them."""

    def __init__(
        self, seconds: float, most: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._seconds = seconds
        self._most = most
        self._clock = clock
        self._added: dict[str, float] = {}  # when, the oldest first

    def add(self, key: str) -> bool:
        """Return False, and do nothing, if ``key`` is among them or there are too many."""
        now = self._clock()
        while self._added and next(iter(self._added.values())) <= now - self._seconds:
            del self._added[next(iter(self._added))]
        if key in self._added or len(self._added) >= self._most:
            return False
        self._added[key] = now
        return True
