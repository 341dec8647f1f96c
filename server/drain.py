"""How a process stops serving: what has begun is finished, within a limit.

1. Nobody is asked to come any more: readiness turns false, and streams without an end are ended.
2. No new connection begins, and those that wait to be accepted are. The socket closes.
3. Each connection is told: HTTP/2 by GOAWAY (see ``server.http2``), HTTP/1.1 by closing it when it
   has nothing to answer. One that has not said yet which of them it speaks is given two seconds.
4. Calls finish, and their answers leave. A client that does not read what it is sent is not waited
   for.
5. When the limit has passed, the rest is cut off.
"""

import asyncio
import logging
import socket
from collections.abc import Callable, Hashable
from typing import Any

import uvicorn

from server.http2 import RecyclingH2Protocol, RecyclingProtocol
from server.listeners import all_taken, turn_away

# Seconds.
_LOOK = 0.05  # between two looks at what is still there
_FIRST_BYTES = 2.0  # for a new connection to say what it is
_READING = 2.0  # for a client to take some of what it is sent
_CUT_OFF = 1.0  # for a call to end that was cut off

_CANCEL = 0x8  # RFC 9113, section 7

_log = logging.getLogger(__name__)


class DrainingServer(uvicorn.Server):
    """uvicorn with an end that loses nothing."""

    def __init__(
        self,
        config: uvicorn.Config,
        limit: float,
        started: Callable[[], object],
        stopping: Callable[[], object],
    ) -> None:
        """Drain for at most ``limit`` seconds.

        ``started`` is called once connections are accepted, ``stopping`` before none are any more.
        """
        super().__init__(config)
        self.shares_listener = False
        """Whether another process may go on with the same socket."""
        self._limit = limit
        self._started = started
        self._stopping = stopping

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Accept connections."""
        await super().startup(sockets)
        self._started()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop as the module says."""
        deadline = asyncio.get_running_loop().time() + self._limit
        _log.info("stopping")
        self._stopping()
        for listener in sockets or []:
            if not self.shares_listener:
                turn_away(listener)
            await all_taken(listener)
        for server in self.servers:
            server.close()
        for listener in sockets or []:
            listener.close()
        try:
            async with asyncio.timeout_at(deadline):
                await self._drained()
        except TimeoutError:
            await self._cut_off()

    async def _drained(self) -> None:
        """Wait until the last connection has ended and the last call has returned."""
        state, loop = self.server_state, asyncio.get_running_loop()
        speak_until = loop.time() + _FIRST_BYTES
        told: set[Any] = set()
        stalls = _Stalls()
        while state.connections or state.tasks:
            if self.force_exit:  # Ctrl-C for the second time
                raise TimeoutError
            for connection in state.connections - told:
                if not isinstance(connection, RecyclingProtocol) or loop.time() > speak_until:
                    connection.shutdown()
                    told.add(connection)
            for connection in list(state.connections):
                stalls.end(connection)
            await asyncio.sleep(_LOOK)

    async def _cut_off(self) -> None:
        state = self.server_state
        _log.warning(
            "calls cut off, because LISTINGS_SHUTDOWN_TIMEOUT passed: %d; connections: %d",
            len(state.tasks),
            len(state.connections),
        )
        for connection in list(state.connections):
            connection.transport.abort()  # which the application hears of
        for cancel in (False, True):
            for task in list(state.tasks) if cancel else ():
                task.cancel()
            if state.tasks:
                await asyncio.wait(list(state.tasks), timeout=_CUT_OFF)


class _Stalls:
    """Finds clients that take nothing of what waits for them, and does not wait for them."""

    def __init__(self) -> None:
        self._waiting: dict[Hashable, tuple[object, float]] = {}

    def end(self, connection: Any) -> None:
        """End what has stalled on ``connection``: a stream of it, or all of it."""
        unsent = connection.transport.get_write_buffer_size()
        if unsent and self._has_stalled(connection, unsent):
            connection.transport.abort()
        elif isinstance(connection, RecyclingH2Protocol):
            self._end_streams(connection)

    def _end_streams(self, connection: RecyclingH2Protocol) -> None:
        """End what waits for the client to open its flow-control window."""
        for number, cycle in list(connection.cycles.items()):
            unsent = cycle.stream.pending_bytes
            if unsent and self._has_stalled((connection, number), unsent):
                cycle.stream.reset(_CANCEL)
                connection.flush()
                cycle.disconnected = True
                cycle.message_event.set()
                connection.heard.set()  # to which the application's send wakes up
        if not connection.cycles and connection.conn.has_pending_send():
            # Of answers that were given, and no longer tell how much of them waits. The client
            # would be heard of, if it opened its window.
            if connection.heard.is_set():
                self._waiting.pop(connection.conn, None)
                connection.heard.clear()
            if self._has_stalled(connection.conn, True):
                connection.transport.abort()

    def _has_stalled(self, key: Hashable, unsent: object) -> bool:
        """Whether ``unsent`` has not changed for too long."""
        now = asyncio.get_running_loop().time()
        before, since = self._waiting.get(key, (None, now))
        if unsent != before:
            since = now
        self._waiting[key] = unsent, since
        return now - since > _READING
