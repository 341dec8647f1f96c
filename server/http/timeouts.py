"""Clients that keep a connection or a call waiting for too long, and what becomes of them.

Half a request may not be held open, be it sent slowly or not at all: one over HTTP/1.1 ends with
408 and its connection, one over HTTP/2 with RST_STREAM. Nor may an answer that nobody reads. Over
TLS, both sides say that they are done; who does not is not waited for.

All connections are looked at now and then. A timer for each request would cost all of them.
"""

import asyncio
import logging
from collections.abc import Hashable, Iterable
from typing import Any

from server.http.h2_flow import CANCEL, ENHANCE_YOUR_CALM, PacedH2Protocol

# Seconds for a client to say that it is done, too, once it has got all.
_LEAVING = 2.0

_log = logging.getLogger(__name__)


class Laggards:
    """Remembers, from one look to the next, who has kept us waiting, and since when."""

    def __init__(self) -> None:
        self._before: dict[Hashable, tuple[object, float]] = {}
        self._now: dict[Hashable, tuple[object, float]] = {}
        self._time = 0.0

    def end(self, connections: Iterable[Any], *, sending: float, reading: float) -> None:
        """Look at ``connections``, and end what has taken too long.

        Clients have ``sending`` seconds for a whole request, its head and its body each, and
        ``reading`` seconds to take a part of what waits for them.
        """
        self._before, self._now = self._now, {}
        self._time = asyncio.get_running_loop().time()
        ended = 0
        for connection in list(connections):
            # What TLS has encrypted waits there, and is not its transport's any more.
            unsent = connection.wire.get_write_buffer_size()
            if unsent and self._waits(connection, unsent, reading):
                connection.wire.abort()
                ended += 1
            elif connection.transport.is_closing():
                if not unsent and self._waits((connection, "leave"), None, _LEAVING):
                    connection.wire.abort()
            elif isinstance(connection, PacedH2Protocol):
                ended += self._end_streams(connection, sending, reading)
            elif connection.is_half():
                request = getattr(connection, "cycle", None)  # to tell one from the next
                if self._waits((connection, "half"), request, sending):
                    connection.end_half()
                    ended += 1
        if ended:
            _log.warning("clients that were not waited for any longer: %d", ended)

    def _end_streams(self, connection: PacedH2Protocol, sending: float, reading: float) -> int:
        ended = 0
        for number, cycle in [*connection.cycles.items(), *connection.unread.items()]:
            unread = cycle.stream.pending_bytes
            # Of a stream of requests, each is answered before the next.
            if cycle.more_body and not cycle.response_started:
                if self._waits((connection, number), "request", sending):
                    connection.give_up(cycle, CANCEL)
                    ended += 1
            elif unread:  # it waits for the client to open its flow-control window
                if self._waits((connection, number), unread, reading):
                    # To gRPC, that is RESOURCE_EXHAUSTED.
                    connection.give_up(cycle, ENHANCE_YOUR_CALM)
                    ended += 1
            else:
                connection.unread.pop(number, None)
        return ended

    def _waits(self, key: Hashable, what: object, limit: float) -> bool:
        """Whether we have waited for the same for too long."""
        before, since = self._before.get(key, (None, self._time))
        if what != before:
            since = self._time
        self._now[key] = what, since
        return self._time - since > limit
