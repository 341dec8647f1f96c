"""uvicorn and zttp as they are, without what ``server.http`` adds."""

import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final

import uvicorn

from tests.support.http2 import ECHO, Calls, Served, prefixed, running

WAIT: Final = 0.7
"""Seconds, longer than each timeout that a test gives uvicorn."""

BODY: Final = prefixed(b"1")
"""That of a request for ``ECHO``."""


def request(path: bytes = ECHO, body: bytes = BODY, length: int | None = None) -> bytes:
    """Return an HTTP/1.1 request, whose Content-Length may be larger than its body."""
    head = b"POST %b HTTP/1.1\r\nHost: test\r\nContent-Length: %d\r\n\r\n"
    return head % (path, length or len(body)) + body


def plain_config(app: Any, **options: Any) -> uvicorn.Config:
    """Return the configuration of uvicorn with zttp that shows its faults."""
    return uvicorn.Config(
        app,
        http="zttp",
        http2=True,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        **{"timeout_keep_alive": 75, "timeout_graceful_shutdown": 1} | options,
    )


@asynccontextmanager
async def plain(
    app: Any = None, context: ssl.SSLContext | None = None, **options: Any
) -> AsyncIterator[Served]:
    """Serve `Calls`, or another application, with uvicorn and zttp as they are."""
    calls = Calls()
    if context is not None:
        options["ssl_context_factory"] = lambda _config, _default: context
    server = uvicorn.Server(plain_config(app or calls, **options))
    async with running(server) as port:
        try:
            yield Served(calls, port, server, [])
        finally:
            calls.release.set()
            for connection in list(server.server_state.connections):
                connection.transport.abort()


def only_connection(served: Served) -> Any:
    """Return the connection that a server has."""
    (connection,) = served.server.server_state.connections
    return connection
