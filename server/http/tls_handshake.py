"""A connection until its TLS handshake is over."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import ssl
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any, Final

from uvicorn.server import ServerState
from uvloop.loop import SSLProtocol  # type: ignore[attr-defined]

_ALERT_TIMEOUT: Final = 1.0  # seconds for a client to read why its handshake failed
_MAX_CLOSING: Final = 64  # descriptors that are kept for that

_log = logging.getLogger(__name__)


class HandshakeFailures:
    """Counts handshakes that fail, so that they are logged together: there may be a flood."""

    def __init__(self) -> None:
        self._count = 0
        self._last = ""
        self._closing: deque[tuple[int, asyncio.TimerHandle]] = deque()

    def add(self, peer: object, reason: str) -> None:
        """Count a handshake of ``peer``, an address of the socket."""
        self._count += 1
        host, port = peer[:2] if isinstance(peer, tuple) else (peer, "")
        self._last = f"{f'[{host}]' if ':' in str(host) else host}:{port}: {reason}"

    def close_later(self, descriptor: int, loop: asyncio.AbstractEventLoop) -> None:
        """Close a socket when its client has had time to read why, or when there are too many."""
        if len(self._closing) == _MAX_CLOSING:
            self._closing[0][1].cancel()
            self._close_first()
        timer = loop.call_later(_ALERT_TIMEOUT, self._close_first)
        self._closing.append((descriptor, timer))

    def _close_first(self) -> None:
        descriptor, _ = self._closing.popleft()
        os.close(descriptor)

    def log(self) -> None:
        """Log how many have failed since the last call, and why the last one did."""
        if self._count:
            _log.info("TLS handshakes failed: %d, the last of %s", self._count, self._last)
            self._count = 0


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
        failures: HandshakeFailures,
        server_state: ServerState,
        _loop: asyncio.AbstractEventLoop | None = None,
        **options: Any,
    ) -> None:
        """``context`` is called at the beginning of each handshake.

        ``protocol`` makes the next protocol of uvicorn's arguments and ``tcp_transport``.
        ``failures`` counts the handshakes that fail.
        """
        self.loop = _loop or asyncio.get_running_loop()
        self.connections = server_state.connections
        self._context = context
        self._failures = failures
        self._next = partial(protocol, server_state=server_state, _loop=self.loop, **options)

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin the handshake."""
        self.transport = self.tcp_transport = transport
        self._peer = transport.get_extra_info("peername")
        self.connections.add(self)  # type: ignore[arg-type]
        done = self.loop.create_future()
        done.add_done_callback(self._done)
        secure = self._next(tcp_transport=transport)
        context = _Context(self._context(), self._send_alert)
        tls = SSLProtocol(self.loop, secure, context, done, server_side=True)
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

    def _send_alert(self, alert: bytes) -> None:
        """Send OpenSSL's last output, before uvloop closes the connection.

        A second descriptor keeps the connection until the client has had time to read it: what the
        client still sends would make the kernel reset a connection that is closed.
        """
        with suppress(OSError):  # the client may have gone; or there is no descriptor left
            own = os.dup(self.transport.get_extra_info("socket").fileno())
            self._failures.close_later(own, self.loop)
            connection = socket.socket(fileno=own)
            try:
                connection.send(alert)
                connection.shutdown(socket.SHUT_WR)
            finally:
                connection.detach()

    def _done(self, done: asyncio.Future[None]) -> None:
        self.connections.discard(self)
        error = done.exception()
        if isinstance(error, ssl.SSLError):  # not of a client that goes away
            self._failures.add(self._peer, _reason(error))
        elif error:
            _log.debug("TLS handshake failed: %s", error)


class _Context:
    """What ``SSLProtocol`` uses of an ``ssl.SSLContext``.

    Works around uvloop, which closes a connection whose handshake fails without OpenSSL's last
    output: a client whose certificate is missing or refused gets no alert (RFC 8446, section 6.2).
    """

    def __init__(self, context: ssl.SSLContext, send_alert: Callable[[bytes], None]) -> None:
        self._context = context
        self._send_alert = send_alert

    def wrap_bio(
        self, incoming: ssl.MemoryBIO, outgoing: ssl.MemoryBIO, **options: Any
    ) -> _Handshake:
        return _Handshake(
            self._context.wrap_bio(incoming, outgoing, **options), outgoing, self._send_alert
        )


class _Handshake:
    """An ``ssl.SSLObject`` that hands its alert over when the handshake fails."""

    def __init__(
        self, tls: ssl.SSLObject, outgoing: ssl.MemoryBIO, send_alert: Callable[[bytes], None]
    ) -> None:
        self._tls = tls
        self._outgoing = outgoing
        self._send_alert = send_alert

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tls, name)

    def do_handshake(self) -> None:
        try:
            self._tls.do_handshake()
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            raise
        except ssl.SSLError:
            if alert := self._outgoing.read():
                self._send_alert(alert)
            raise


def _reason(error: ssl.SSLError) -> str:
    """Return OpenSSL's reason in words, and what it found about a client's certificate."""
    reason = (error.reason or type(error).__name__).lower().replace("_", " ")
    found = getattr(error, "verify_message", "")
    return f"{reason}: {found}" if found else reason
