"""The interfaces between a connection and what may answer an HTTP/2 request before the application.

``Reject`` is called first, and answers with headers alone. ``Answer`` is called next, and may take
the request over; then the connection treats the ``Exchange`` that it returns as it treats one of
the application's:

1. It keeps the exchange in ``cycles`` under its stream id.
2. It appends received DATA to ``body``, clears ``more_body`` at END_STREAM, and sets
   ``disconnected`` when the client resets the stream or the connection is lost. After each of these
   it calls ``message_event.set()``.
3. The exchange sends its response through ``stream``, calls ``flush`` and ``sent``, and at last
   ``on_response_complete``. Or it calls ``hand_over`` before it has sent anything, and the
   application answers in its place.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Protocol, TypeAlias

import zttp
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.server import ServerState

Reject: TypeAlias = Callable[[zttp.Request], list[tuple[bytes, bytes]] | None]
"""Returns the header fields of a response with status 200 and no body, or None to go on."""


class Notified(Protocol):
    """Receives a notification of each change of an exchange, as an ``asyncio.Event`` does."""

    def set(self) -> None:
        """Act upon the change."""


class Exchange(Protocol):
    """A request and its response on an HTTP/2 stream; uvicorn's ``RequestResponseCycle`` is one."""

    body: bytearray
    """Received and not yet consumed. Above 64 KiB, the whole connection stops reading: an exchange
    takes what is there, and calls ``resume_reading_if_idle``."""
    more_body: bool
    """Whether the request is not complete."""
    disconnected: bool
    """Whether the client cannot receive a response any more."""
    response_started: bool
    response_complete: bool

    @property
    def stream(self) -> zttp.Stream:
        """The stream that carries it."""

    @property
    def message_event(self) -> Notified:
        """Set after each change of ``body``, ``more_body`` or ``disconnected``."""


class H2Connection(Protocol):
    """The side of an HTTP/2 connection that an ``Answer`` and its exchange may use."""

    client_address: str | None
    """Host and port."""

    @property
    def conn(self) -> zttp.H2Connection:
        """The protocol engine. What it queues is sent by ``flush``."""

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """The event loop that serves the connection."""

    @property
    def transport(self) -> asyncio.Transport:
        """The connection's transport, above TLS."""

    @property
    def scheme(self) -> str | None:
        """``http`` or ``https``."""

    @property
    def flow(self) -> FlowControl:
        """Whether the transport's write buffer is full, and whether reading has stopped."""

    @property
    def tasks(self) -> set[asyncio.Task[None]]:
        """The tasks that a drain waits for. An exchange adds its own, and removes it at the end."""

    @property
    def server_state(self) -> ServerState:
        """Its ``default_headers`` belong to every response."""

    @property
    def logger(self) -> logging.Logger:
        """The server's logger."""

    def resume_reading_if_idle(self) -> None:
        """Read on, unless another exchange has too much that is not consumed."""

    def flush(self) -> None:
        """Write what the engine has queued."""

    def sent(self, exchange: Exchange, size: int) -> int:
        """Count ``size`` bytes of a response. Returns how many wait for flow control."""

    async def wait_until_read(self, exchange: Exchange) -> None:
        """Wait while too much of a response is unsent, and its client can still read it."""

    def hand_over(self, request: zttp.Request, exchange: Exchange) -> None:
        """Run the application for ``request``, with the body that ``exchange`` has received."""

    def on_response_complete(self, stream_id: int) -> None:
        """End the exchange of a stream."""


class Answer(Protocol):
    """Begins an exchange in place of the application."""

    def __call__(self, connection: H2Connection, request: zttp.Request, /) -> Exchange | None:
        """Return the exchange that answers ``request``, or None to let the application answer."""
