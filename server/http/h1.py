"""HTTP/1.1 connections: uvicorn's, with bounds on what a client may send.

Without them, what arrives while a request is answered is kept by zttp, up to 8 MiB a connection;
the rest of a body is read without end once its request has been answered; and an incomplete request
stays open for ever.

A response may begin before the body of its request has been received, as one of 401. The rest of a
short body is read and discarded, and the connection goes on. After one that may be long the
connection ends, and the response says so: the client would send its next request on a connection
that is not read any more.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, TypeAlias, cast

import zttp
from uvicorn._types import ASGISendEvent
from uvicorn.protocols.http.zttp_impl import RequestResponseCycle, ZttpProtocol

from server.http.joined_writes import JoinedWrites
from server.http.limits import Limits

# RFC 9110, section 15.5.9
_REQUEST_TIMEOUT = b"HTTP/1.1 408 Request Timeout\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"

Send: TypeAlias = Callable[[ASGISendEvent], Awaitable[None]]


class H1Protocol(ZttpProtocol):
    """uvicorn's HTTP/1.1 server protocol with ``Limits``."""

    def __init__(
        self, *args: Any, limits: Limits, tcp_transport: asyncio.Transport, **options: Any
    ) -> None:
        """``tcp_transport`` carries the connection, or its TLS; the rest is uvicorn's."""
        super().__init__(*args, **options)
        self.tcp_transport = tcp_transport
        self._limits = limits
        self._is_ending = False  # input is discarded, and the connection closes soon
        self._read_ahead = bytearray()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Wait for a request."""
        super().connection_made(cast(asyncio.Transport, JoinedWrites(transport, self.loop)))

    def data_received(self, data: bytes) -> None:
        """Act upon ``data``: a part of a request, or of what follows it."""
        if self._is_ending:
            return
        if self._is_answering():
            # Works around zttp, which keeps 8 MiB. Reading does not pause: that would hide the
            # client's disconnect.
            self._read_ahead += data
            if len(self._read_ahead) > self._limits.max_read_ahead:
                self.transport.abort()
        elif self._is_answered_early():
            self._discard_body(data)
        else:
            super().data_received(data)

    def handle_events(self, event: zttp.Event) -> None:
        """Act upon what zttp has parsed."""
        before = self.cycle
        try:
            super().handle_events(event)
            if self.cycle is not before and self.cycle.more_body:
                # uvicorn has made the cycle, and runs the application with its ``send`` later.
                self.cycle.send = partial(  # type: ignore[method-assign]
                    self._send, self.cycle, self.cycle.send
                )
        except UnicodeDecodeError:
            # Works around uvicorn: it decodes the path as ASCII, and zttp accepts other bytes.
            self.handle_remote_protocol_error()

    def send_400_response(self, msg: str) -> None:
        """Answer a malformed request, and close the connection."""
        try:
            super().send_400_response(msg)
        except zttp.LocalProtocolError:
            # Works around uvicorn: it sends a body, and zttp refuses one in a response to HEAD.
            self.transport.write(self.conn.data_to_send())
            self.transport.close()

    def on_response_complete(self) -> None:
        """Go on with what has arrived while the request was answered."""
        super().on_response_complete()
        if self._is_ending:
            self._unset_keepalive_if_required()
        elif self._read_ahead and not self._is_answering() and not self.transport.is_closing():
            data, self._read_ahead = bytes(self._read_ahead), bytearray()
            super().data_received(data)

    def incomplete(self) -> object | None:
        """Return what identifies the request whose rest has not arrived, or None without one."""
        if self._is_ending:
            return None
        if self.cycle is not None and not self.cycle.response_complete:
            waits = self.cycle.more_body and not self.cycle.response_started
        else:
            # What has arrived cancelled the keep-alive timer, and was neither a complete head nor
            # the complete rest of a body.
            waits = self.timeout_keep_alive_task is None
        return (self.cycle or self) if waits else None

    def end_incomplete(self) -> None:
        """Close the connection because the rest of a request does not arrive in time.

        Works around uvicorn, which has no timeout for it. The response is 408, unless the request
        has been answered.
        """
        if not self._is_answered_early():
            if self.cycle is not None:
                self.cycle.disconnected = True
                self.cycle.message_event.set()
            self.transport.write(_REQUEST_TIMEOUT)
        self._close_after_delay()

    async def _send(self, cycle: RequestResponseCycle, send: Send, message: ASGISendEvent) -> None:
        """Send a part of a response; one that begins early may be the last of its connection."""
        if message["type"] == "http.response.start" and cycle.more_body:
            # uvicorn closes this transport after the last response.
            cycle.transport = _DelayedClose(self)  # type: ignore[assignment]
            if not self._may_discard_body(cycle):
                # Works around uvicorn, which reads the rest of such a body without end.
                headers = [*message.get("headers", ()), (b"connection", b"close")]
                message = {**message, "headers": headers}
        await send(message)

    def _may_discard_body(self, cycle: RequestResponseCycle) -> bool:
        """Whether the rest of a body is known to come, and to be within the limit."""
        if cycle.waiting_for_100_continue:
            return False
        length = dict(cycle.scope["headers"]).get(b"content-length", b"")
        return length.isdigit() and int(length) <= self._limits.max_read_ahead

    def close_after_response(self) -> None:
        """Close the connection: at once, unless the client is still sending the request."""
        if self.cycle.more_body:
            self._close_after_delay()
        else:
            self.transport.close()

    def _close_after_delay(self) -> None:
        """Close the connection once the client has had time to read the response."""
        self._is_ending = True
        self._unset_keepalive_if_required()
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self.loop.call_later(self._limits.close_delay, self.transport.close)

    def _discard_body(self, data: bytes) -> None:
        cycle = self.cycle
        super().data_received(data)
        if self.cycle is cycle and not cycle.more_body and self.timeout_keep_alive_task is None:
            # Works around uvicorn, which sets no keep-alive timer here: the connection is idle.
            self.timeout_keep_alive_task = self.loop.call_later(
                self.timeout_keep_alive, self.timeout_keep_alive_handler
            )

    def _is_answering(self) -> bool:
        """Whether a request is complete and its response is not."""
        return self.cycle is not None and not (self.cycle.more_body or self.cycle.response_complete)

    def _is_answered_early(self) -> bool:
        """Whether the response is complete and the request is not."""
        return self.cycle is not None and self.cycle.response_complete and self.cycle.more_body


class _DelayedClose:
    """The transport of a cycle whose response begins before its request is complete."""

    def __init__(self, connection: H1Protocol) -> None:
        self._connection = connection
        self.write = connection.transport.write
        self.is_closing = connection.transport.is_closing

    def close(self) -> None:
        """Close the connection, so that the client can read the response first."""
        self._connection.close_after_response()
