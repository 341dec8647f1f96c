"""A connection until its TLS handshake is over."""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import Callable
from functools import partial
from typing import Any

from uvicorn.server import ServerState
from uvloop.loop import SSLProtocol  # type: ignore[attr-defined]

_log = logging.getLogger(__name__)


class TLSHandshakeProtocol(asyncio.Protocol):
    """Hands each connection to another protocol once it is secure.

    Works around uvloop, which can do that by itself, and does it in the same way. But then the
    server does not know of handshakes under way, which a drain waits for, nor of encrypted bytes
    that wait to be sent.
    """

    def __init__(
        self,
        *,
        context: Callable[[], ssl.SSLContext],
        protocol: Callable[..., asyncio.Protocol],
        server_state: ServerState,
        _loop: asyncio.AbstractEventLoop | None = None,
        **options: Any,
    ) -> None:
        """``context`` is called at the beginning of each handshake.

        ``protocol`` makes the next protocol of uvicorn's arguments and ``tcp_transport``.
        """
        self.loop = _loop or asyncio.get_running_loop()
        self.connections = server_state.connections
        self._context = context
        self._next = partial(protocol, server_state=server_state, _loop=self.loop, **options)

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin the handshake."""
        self.transport = self.tcp_transport = transport
        self.connections.add(self)  # type: ignore[arg-type]
        done = self.loop.create_future()
        done.add_done_callback(self._done)
        secure = self._next(tcp_transport=transport)
        tls = SSLProtocol(self.loop, secure, self._context(), done, server_side=True)
        transport.set_protocol(tls)
        tls.connection_made(transport)

    def incomplete(self) -> object | None:
        """Return what identifies the handshake, which is always incomplete."""
        return self

    def end_incomplete(self) -> None:
        """Close the connection because the handshake takes too long."""
        self.tcp_transport.abort()

    def shutdown(self) -> None:
        """Close the connection because the server stops."""
        self.tcp_transport.abort()

    def _done(self, done: asyncio.Future[None]) -> None:
        self.connections.discard(self)
        if error := done.exception():
            _log.debug("TLS handshake failed: %s", error)
