"""A gRPC-speaking echo application on the HTTP library, and a client of single frames."""

from __future__ import annotations

import asyncio
import ssl
import weakref
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from typing import Any, NamedTuple, Protocol, Self

import pytest
import uvicorn
import uvloop
from protobuf import Message
from uvicorn._types import ASGIReceiveCallable, ASGISendCallable, Scope

from server.http import Limits, Server
from server.http.h2 import MAX_STREAM_ID, H2Protocol
from server.http.h2_flow import NO_ERROR
from server.http.sockets import listen

ECHO = b"/test.Calls/Echo"
HOLD = b"/test.Calls/Hold"
EARLY = b"/test.Calls/Early"
PLAIN = b"/test.Calls/Plain"

PROTOCOL_ERROR, REFUSED_STREAM, CANCEL = 0x1, 0x7, 0x8
DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE = range(6)
PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = range(6, 10)
ACK = END_STREAM = 0x1
END_HEADERS = 0x4

NO_WINDOW = (4).to_bytes(2) + bytes(4)  # SETTINGS_INITIAL_WINDOW_SIZE of 0

_DRAIN_SECONDS = 10


class Calls:
    """An ASGI application with gRPC methods that return the request's message.

    Echo responds at once; Hold when `release` is set; Early before the request has ended.
    Plain is Echo without trailers, as in Connect.
    """

    def __init__(self) -> None:
        self.started: Counter[bytes] = Counter()
        self.disconnected: Counter[bytes] = Counter()
        self.release = asyncio.Event()

    async def __call__(
        self, scope: Scope, receive: ASGIReceiveCallable, send: ASGISendCallable
    ) -> None:
        assert scope["type"] == "http"
        body, more_body = b"", True
        while more_body and not (body and scope["path"] == EARLY.decode()):
            message = await receive()
            if message["type"] != "http.request":
                return
            body, more_body = body + message["body"], message["more_body"]
        self.started[body[5:]] += 1
        if scope["path"] == HOLD.decode() and not await self._released(receive):
            self.disconnected[body[5:]] += 1
            return
        with_trailers = "http.response.trailers" in scope.get("extensions", {})
        with_trailers = with_trailers and scope["path"] != PLAIN.decode()
        await send(
            {
                "type": "http.response.start",
                "status": 200,
                "headers": [(b"content-type", b"application/grpc")],
                "trailers": with_trailers,
            }
        )
        await send({"type": "http.response.body", "body": body, "more_body": False})
        if with_trailers:
            await send(
                {
                    "type": "http.response.trailers",
                    "headers": [(b"grpc-status", b"0")],
                    "more_trailers": False,
                }
            )

    async def _released(self, receive: ASGIReceiveCallable) -> bool:
        released = asyncio.ensure_future(self.release.wait())
        gone = asyncio.ensure_future(receive())
        await asyncio.wait({released, gone}, return_when=asyncio.FIRST_COMPLETED)
        was_released = released.done()
        released.cancel()
        gone.cancel()
        return was_released


class Served(NamedTuple):
    app: Calls
    port: int
    server: uvicorn.Server
    connections: list[weakref.ref[H2Protocol]]
    """All HTTP/2 connections so far, including closed ones."""

    async def stop(self) -> None:
        """Do what SIGTERM does."""
        self.server.should_exit = True
        await until(lambda: not self.server.servers[0].is_serving())


class RecordedConnections(set[Any]):
    """The connections of a server, and a record of all its HTTP/2 connections so far."""

    def __init__(self) -> None:
        super().__init__()
        self.http2: list[weakref.ref[H2Protocol]] = []

    def add(self, connection: Any) -> None:
        if isinstance(connection, H2Protocol):
            self.http2.append(weakref.ref(connection))
        super().add(connection)


@asynccontextmanager
async def serving(
    tls: Callable[[], ssl.SSLContext] | None = None, **limits: Any
) -> AsyncIterator[Served]:
    """Serve `Calls` with the `Limits` that are given."""
    app = Calls()
    server = Server(app, limits=Limits(**limits), tls=tls, drain_timeout=_DRAIN_SECONDS)
    server.server_state.connections = connections = RecordedConnections()
    async with running(server) as port:
        try:
            yield Served(app, port, server, connections.http2)
        finally:
            app.release.set()


@asynccontextmanager
async def running(server: uvicorn.Server) -> AsyncIterator[int]:
    """Serve on a free port of 127.0.0.1, which is yielded, and stop at the end."""
    (listener,) = listen("127.0.0.1", 0)
    port = listener.getsockname()[1]
    task = asyncio.create_task(server.serve([listener]))
    await until(lambda: server.started)
    try:
        yield port
    finally:
        server.should_exit = True
        await asyncio.wait_for(task, 10)


class HasPort(Protocol):
    @property
    def port(self) -> int: ...


@asynccontextmanager
async def connected(
    served: HasPort,
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    reader, writer = await asyncio.open_connection("127.0.0.1", served.port)
    try:
        yield reader, writer
    finally:
        writer.close()
        with suppress(OSError):
            await writer.wait_closed()


@asynccontextmanager
async def dripping(writer: asyncio.StreamWriter, part: bytes) -> AsyncIterator[None]:
    """Send ``part`` ten times a second."""

    async def drip() -> None:
        with suppress(ConnectionError):
            while part:
                writer.write(part)
                await writer.drain()
                await asyncio.sleep(0.1)

    task = asyncio.create_task(drip())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 (uvicorn has no events for its own state)
            await asyncio.sleep(0.005)


def run(test: Coroutine[Any, Any, None], *, seconds: float = 30) -> None:
    """Run a test on the event loop that the service runs on."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(asyncio.wait_for(test, seconds))


class Frame(NamedTuple):
    kind: int
    flags: int
    stream_id: int
    payload: bytes


class Peer:
    """A client that sends only the frames that a test asks for, not those that HTTP/2 requires."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer
        self.goaways: list[tuple[int, int]] = []  # last stream id, error code
        self.pings: list[bytes] = []
        self.messages: dict[int, bytes] = {}  # by stream id
        self.answered: set[int] = set()
        self.resets: dict[int, int] = {}  # error code by stream id

    @classmethod
    @asynccontextmanager
    async def connected(cls, served: HasPort, settings: bytes = b"") -> AsyncIterator[Self]:
        async with connected(served) as (reader, writer):
            peer = cls(reader, writer)
            writer.write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
            peer.send(SETTINGS, payload=settings)
            yield peer

    def send(self, kind: int, flags: int = 0, stream_id: int = 0, payload: bytes = b"") -> None:
        head = len(payload).to_bytes(3) + bytes([kind, flags]) + stream_id.to_bytes(4)
        self.writer.write(head + payload)

    def call(self, stream_id: int, path: bytes = ECHO) -> None:
        """Open a stream with a complete call, whose message is the stream's id."""
        self.post(stream_id, path, prefixed(b"%d" % stream_id))

    def post(self, stream_id: int, path: bytes, body: bytes) -> None:
        """Open a stream with a complete request."""
        self.send(HEADERS, END_HEADERS, stream_id, header_block(path))
        self.send(DATA, END_STREAM, stream_id, body)

    def reset(self, stream_id: int) -> None:
        self.send(RST_STREAM, 0, stream_id, CANCEL.to_bytes(4))

    def answer_ping(self) -> None:
        self.send(PING, ACK, 0, self.pings[-1])

    async def until(self, condition: Callable[[], object]) -> None:
        """Read frames until a condition holds."""
        while not condition():
            self.take(await self.frame())

    async def frame(self) -> Frame:
        head = await self.reader.readexactly(9)
        payload = await self.reader.readexactly(int.from_bytes(head[:3]))
        return Frame(head[3], head[4], int.from_bytes(head[5:]), payload)

    def take(self, frame: Frame) -> None:
        match frame.kind:
            case 0x7:
                last, code = frame.payload[:4], frame.payload[4:8]
                self.goaways.append((int.from_bytes(last), int.from_bytes(code)))
            case 0x6 if not frame.flags & ACK:
                self.pings.append(frame.payload)
            case 0x3:
                self.resets.setdefault(frame.stream_id, int.from_bytes(frame.payload))
            case 0x0 | 0x1:
                if frame.kind == DATA:
                    so_far = self.messages.get(frame.stream_id, b"")
                    self.messages[frame.stream_id] = so_far + frame.payload
                if frame.flags & END_STREAM:
                    self.answered.add(frame.stream_id)

    async def initial_goaway(self) -> None:
        """Read up to the PING after the initial GOAWAY, and check that."""
        await self.until(lambda: self.pings)
        assert self.goaways == [(MAX_STREAM_ID, NO_ERROR)]

    async def final_goaway(self) -> int:
        """Read up to the final GOAWAY, and return its last stream id."""
        await self.until(lambda: len(self.goaways) == 2)
        last, code = self.goaways[1]
        assert code == NO_ERROR
        return last

    async def answer(self, stream_id: int) -> None:
        """Read up to the end of a stream, and check that it carried the call's own message."""
        await self.until(lambda: stream_id in self.answered)
        assert self.messages[stream_id] == prefixed(b"%d" % stream_id)
        assert stream_id not in self.resets

    async def ended(self, stream_id: int) -> None:
        await self.until(lambda: stream_id in self.answered or stream_id in self.resets)

    async def refusal(self, stream_id: int) -> None:
        """Read up to the reset of a stream, and check that the client may send it again."""
        await self.until(lambda: stream_id in self.resets)
        assert self.resets[stream_id] == REFUSED_STREAM

    async def end(self) -> None:
        """Read up to the server's end of the connection."""
        with pytest.raises(asyncio.IncompleteReadError) as caught:
            await self.until(lambda: False)
        assert caught.value.partial == b""


def grpc_call(peer: Peer, stream_id: int, path: str, request: Message[Any]) -> None:
    """Open a stream with a complete gRPC call of the method at ``path``."""
    headers = header_block(path.encode(), (b"content-type", b"application/grpc"))
    peer.send(HEADERS, END_HEADERS, stream_id, headers)
    peer.send(DATA, END_STREAM, stream_id, prefixed(request.to_binary()))


def prefixed(message: bytes) -> bytes:
    """A message as gRPC frames it: not compressed, its length in four bytes."""
    return b"\x00" + len(message).to_bytes(4) + message


def header_block(path: bytes, *others: tuple[bytes, bytes]) -> bytes:
    """POST and http from HPACK's static table, the rest as literals."""
    return b"\x83\x86" + literals(
        (b":path", path), (b":authority", b"localhost"), (b"te", b"trailers"), *others
    )


def literals(*headers: tuple[bytes, bytes]) -> bytes:
    """Headers as literals without indexing: RFC 7541, section 6.2.2."""
    return b"".join(b"\x00" + _string(name) + _string(value) for name, value in headers)


def _string(value: bytes) -> bytes:
    length, rest = len(value), b""
    if length >= 0x7F:  # section 5.1
        left, length = length - 0x7F, 0x7F
        while left >= 0x80:
            rest += bytes([left & 0x7F | 0x80])
            left >>= 7
        rest += bytes([left])
    return bytes([length]) + rest + value
