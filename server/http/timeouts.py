"""Clients that send a request, or read a response, too slowly.

An incomplete request ends after a time, whether its rest comes slowly or not at all: over HTTP/1.1
with 408 and its connection, over HTTP/2 with RST_STREAM. So does a response that is not read. A
connection whose server side is closed ends although the client does not close its own.

Works around uvicorn and zttp, which have no such timeouts. All connections are checked at an
interval: a timer for each request would cost all of them.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Hashable, Iterable
from typing import Any, Protocol

from server.http.h2_flow import CANCEL, ENHANCE_YOUR_CALM, FlowControlledH2Protocol
from server.http.limits import Limits

_log = logging.getLogger(__name__)


class Connection(Protocol):
    """What is checked of a connection that is no HTTP/2 connection, or not yet one."""

    transport: asyncio.Transport

    @property
    def tcp_transport(self) -> asyncio.Transport:
        """The transport that carries the connection, or its TLS."""

    def incomplete(self) -> object | None:
        """Return what identifies the input whose rest has not arrived, or None without one."""

    def end_incomplete(self) -> None:
        """End the connection because that rest does not arrive in time."""


class SlowClients:
    """Remembers, from one check to the next, which client is waited for, and since when."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._before: dict[Hashable, tuple[object, float]] = {}
        self._now: dict[Hashable, tuple[object, float]] = {}
        self._time = 0.0

    def end(self, connections: Iterable[Any], *, draining: bool = False) -> None:
        """Check ``connections``, and end the exchanges and connections that exceed a timeout.

        ``draining`` selects the shorter timeouts.
        """
        limits = self._limits
        request_timeout, response_timeout = limits.request_timeout, limits.response_stall_timeout
        if draining:
            request_timeout = limits.drain_request_timeout
            response_timeout = limits.drain_response_timeout
        self._before, self._now = self._now, {}
        self._time = asyncio.get_running_loop().time()
        ended = 0
        for connection in list(connections):
            # Works around uvloop, whose TLS transport does not count bytes that it has encrypted:
            # they wait in the transport below it.
            unsent = connection.tcp_transport.get_write_buffer_size()
            if unsent and self._exceeds(connection, unsent, response_timeout):
                connection.tcp_transport.abort()
                ended += 1
            elif connection.transport.is_closing():
                if not unsent and self._exceeds((connection, "close"), None, limits.close_timeout):
                    connection.tcp_transport.abort()
            elif isinstance(connection, FlowControlledH2Protocol):
                ended += self._end_streams(connection, request_timeout, response_timeout)
            else:
                ended += self._end_incomplete(connection, request_timeout)
        if ended:
            _log.warning("closed %d slow clients", ended)

    def _end_streams(
        self, connection: FlowControlledH2Protocol, request_timeout: float, response_timeout: float
    ) -> int:
        ended = 0
        for stream_id, exchange in [*connection.cycles.items(), *connection.unread.items()]:
            unread = exchange.stream.pending_bytes
            # In a stream of requests, each is answered before the next.
            if exchange.more_body and not exchange.response_started:
                if self._exceeds((connection, stream_id), "request", request_timeout):
                    connection.reset_stream(exchange, CANCEL)
                    ended += 1
            elif unread:  # waits for the client to open its flow-control window
                if self._exceeds((connection, stream_id), unread, response_timeout):
                    # gRPC maps it to RESOURCE_EXHAUSTED.
                    connection.reset_stream(exchange, ENHANCE_YOUR_CALM)
                    ended += 1
            else:
                connection.unread.pop(stream_id, None)
        return ended

    def _end_incomplete(self, connection: Connection, request_timeout: float) -> int:
        request = connection.incomplete()
        if request is None:
            return 0
        if not self._exceeds((connection, "incomplete"), request, request_timeout):
            return 0
        connection.end_incomplete()
        return 1

    def _exceeds(self, key: Hashable, state: object, timeout: float) -> bool:
        """Whether ``state`` has been the same for longer than ``timeout`` seconds."""
        before, since = self._before.get(key, (None, self._time))
        if state != before:
            since = self._time
        self._now[key] = state, since
        return self._time - since > timeout
