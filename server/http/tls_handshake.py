"""TLS handshakes: what a connection is before anything is known of it."""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import Callable
from typing import Any, ClassVar

from uvicorn.server import ServerState
from uvloop.loop import SSLProtocol  # type: ignore[attr-defined]

from server.http.negotiation import OnePortProtocol

_log = logging.getLogger(__name__)


class HandshakeProtocol(asyncio.Protocol):
    """Lets a protocol have each connection that comes once it is secure.

    uvloop can do that by itself, and does it in the same way. But then nobody knows of those who
    are about to come, for whom the end of the process waits, nor of what is waiting to be sent.
    """

    context: ClassVar[Any]
    protocol: ClassVar[type[OnePortProtocol]]

    @classmethod
    def before(
        cls, protocol: type[OnePortProtocol], context: Callable[[], ssl.SSLContext]
    ) -> type[HandshakeProtocol]:
        """Return this protocol for a server whose connections are then handed to ``protocol``.

        ``context`` returns what each handshake uses, at its beginning.
        """
        own = {"protocol": protocol, "context": staticmethod(context)}
        return type(cls.__name__, (cls,), own)

    def __init__(
        self,
        server_state: ServerState,
        _loop: asyncio.AbstractEventLoop | None = None,
        **options: Any,
    ) -> None:
        self.loop = _loop or asyncio.get_running_loop()
        self.connections = server_state.connections
        self.next = self.protocol(server_state=server_state, _loop=self.loop, **options)

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin the handshake."""
        self.transport = self.wire = self.next.below_tls = transport
        self.connections.add(self)  # type: ignore[arg-type]
        over = self.loop.create_future()
        over.add_done_callback(self._over)
        tls = SSLProtocol(self.loop, self.next, self.context(), over, server_side=True)
        transport.set_protocol(tls)
        tls.connection_made(transport)

    def is_half(self) -> bool:
        """Whether the client is waited for, which it always is."""
        return True

    def end_half(self) -> None:
        """End the connection because the handshake takes too long."""
        self.wire.abort()

    def shutdown(self) -> None:
        """End the connection because the server stops."""
        self.wire.abort()

    def _over(self, over: asyncio.Future[None]) -> None:
        self.connections.discard(self)
        if error := over.exception():
            _log.debug("a TLS handshake has failed: %s", error)
