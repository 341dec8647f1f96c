"""How a process stops serving: what has begun is finished, within a limit.

1. Nobody is asked to come any more: readiness turns false, and streams without an end are ended.
2. No new connection begins, and those that wait to be accepted are. The socket closes.
3. Each connection is told: HTTP/2 by GOAWAY (see ``h2``), HTTP/1.1 by closing it when it
   has nothing to answer. One that has not said yet which of them it speaks is given two seconds,
   and one whose TLS handshake is under way may finish it.
4. Calls finish, and their answers leave. A client that keeps us waiting is not waited for, be it
   for the other half of its request, or because it does not read what it is sent.
5. When the limit has passed, the rest is cut off.
"""

import asyncio
import logging
import socket
from collections.abc import Callable
from typing import Any, ClassVar

import uvicorn

from server.http.negotiation import OnePortProtocol
from server.http.sockets import all_taken, turn_away
from server.http.timeouts import Laggards
from server.http.tls_handshake import HandshakeProtocol

# Seconds.
_LOOK = 0.05  # between two looks at what is still there
_FIRST_BYTES = 2.0  # for a new connection to say what it is
_LAST_SENDING = 1.0  # for a client to send what it has begun to, once the process stops
_LAST_READING = 2.0  # for a client to take some of what it is sent by then
_CUT_OFF = 1.0  # for a call to end that was cut off

# What connections are before they have said what they are.
_UNKNOWN = (HandshakeProtocol, OnePortProtocol)

_log = logging.getLogger(__name__)


class DrainingServer(uvicorn.Server):
    """uvicorn with an end that loses nothing, and without patience for half a request."""

    # Seconds for a client to send the head of a request, and again for its body, and to take some
    # of what it is sent.
    sending: ClassVar[float] = 10.0
    reading: ClassVar[float] = 30.0
    ticks: ClassVar[int] = 10  # tenths of a second from one look for such clients to the next

    def __init__(
        self,
        config: uvicorn.Config,
        limit: float,
        started: Callable[[], object],
        stopping: Callable[[], object],
        every_second: Callable[[], object] = lambda: None,
    ) -> None:
        """Drain for at most ``limit`` seconds.

        ``started`` is called once connections are accepted, ``stopping`` before none are any more,
        and ``every_second`` in between and at the end.
        """
        super().__init__(config)
        self.shares_listener = False
        """Whether another process may go on with the same socket."""
        self._limit = limit
        self._started = started
        self._stopping = stopping
        self._every_second = every_second
        self._laggards = Laggards()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Accept connections."""
        await super().startup(sockets)
        self._started()

    async def on_tick(self, counter: int) -> bool:
        """Do what is to be done ten times a second. Returns whether to stop."""
        if counter % self.ticks == 0:
            connections = self.server_state.connections
            self._laggards.end(connections, sending=self.sending, reading=self.reading)
            self._every_second()
        return await super().on_tick(counter)

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
        self._every_second()

    async def _drained(self) -> None:
        """Wait until the last connection has ended and the last call has returned."""
        state, loop = self.server_state, asyncio.get_running_loop()
        speak_until = loop.time() + _FIRST_BYTES
        told: set[Any] = set()
        while state.connections or state.tasks:
            if self.force_exit:  # Ctrl-C for the second time
                raise TimeoutError
            for connection in state.connections - told:
                if not isinstance(connection, _UNKNOWN) or loop.time() > speak_until:
                    connection.shutdown()
                    told.add(connection)
            self._laggards.end(state.connections, sending=_LAST_SENDING, reading=_LAST_READING)
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
