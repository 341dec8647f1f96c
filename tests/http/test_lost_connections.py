"""Connections that their clients reset: nothing of them is left, whatever they waited for."""

from __future__ import annotations

import asyncio
import gc
import socket
import ssl
import struct
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final, NamedTuple

import psutil
import pytest
import zttp
from uvloop.loop import SSLProtocol, TimerHandle  # type: ignore[attr-defined]

from server.http import Exchange, H2Connection, Limits, Server
from server.http.h1 import H1Protocol
from server.http.h2 import PING_FRAME, H2Protocol
from server.http.negotiation import NegotiationProtocol
from server.http.tls_handshake import TLSHandshakeProtocol
from tests.support.certificates import HOST, Issued, Trust
from tests.support.http2 import (
    ACK,
    EARLY,
    ECHO,
    END_HEADERS,
    END_STREAM,
    GOAWAY,
    HEADERS,
    HOLD,
    PING,
    PLAIN,
    SETTINGS,
    Calls,
    header_block,
    run,
    running,
    until,
)
from tests.support.plain_uvicorn import BODY, request
from tests.support.raw import PREFACE, data, frame

RESETS: Final = 20_000
GROWTH: Final = 30 * 2**20  # bytes; with a timer left of each connection, it was 130 MB

RESET_ON_CLOSE: Final = struct.pack("ii", 1, 0)  # SO_LINGER of 0 seconds

ACKNOWLEDGED: Final = frame(SETTINGS, ACK)


def call(path: bytes) -> bytes:
    headers = frame(HEADERS, END_HEADERS, 1, header_block(path))
    return PREFACE + headers + data(1, BODY, END_STREAM)


class Situation(NamedTuple):
    sent: bytes
    awaited: bytes = b""
    """The client resets the connection when it has received this."""


SITUATIONS: Final = {
    "nothing": Situation(b""),
    "part of a preface": Situation(PREFACE[:10]),
    "part of a head": Situation(request(ECHO)[:20]),
    "part of a body": Situation(request(ECHO)[:-1]),
    "response under way": Situation(request(HOLD)),
    "idle": Situation(request(ECHO), b"0\r\n\r\n"),
    "idle, and part of a head": Situation(request(ECHO) + b"GET", b"0\r\n\r\n"),
    "answered early": Situation(request(EARLY, length=10_000_000), b"0\r\n\r\n"),
    "malformed": Situation(b"GET\r\n\r\n", b"HTTP/1.1 400"),
    "HTTP/2": Situation(PREFACE, ACKNOWLEDGED),
    "HTTP/2, part of a frame": Situation(PREFACE + b"\0\0", ACKNOWLEDGED),
    "HTTP/2, response under way": Situation(call(HOLD)),
    "HTTP/2, response that ends later": Situation(call(PLAIN)),
    "HTTP/2, idle": Situation(call(ECHO), BODY),
    "HTTP/2, client's GOAWAY": Situation(call(HOLD) + frame(GOAWAY, payload=bytes(8)), PING_FRAME),
    "HTTP/2, flood": Situation(PREFACE + frame(PING, payload=bytes(8)) * 5_000),
}


class Later:
    """An exchange that ends only after its client has disconnected."""

    def __init__(self, connection: H2Connection, request: zttp.Request) -> None:
        self.stream = connection.conn.stream(request.stream_id)
        self.body = bytearray()
        self.more_body, self.disconnected = True, False
        self.response_started = self.response_complete = False
        self._connection = connection

    @property
    def message_event(self) -> Later:
        return self

    def set(self) -> None:
        if self.disconnected and not self.response_complete:
            self.response_complete = True
            self._connection.loop.call_soon(
                self._connection.on_response_complete, self.stream.stream_id
            )


def later(connection: H2Connection, request: zttp.Request) -> Exchange | None:
    return Later(connection, request) if request.path == PLAIN else None


def left() -> Counter[str]:
    """Count what belongs to connections, and the timers of the event loop."""
    gc.collect()
    kinds = (
        H1Protocol,
        H2Protocol,
        NegotiationProtocol,
        TLSHandshakeProtocol,
        SSLProtocol,
        TimerHandle,
    )
    found = [each for each in gc.get_objects() if isinstance(each, kinds)]
    return Counter(
        type(each).__name__
        for each in found
        if not (isinstance(each, TimerHandle) and each.cancelled())
    )


async def nothing_is_left(server: Server, before: Counter[str], *what: str) -> None:
    """Wait until all connections are lost, and check that nothing of them is left."""
    state = server.server_state
    await until(lambda: not state.connections and not state.tasks)
    for _ in range(10):
        if not left() - before:
            break
        await asyncio.sleep(0.02)  # what the event loop is still to do
    assert left() - before == {}, what


def reset(port: int, situation: Situation, context: ssl.SSLContext | None) -> None:
    """Connect, bring the connection into the situation, and reset it."""
    with socket.create_connection((HOST, port), timeout=10) as plain:
        plain.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
        connection = plain
        if context is not None:
            connection = context.wrap_socket(plain, server_hostname=HOST)
        with connection:
            if situation.sent:
                connection.sendall(situation.sent)
            received = b""
            while situation.awaited not in received:
                part = connection.recv(65_536)
                assert part, received
                received += part


@pytest.fixture(autouse=True)
def _others_are_not_collected() -> Iterator[None]:
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(scope="module")
def ca() -> Issued:
    return Issued.ca()


@pytest.mark.parametrize("secure", [False, True], ids=["plain", "tls"])
def test_nothing_is_left_of_a_connection_that_is_reset(
    ca: Issued, secure: bool, tmp_path: Path
) -> None:
    context = client = None
    if secure:
        context, client = ca.issue().save(tmp_path, "server").context(), Trust(ca).context()

    async def test() -> None:
        tls: Callable[[], ssl.SSLContext] | None = None if context is None else lambda: context
        server = Server(Calls(), tls=tls, answer=later, limits=Limits(check_interval=60))
        async with running(server) as port:
            before = left()
            for name, situation in SITUATIONS.items():
                for _ in range(5):
                    await asyncio.to_thread(reset, port, situation, client)
                await nothing_is_left(server, before, name)

    run(test())


CLIENT: Final = f"""
import socket, sys
port, times = map(int, sys.argv[1:])
for _ in range(times):
    with socket.socket() as connection:
        connection.connect(("{HOST}", port))
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, {RESET_ON_CLOSE!r})
        connection.sendall({request(ECHO)!r})
        while not connection.recv(65536).endswith(b"0\\r\\n\\r\\n"):
            pass
"""


def test_many_resets_leave_memory_as_it_was() -> None:
    async def test() -> None:
        server = Server(Calls(), limits=Limits(check_interval=60))  # a check remembers connections

        async def clients(port: int, times: int) -> None:
            arguments = ["-c", CLIENT, str(port), str(times)]
            process = await asyncio.create_subprocess_exec(sys.executable, *arguments)
            assert await process.wait() == 0

        async with running(server) as port:
            await clients(port, 100)
            before, memory = left(), psutil.Process().memory_info().rss
            await clients(port, RESETS)
            await nothing_is_left(server, before)
            assert psutil.Process().memory_info().rss - memory < GROWTH

    run(test(), seconds=100)
