"""HTTP/1.1 connections whose client may not send ahead without bound.

zttp keeps what comes in while a request is answered, up to 8 MiB of it; a thousand connections
could make that 8 GiB.
"""

from typing import ClassVar

from uvicorn.protocols.http.zttp_impl import ZttpProtocol


class BoundedH1Protocol(ZttpProtocol):
    """uvicorn's HTTP/1.1 server protocol, which ends a connection that sends too far ahead."""

    most_ahead: ClassVar[int] = 64 * 1024
    """Bytes that may come before the request before them has been answered."""

    _ahead = 0

    def data_received(self, data: bytes) -> None:
        """Act upon ``data``: a part of a request, or of what follows it."""
        if self._answers():
            self._ahead += len(data)
            if self._ahead > self.most_ahead:
                # Not paused until then: nobody would notice that the client goes away.
                self.transport.abort()
                return
        else:
            self._ahead = 0
        super().data_received(data)

    def _answers(self) -> bool:
        """Whether a request is complete and its answer is not."""
        return self.cycle is not None and not (self.cycle.more_body or self.cycle.response_complete)
