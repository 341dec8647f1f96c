"""The application as an ASGI server hosts it that is not ours: what ``serve`` does around it."""

import structlog
from starlette.datastructures import MutableHeaders
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from starlette.websockets import WebSocketClose

from server.addresses import is_loopback
from server.process.parts import RESPONSE_HEADERS
from server.settings import variable


class Hosted:
    """ASGI middleware that adds the headers of all responses and keeps to loopback addresses."""

    def __init__(self, app: ASGIApp, *, loopback_only: bool) -> None:
        """``loopback_only`` answers requests to other addresses with 403."""
        self._app = app
        self._loopback_only = loopback_only

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass an HTTP request on, unless it is refused. A WebSocket is always refused."""
        if scope["type"] == "websocket":
            await WebSocketClose()(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                message.setdefault("headers", [])
                MutableHeaders(scope=message).update(RESPONSE_HEADERS)
            await send(message)

        # A pipelined request may run in the context of the request before it.
        structlog.contextvars.clear_contextvars()
        app = self._app
        if self._loopback_only and not _is_local(scope.get("server")):
            app = PlainTextResponse(
                f"without {variable('jwks')}, requests are served on loopback addresses only\n", 403
            )
        await app(scope, receive, send_with_headers)


def _is_local(server: tuple[str, int | None] | None) -> bool:
    """Return whether the address that a request came to is one of this machine alone.

    https://asgi.readthedocs.io/en/latest/specs/www.html#http-connection-scope: ``server`` is None
    when it is not known, and the path of a Unix socket without a port. A name does not count: an
    adapter may have it from the header Host.
    """
    if server is None:
        return False
    host, port = server
    if port is None:
        return host.startswith("/")
    return is_loopback(host)
