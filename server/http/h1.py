"""HTTP/1.1 connections whose client may not send without bound, or without end.

What comes while a request is answered is kept, and zttp would keep 8 MiB of it; a thousand
connections could make that 8 GiB. And once a request has been answered before its body was whole,
the rest of the body is read for nobody, so there may not be much of it.
"""

import asyncio
from typing import Any, ClassVar

import zttp
from uvicorn.protocols.http.zttp_impl import ZttpProtocol

# RFC 9110, section 15.5.9
_REQUEST_TIMEOUT = b"HTTP/1.1 408 Request Timeout\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"


class BoundedH1Protocol(ZttpProtocol):
    """uvicorn's HTTP/1.1 server protocol, with an end to what a client may send."""

    most_ahead: ClassVar[int] = 64 * 1024
    """Bytes that may come before the request before them has been answered, and of a body after."""

    linger: ClassVar[float] = 2.0
    """Seconds for a client to notice that the connection ends, while it still sends.

    RFC 9112, section 9.6: closed at once, it may be reset before the last answer is read.
    """

    wire: asyncio.Transport
    """The transport that carries what is sent: the one below TLS, or the connection's own."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._lingers = False  # about to end, and not acting upon what comes any more
        self._ahead = bytearray()
        self._for_nobody = 0

    def data_received(self, data: bytes) -> None:
        """Act upon ``data``: a part of a request, or of what follows it."""
        if self._lingers:
            return
        if self._answers():
            # It is read, and not left in the socket: nobody would notice that the client goes away.
            self._ahead += data
            if len(self._ahead) > self.most_ahead:
                self.transport.abort()
        elif self._is_answered_early():
            self._for_nobody += len(data)
            if self._for_nobody > self.most_ahead:
                self._end_soon()
            else:
                self._take_rest(data)
        else:
            super().data_received(data)

    def handle_events(self, event: zttp.Event) -> None:
        """Act upon what zttp has read."""
        try:
            super().handle_events(event)
        except UnicodeDecodeError:  # uvicorn decodes the path as ASCII, zttp lets others through
            self.handle_remote_protocol_error()

    def send_400_response(self, msg: str) -> None:
        """Say that a request is none, and end the connection."""
        try:
            super().send_400_response(msg)
        except zttp.LocalProtocolError:  # after the head: an answer to HEAD has no body
            self.transport.write(self.conn.data_to_send())
            self.transport.close()

    def on_response_complete(self) -> None:
        """Go on with what has come meanwhile."""
        super().on_response_complete()
        self._for_nobody = 0
        if self._ahead and not self._answers() and not self.transport.is_closing():
            ahead, self._ahead = bytes(self._ahead), bytearray()
            super().data_received(ahead)

    def is_half(self) -> bool:
        """Whether a part of a request has come, and is waited for the rest."""
        if self._lingers:
            return False
        if self.cycle is not None and not self.cycle.response_complete:
            return self.cycle.more_body and not self.cycle.response_started
        # What has come stops the timer for an idle connection, and was not a whole head, or the
        # whole rest of a body.
        return self.timeout_keep_alive_task is None

    def end_half(self) -> None:
        """End the connection because a request does not become whole."""
        if not self._is_answered_early():
            if self.cycle is not None:
                self.cycle.disconnected = True
                self.cycle.message_event.set()
            self.transport.write(_REQUEST_TIMEOUT)
        self._end_soon()

    def _end_soon(self) -> None:
        """End the connection once its client has had time to read what was sent."""
        self._lingers = True
        self._unset_keepalive_if_required()
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self.loop.call_later(self.linger, self.transport.close)

    def _take_rest(self, data: bytes) -> None:
        cycle = self.cycle
        super().data_received(data)
        if self.cycle is cycle and not cycle.more_body and self.timeout_keep_alive_task is None:
            # The connection is idle from now on, which uvicorn does not notice.
            self.timeout_keep_alive_task = self.loop.call_later(
                self.timeout_keep_alive, self.timeout_keep_alive_handler
            )

    def _answers(self) -> bool:
        """Whether a request is complete and its answer is not."""
        return self.cycle is not None and not (self.cycle.more_body or self.cycle.response_complete)

    def _is_answered_early(self) -> bool:
        """Whether a request was answered that is not whole yet."""
        return self.cycle is not None and self.cycle.response_complete and self.cycle.more_body
