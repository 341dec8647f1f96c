"""HTTP/1.1 and HTTP/2 on one port: which of them a new connection speaks."""

from __future__ import annotations

import asyncio
from typing import Any, ClassVar

from uvicorn.protocols.http.auto_zttp_impl import AutoZttpProtocol

from server.http.h1 import BoundedH1Protocol
from server.http.h2 import RecyclingH2Protocol, TurnAway
from server.http.h2_flow import Direct


class OnePortProtocol(AutoZttpProtocol):
    """HTTP/1.1 and HTTP/2 on one port, for ``uvicorn.Config(app, http=OnePortProtocol)``.

    HTTP/2 is chosen by its preface. A client that was offered it by ALPN over TLS begins with it as
    well, so it needs no other treatment, and one that knows no ALPN may speak it all the same.
    """

    h1_protocol: ClassVar[type[BoundedH1Protocol]] = BoundedH1Protocol
    h2_protocol: ClassVar[type[RecyclingH2Protocol]] = RecyclingH2Protocol
    turn_away: ClassVar[TurnAway | None] = None
    direct: ClassVar[Direct | None] = None

    below_tls: asyncio.Transport | None = None
    """The transport that carries TLS, if this is a connection over TLS."""

    @classmethod
    def of(
        cls, turn_away: TurnAway, direct: Direct | None, max_request_bytes: int
    ) -> type[OnePortProtocol]:
        """Return this protocol for an application.

        ``turn_away`` has a word for HTTP/2 requests that do not need the application, and
        ``direct`` for those that can do without ASGI. Over HTTP/1.1, a request of
        ``max_request_bytes`` may come ahead of the answer to another.
        """
        most_ahead = cls.h1_protocol.most_ahead + max_request_bytes
        h1_protocol = type(cls.h1_protocol.__name__, (cls.h1_protocol,), {"most_ahead": most_ahead})
        own: dict[str, Any] = {
            "turn_away": staticmethod(turn_away),
            "direct": None if direct is None else staticmethod(direct),
            "h1_protocol": h1_protocol,
        }
        return type(cls.__name__, (cls,), own)

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Wait for the first bytes."""
        self.transport = transport
        self.connections.add(self)
        self.timeout_task = self.loop.call_later(self.config.timeout_keep_alive, transport.close)

    @property
    def wire(self) -> asyncio.Transport:
        """The transport that carries what is sent, encrypted or not."""
        return self.below_tls or self.transport

    def is_half(self) -> bool:
        """Whether something has come, and does not tell yet what the connection speaks."""
        return bool(self.buffer)

    def end_half(self) -> None:
        """End the connection because it does not tell."""
        self.transport.close()

    def _switch(self, http2: bool, initial_data: bytes = b"") -> None:
        protocol_class = self.h2_protocol if http2 else self.h1_protocol
        protocol = protocol_class(
            config=self.config,
            server_state=self.server_state,
            app_state=self.app_state,
            _loop=self.loop,
        )
        if isinstance(protocol, RecyclingH2Protocol):
            protocol.turn_away = type(self).turn_away
            protocol.direct = type(self).direct
        protocol.wire = self.wire
        self.transport.set_protocol(protocol)
        protocol.connection_made(self.transport)
        if initial_data:
            protocol.data_received(initial_data)
