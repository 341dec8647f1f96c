"""HTTP/2 streams: uvicorn's, with backpressure, and with hooks in place of the application.

zttp keeps the part of a response that exceeds the client's flow-control window (RFC 9113, section
5.2), without a limit, and uvicorn does not ask how much that is. Here the application's ``send``
waits for it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, TypeAlias, cast

import zttp
from uvicorn._types import ASGISendEvent
from uvicorn.protocols.http.zttp_h2_impl import RequestResponseCycle, ZttpH2Protocol

from server.http.h2_flood import FrameBudget
from server.http.hooks import Answer, Exchange
from server.http.joined_writes import JoinedWrites
from server.http.limits import Limits
from server.http.trailers_only import HAS_METADATA, TrailersOnlyStream, is_grpc

Send: TypeAlias = Callable[[ASGISendEvent], Awaitable[None]]

# RFC 9113, section 7.
NO_ERROR = 0x0
PROTOCOL_ERROR = 0x1
REFUSED_STREAM = 0x7
CANCEL = 0x8
ENHANCE_YOUR_CALM = 0xB


class FlowControlledH2Protocol(ZttpH2Protocol):
    """uvicorn's HTTP/2 server protocol, which does not respond faster than its client reads."""

    def __init__(
        self,
        *args: Any,
        limits: Limits,
        tcp_transport: asyncio.Transport,
        answer: Answer | None = None,
        **options: Any,
    ) -> None:
        """``tcp_transport`` carries the connection, or its TLS; the rest is uvicorn's."""
        super().__init__(*args, **options)
        self.tcp_transport = tcp_transport
        self.limits = limits
        self.answer = answer
        self.client_address: str | None = None
        self.frame_budget = FrameBudget(self.loop.time)
        self.input_received = asyncio.Event()
        """Set by all that may release bytes: frames, and the end of a stream or the connection."""
        self.unread: dict[int, Exchange] = {}
        """Streams whose response is complete, and has waited for flow control at the time."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Send the server's SETTINGS."""
        super().connection_made(cast(asyncio.Transport, JoinedWrites(transport, self.loop)))
        if self.client is not None:
            self.client_address = "{}:{}".format(*self.client)

    def data_received(self, data: bytes) -> None:
        """Act upon the frames in ``data``."""
        super().data_received(data)
        self.input_received.set()

    def connection_lost(self, exc: Exception | None) -> None:
        """Mark every exchange as disconnected."""
        super().connection_lost(exc)
        self.input_received.set()

    def resume_reading_if_idle(self) -> None:
        """Read on, unless an exchange has too much that is not consumed.

        uvicorn looks at every exchange for that, at the end of each.
        """
        if self.flow.read_paused:
            super().resume_reading_if_idle()

    def run_application(self, request: zttp.Request) -> None:
        """Begin an exchange for a new stream: the ``answer`` hook's, or the application's."""
        if self.answer is not None and (exchange := self.answer(self, request)) is not None:
            self.cycles[request.stream_id] = exchange  # type: ignore[assignment]
        else:
            self._run_cycle(request)

    def hand_over(self, request: zttp.Request, exchange: Exchange) -> None:
        """Run the application for ``request``, with the body that ``exchange`` has received."""
        # Works around uvicorn: it answers a new stream with 503 while the connection ends. This
        # stream is not new.
        ending, self.shutdown_requested = self.shutdown_requested, False
        self._run_cycle(request)
        self.shutdown_requested = ending
        cycle = self.cycles[request.stream_id]
        cycle.body, cycle.more_body = exchange.body, exchange.more_body
        cycle.message_event.set()

    def _run_cycle(self, request: zttp.Request) -> None:
        try:
            super().handle_request(request)
            cycle = self.cycles[request.stream_id]
            # uvicorn makes the cycle and runs the application with its ``send``.
            cycle.send = partial(  # type: ignore[method-assign]
                self.send_with_backpressure, cycle, cycle.send
            )
            if is_grpc(cycle.scope["headers"]):
                cycle.stream = TrailersOnlyStream(cycle.stream)  # type: ignore[assignment]
            if request.end_stream:
                # Works around uvicorn: it waits for EndOfMessage, and zttp sends none after a
                # HEADERS frame with END_STREAM.
                cycle.more_body = False
                cycle.message_event.set()
        except UnicodeDecodeError:
            # Works around uvicorn: it decodes the path as ASCII, zttp accepts other bytes, and the
            # error would close the connection with the calls of all its streams.
            self.conn.stream(request.stream_id).reset(PROTOCOL_ERROR)

    async def send_with_backpressure(
        self, cycle: RequestResponseCycle, send: Send, message: ASGISendEvent
    ) -> None:
        """Send a part of a response, and wait while too much of it is unsent.

        Works around zttp and uvicorn, which keep unsent bytes without a limit.
        """
        await send(message)
        if message.get(HAS_METADATA) and isinstance(cycle.stream, TrailersOnlyStream):
            cycle.stream.send_head()
            self.flush()
        if self.sent(cycle, len(message["body"]) if message["type"] == "http.response.body" else 0):
            await self.wait_until_read(cycle)

    async def wait_until_read(self, exchange: Exchange) -> None:
        """Wait while too much of a response is unsent, and its client can still read it."""
        while (exchange.stream.pending_bytes or 0) > self.limits.max_unsent and not (
            exchange.disconnected or self.transport.is_closing()
        ):
            self.input_received.clear()
            await self.input_received.wait()

    def sent(self, exchange: Exchange, size: int) -> int:
        """Count ``size`` bytes of a response. Returns how many wait for flow control."""
        self.frame_budget.earn_for_sent(size)
        pending: int = exchange.stream.pending_bytes or 0
        if pending and exchange.response_complete:
            self.unread[exchange.stream.stream_id] = exchange
        return pending

    def reset_stream(self, exchange: Exchange, error_code: int) -> None:
        """End a stream whose client sends its request, or reads its response, too slowly."""
        exchange.stream.reset(error_code)
        self.flush()
        exchange.disconnected = True
        exchange.message_event.set()
        self.input_received.set()  # wakes the application's send
        if self.unread.pop(exchange.stream.stream_id, None):
            self.on_stream_closed()
