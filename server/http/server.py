"""The server, and how it stops: what has begun is finished, within a time.

1. ``stopping`` is called, for what does not end by itself: streams without an end, readiness.
2. No new connection begins, and those in the sockets' queues are accepted. The sockets close.
3. Each connection is shut down: HTTP/2 by GOAWAY (see ``h2``), HTTP/1.1 by ``Connection: close`` in
   its next response, or after ``drain_idle`` seconds without a request. One that has not shown yet
   which of them it speaks is given ``drain_first_bytes`` seconds, and one whose TLS handshake is
   under way may finish it.
4. Calls finish, and their responses are sent. Clients that send a request or read a response too
   slowly are closed, after shorter times than before.
5. After ``drain_timeout`` seconds, the calls that are left are cancelled and their connections
   closed.

Works around uvicorn, which closes the sockets at once, so that the kernel resets the connections in
their queues; sends one GOAWAY, which loses streams on their way; and waits for slow clients without
end, or cancels everything.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
from collections.abc import Awaitable, Callable, Iterable
from functools import partial
from typing import Any, Final, Literal

import uvicorn

from server.http.descriptors import DescriptorWatch
from server.http.hooks import Answer, Reject
from server.http.limits import Limits
from server.http.negotiation import NegotiationProtocol
from server.http.sockets import accept_pending, stop_accepting
from server.http.timeouts import SlowClients
from server.http.tls_handshake import HandshakeFailures, TLSHandshakeProtocol

_DRAIN_INTERVAL: Final = 0.05  # seconds between two checks whether everything has ended
_CANCEL_TIMEOUT: Final = 1.0  # seconds for a call to end once its connection is closed
_TICKS_PER_SECOND: Final = 10  # uvicorn's

# Connections that have not shown yet whether they speak HTTP/1.1 or HTTP/2.
_UNDECIDED: Final = (TLSHandshakeProtocol, NegotiationProtocol)

_DEFAULT_LIMITS: Final = Limits()

_log = logging.getLogger(__name__)


def _nothing() -> None:
    pass


class Server(uvicorn.Server):
    """Serves an ASGI application over HTTP/1.1 and HTTP/2.

    ``await serve(sockets)`` accepts on listening sockets (see ``sockets.listen``) until SIGTERM,
    SIGINT or ``should_exit``, and returns when the server has drained. A second SIGINT cuts the
    drain short.
    """

    def __init__(  # noqa: PLR0913 - all that is to be known of a server
        self,
        app: Callable[..., Awaitable[None]],
        *,
        limits: Limits = _DEFAULT_LIMITS,
        tls: Callable[[], ssl.SSLContext] | None = None,
        reject: Reject | None = None,
        answer: Answer | None = None,
        headers: Iterable[tuple[str, str]] = (),
        lifespan: Literal["auto", "on", "off"] = "off",
        started: Callable[[], object] = _nothing,
        stopping: Callable[[], object] = _nothing,
        every_second: Callable[[], object] = _nothing,
        drain_timeout: float = 30.0,
    ) -> None:
        """Prepare to serve ``app``.

        ``tls`` returns the context of each handshake at its beginning; it should offer
        ``ALPN_PROTOCOLS``. ``reject`` may answer an HTTP/2 request with headers alone, and
        ``answer`` in place of the application: see ``hooks``. ``headers`` are on every response of
        the application. ``lifespan`` is uvicorn's: whether ASGI's lifespan events are sent.

        ``started`` is called once connections are accepted, ``stopping`` when the drain begins, and
        ``every_second`` in between and at the end. The drain takes ``drain_timeout`` seconds at
        most.
        """
        protocol: Callable[..., asyncio.Protocol] = partial(
            NegotiationProtocol, limits=limits, reject=reject, answer=answer
        )
        self._failed_handshakes = HandshakeFailures()
        if tls is not None:
            protocol = partial(
                TLSHandshakeProtocol,
                context=tls,
                protocol=protocol,
                failures=self._failed_handshakes,
            )
        super().__init__(_config(app, protocol, limits, list(headers), lifespan))
        self.shares_listener = False
        """Whether another process goes on to accept connections on the same sockets."""
        self._started = started
        self._stopping = stopping
        self._every_second = every_second
        self._drain_timeout = drain_timeout
        self._drain_first_bytes = limits.drain_first_bytes
        self._slow_clients = SlowClients(limits)
        self._descriptors = DescriptorWatch()
        self._check_ticks = max(1, round(limits.check_interval * _TICKS_PER_SECOND))

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Accept connections."""
        await super().startup(sockets)
        self._started()

    async def on_tick(self, counter: int) -> bool:
        """Run what is due; uvicorn calls it ten times a second. Returns whether to stop."""
        self._descriptors.poll(len(self.server_state.connections))
        if counter % self._check_ticks == 0:
            self._slow_clients.end(self.server_state.connections)
        if counter % _TICKS_PER_SECOND == 0:
            self._failed_handshakes.log()
            self._every_second()
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Drain, as the module's docstring has it."""
        deadline = asyncio.get_running_loop().time() + self._drain_timeout
        _log.info("stopping")
        self._stopping()
        # Works around uvicorn, which closes the sockets: the kernel then resets the connections in
        # their queues.
        for listener in sockets or []:
            if not self.shares_listener:
                stop_accepting(listener)
            await accept_pending(listener)
        for server in self.servers:
            server.close()
        for listener in sockets or []:
            listener.close()
        try:
            async with asyncio.timeout_at(deadline):
                await self._drain()
        except TimeoutError:
            await self._cancel_calls()
        self._failed_handshakes.log()
        self._every_second()
        if not self.force_exit:
            await self.lifespan.shutdown()

    async def _drain(self) -> None:
        """Wait until the last connection has ended and the last call has returned."""
        state, loop = self.server_state, asyncio.get_running_loop()
        undecided_until = loop.time() + self._drain_first_bytes
        shut_down: set[Any] = set()
        while state.connections or state.tasks:
            if self.force_exit:  # SIGINT for the second time
                raise TimeoutError
            for connection in state.connections - shut_down:
                if not isinstance(connection, _UNDECIDED) or loop.time() > undecided_until:
                    connection.shutdown()
                    shut_down.add(connection)
            # Those without a first byte have ``drain_first_bytes`` instead.
            checked = [
                each
                for each in state.connections
                if not isinstance(each, NegotiationProtocol) or each.buffer or each in shut_down
            ]
            self._slow_clients.end(checked, draining=True)
            await asyncio.sleep(_DRAIN_INTERVAL)

    async def _cancel_calls(self) -> None:
        state = self.server_state
        _log.warning(
            "drain ended before its calls: %d calls cancelled, %d connections closed",
            len(state.tasks),
            len(state.connections),
        )
        for connection in list(state.connections):
            connection.transport.abort()  # the application receives a disconnect
        for cancel in (False, True):
            for task in list(state.tasks) if cancel else ():
                task.cancel()
            if state.tasks:
                await asyncio.wait(list(state.tasks), timeout=_CANCEL_TIMEOUT)


def _config(
    app: Callable[..., Awaitable[None]],
    protocol: Callable[..., asyncio.Protocol],
    limits: Limits,
    headers: list[tuple[str, str]],
    lifespan: Literal["auto", "on", "off"],
) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        # uvicorn's type is for a class; what it does is to call it.
        http=protocol,  # type: ignore[arg-type]
        ws="none",
        lifespan=lifespan,
        interface="asgi3",
        access_log=False,
        log_config=None,
        server_header=False,
        proxy_headers=False,  # any client may send one
        timeout_keep_alive=limits.keep_alive,  # type: ignore[arg-type] # its timer takes fractions
        # Else a pipelined request would inherit the context variables of the one before it.
        reset_contextvars=True,
        headers=headers,
    )
