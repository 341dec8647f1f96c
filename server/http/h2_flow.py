"""The streams of HTTP/2: uvicorn's, with what they lack.

A stream whose client does not read is held back. zttp keeps what the client's flow-control window
has no room for, without a limit, and uvicorn does not ask it; here the application waits.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, TypeAlias

import zttp
from uvicorn._types import ASGISendEvent
from uvicorn.protocols.http.zttp_h2_impl import RequestResponseCycle, ZttpH2Protocol

from server.http.h2_flood import FrameAllowance

Send: TypeAlias = Callable[[ASGISendEvent], Awaitable[None]]

Direct: TypeAlias = Callable[["PacedH2Protocol", zttp.Request], Any]
"""Begins what answers a request in place of the application, or returns None."""

# RFC 9113, section 7.
NO_ERROR = 0x0
PROTOCOL_ERROR = 0x1
REFUSED_STREAM = 0x7
CANCEL = 0x8
ENHANCE_YOUR_CALM = 0xB

# Bytes of a response that may wait for the client to read, before the application waits with it.
MOST_PENDING = 64 * 1024


class PacedH2Protocol(ZttpH2Protocol):
    """uvicorn's HTTP/2 server protocol, which does not answer faster than its client reads."""

    wire: asyncio.Transport
    """The transport that carries what is sent: the one below TLS, or the connection's own."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.direct: Direct | None = None
        self.client_address: str | None = None
        self.allowance = FrameAllowance(self.loop.time)
        self.heard = asyncio.Event()
        self.unread: dict[int, RequestResponseCycle] = {}
        """Streams whose answer is given, and waited for the client's window at the time."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin."""
        super().connection_made(transport)
        if self.client is not None:
            self.client_address = "{}:{}".format(*self.client)

    def data_received(self, data: bytes) -> None:
        """Act upon the frames in ``data``."""
        super().data_received(data)
        self.heard.set()

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell the application."""
        super().connection_lost(exc)
        self.heard.set()

    def run_application(self, event: zttp.Request) -> None:
        """Run the application for a new stream, or what answers in its place."""
        if self.direct is not None and (call := self.direct(self, event)) is not None:
            self.cycles[event.stream_id] = call
        else:
            self._run_cycle(event)

    def hand_over(self, event: zttp.Request, call: Any) -> None:
        """Run the application for a stream that was begun by ``call`` in its place."""
        # While the connection ends, uvicorn would refuse a stream that begins; this one has begun.
        ending, self.shutdown_requested = self.shutdown_requested, False
        self._run_cycle(event)
        self.shutdown_requested = ending
        cycle = self.cycles[event.stream_id]
        cycle.body, cycle.more_body = call.body, call.more_body
        cycle.message_event.set()

    def _run_cycle(self, event: zttp.Request) -> None:
        try:
            super().handle_request(event)
            cycle = self.cycles[event.stream_id]
            # It is uvicorn that makes the cycle, and runs it with its own send.
            cycle.send = partial(self.send_in_step, cycle, cycle.send)  # type: ignore[method-assign]
            if event.end_stream:
                # No event for the end of its body follows, which uvicorn waits for.
                cycle.more_body = False
                cycle.message_event.set()
        except UnicodeDecodeError:
            # uvicorn decodes the path as ASCII, and zttp lets other bytes through. Unhandled, the
            # error would cost the whole connection, with everybody else's calls.
            self.conn.stream(event.stream_id).reset(PROTOCOL_ERROR)

    async def send_in_step(
        self, cycle: RequestResponseCycle, send: Send, message: ASGISendEvent
    ) -> None:
        """Send a part of a response, and wait until the client has read what went before."""
        await send(message)
        pending = self.sent(
            cycle, len(message["body"]) if message["type"] == "http.response.body" else 0
        )
        while pending > MOST_PENDING and not (cycle.disconnected or self.transport.is_closing()):
            self.heard.clear()
            await self.heard.wait()
            pending = cycle.stream.pending_bytes or 0

    def sent(self, cycle: Any, size: int) -> int:
        """Take note of ``size`` bytes of an answer. Return how many wait for the client to read."""
        self.allowance.earn_for_answer(size)
        pending: int = cycle.stream.pending_bytes or 0
        if pending and cycle.response_complete:
            self.unread[cycle.stream.stream_id] = cycle
        return pending

    def give_up(self, cycle: RequestResponseCycle, error_code: int) -> None:
        """End a stream whose client keeps us waiting."""
        cycle.stream.reset(error_code)
        self.flush()
        cycle.disconnected = True
        cycle.message_event.set()
        self.heard.set()  # to which the application's send wakes up
        if self.unread.pop(cycle.stream.stream_id, None):
            self.on_stream_closed()
