"""HTTP/1.1 connections whose client may not send without bound, or without end.

What comes while a request is answered is kept, and zttp would keep 8 MiB of it; a thousand
connections could make that 8 GiB. And once a request has been answered before its body was whole,
the rest of the body is read for nobody: then the connection ends.
"""

from typing import Any, ClassVar

import zttp
from uvicorn.protocols.http.zttp_impl import ZttpProtocol


class BoundedH1Protocol(ZttpProtocol):
    """uvicorn's HTTP/1.1 server protocol, with an end to what a client may send."""

    most_ahead: ClassVar[int] = 64 * 1024
    """Bytes that may come before the request before them has been answered."""

    linger: ClassVar[float] = 2.0
    """Seconds for a client to notice an answer while it still sends the request.

    RFC 9112, section 9.6: closed at once, a connection may be reset before the answer is read.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._ahead = bytearray()
        self.lingers = False
        """Whether it is about to end, and what comes is not read any more."""

    def data_received(self, data: bytes) -> None:
        """Act upon ``data``: a part of a request, or of what follows it."""
        if self.lingers:
            return
        if not self._answers():
            super().data_received(data)
            return
        # It is read, and not left in the socket: nobody would notice that the client goes away.
        self._ahead += data
        if len(self._ahead) > self.most_ahead:
            self.transport.abort()

    def handle_events(self, event: zttp.Event) -> None:
        """Act upon what zttp has read."""
        try:
            super().handle_events(event)
        except UnicodeDecodeError:  # uvicorn decodes the path as ASCII, zttp lets others through
            self.handle_remote_protocol_error()

    def on_response_complete(self) -> None:
        """Go on with what has come meanwhile."""
        super().on_response_complete()
        if self.transport.is_closing():
            return
        if self.cycle.response_complete and self.cycle.more_body:
            self.lingers = True
            self._unset_keepalive_if_required()
            if self.transport.can_write_eof():
                self.transport.write_eof()
            self.loop.call_later(self.linger, self.transport.close)
        elif self._ahead and not self._answers():
            ahead, self._ahead = bytes(self._ahead), bytearray()
            super().data_received(ahead)

    def _answers(self) -> bool:
        """Whether a request is complete and its answer is not."""
        return self.cycle is not None and not (self.cycle.more_body or self.cycle.response_complete)
