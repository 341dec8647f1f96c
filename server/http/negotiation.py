"""A connection until its first bytes show whether it speaks HTTP/1.1 or HTTP/2."""

from __future__ import annotations

import asyncio
from typing import Any, Final

from uvicorn.protocols.http.auto_zttp_impl import AutoZttpProtocol

from server.http.h1 import H1Protocol
from server.http.h2 import H2Protocol
from server.http.hooks import Answer, Reject
from server.http.limits import Limits

ALPN_PROTOCOLS: Final = ("h2", "http/1.1")
"""What a server offers by ALPN (RFC 7301) in its ``ssl.SSLContext``, in order of preference."""


class NegotiationProtocol(AutoZttpProtocol):
    """Hands a connection to ``H2Protocol`` if it begins with HTTP/2's preface, else to H1Protocol.

    A client that has chosen HTTP/2 by ALPN begins with the preface as well (RFC 9113, section 3.4).
    Works around uvicorn, which goes by ALPN alone over TLS: a client that knows no ALPN may speak
    HTTP/2 nevertheless.
    """

    def __init__(
        self,
        *args: Any,
        limits: Limits,
        reject: Reject | None = None,
        answer: Answer | None = None,
        tcp_transport: asyncio.Transport | None = None,
        **options: Any,
    ) -> None:
        """``tcp_transport`` is the one that carries TLS, if there is TLS; the rest is uvicorn's."""
        super().__init__(*args, **options)
        self._limits = limits
        self._reject = reject
        self._answer = answer
        self._below_tls = tcp_transport

    @property
    def tcp_transport(self) -> asyncio.Transport:
        """The transport that carries the connection, or its TLS."""
        return self._below_tls or self.transport

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Wait for the first bytes."""
        self.transport = transport
        self.connections.add(self)

    def incomplete(self) -> object | None:
        """Return what identifies the first bytes, which are always incomplete."""
        return self

    def end_incomplete(self) -> None:
        """Close the connection because its first bytes do not arrive in time."""
        self.transport.close()

    def _switch(self, http2: bool, initial_data: bytes = b"") -> None:
        options: dict[str, Any] = {
            "config": self.config,
            "server_state": self.server_state,
            "app_state": self.app_state,
            "_loop": self.loop,
            "limits": self._limits,
            "tcp_transport": self.tcp_transport,
        }
        protocol: H1Protocol | H2Protocol
        if http2:
            protocol = H2Protocol(reject=self._reject, answer=self._answer, **options)
        else:
            protocol = H1Protocol(**options)
        self.transport.set_protocol(protocol)
        protocol.connection_made(self.transport)
        if initial_data:
            protocol.data_received(initial_data)
