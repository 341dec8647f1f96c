"""HTTP/2 connections end without losing a call and without running one twice.

The server is uvicorn with a small gRPC-speaking application that counts each call it runs. The
clients are grpcio, for what users see, and a writer of single frames, for what is on the wire.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import weakref
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager, suppress
from typing import Any, NamedTuple, Self

import grpc
import pytest
import uvicorn
from uvicorn._types import ASGIReceiveCallable, ASGISendCallable, Scope

from server.http2 import MAX_STREAM_ID, NO_ERROR, RecyclingH2Protocol, RecyclingProtocol

ECHO = b"/test.Calls/Echo"
HOLD = b"/test.Calls/Hold"

PROTOCOL_ERROR, REFUSED_STREAM, CANCEL = 0x1, 0x7, 0x8
DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE = 0x0, 0x1, 0x3, 0x4, 0x6, 0x7, 0x8
ACK = END_STREAM = 0x1
END_HEADERS = 0x4


@pytest.fixture(autouse=True)
def _nothing_is_logged(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Fail a test during which asyncio or uvicorn logged a warning or an error."""
    yield
    assert [r.getMessage() for r in caplog.get_records("call") if r.levelno > logging.INFO] == []


class Calls:
    """An ASGI application of two gRPC methods that answer with the request's own message.

    Echo answers at once; Hold when `release` is set.
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
        while more_body:
            message = await receive()
            if message["type"] != "http.request":
                return
            body, more_body = body + message["body"], message["more_body"]
        self.started[body[5:]] += 1
        if scope["path"] == HOLD.decode() and not await self._released(receive):
            self.disconnected[body[5:]] += 1
            return
        with_trailers = "http.response.trailers" in scope.get("extensions", {})
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
    connections: list[weakref.ref[RecyclingH2Protocol]]

    async def stop(self) -> None:
        """Do what SIGTERM does."""
        self.server.should_exit = True
        await until(lambda: not self.server.servers[0].is_serving())


@asynccontextmanager
async def serving(*, timeout_keep_alive: int = 5, **limits: float) -> AsyncIterator[Served]:
    """Serve `Calls`, with some of the class attributes of RecyclingH2Protocol replaced."""
    connections: list[weakref.ref[RecyclingH2Protocol]] = []

    class H2Protocol(RecyclingH2Protocol):
        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            connections.append(weakref.ref(self))
            super().connection_made(transport)

    class Protocol(RecyclingProtocol):
        h2_protocol = H2Protocol

    for name, limit in limits.items():
        assert hasattr(RecyclingH2Protocol, name)
        setattr(H2Protocol, name, limit)

    app = Calls()
    config = uvicorn.Config(
        app,
        port=0,
        http=Protocol,
        lifespan="off",
        log_config=None,
        access_log=False,
        timeout_keep_alive=timeout_keep_alive,
    )
    server = uvicorn.Server(config)
    task = asyncio.create_task(server.serve())
    await until(lambda: server.started)
    try:
        port = server.servers[0].sockets[0].getsockname()[1]
        yield Served(app, port, server, connections)
    finally:
        server.should_exit = True
        app.release.set()
        await asyncio.wait_for(task, 10)


@asynccontextmanager
async def connected(
    served: Served,
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    reader, writer = await asyncio.open_connection("127.0.0.1", served.port)
    try:
        yield reader, writer
    finally:
        writer.close()
        with suppress(OSError):
            await writer.wait_closed()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 (uvicorn has no events for its own state)
            await asyncio.sleep(0.005)


def run(test: Coroutine[Any, Any, None], *, seconds: float = 30) -> None:
    asyncio.run(asyncio.wait_for(test, seconds))


# What users see


def channel_to(*served: Served) -> grpc.aio.Channel:
    """A channel to the first of some servers that can be reached."""
    addresses = ",".join(f"127.0.0.1:{one.port}" for one in served)
    # Channels to the same address would share connections, from test to test.
    return grpc.aio.insecure_channel(
        f"ipv4:{addresses}", options=[("grpc.use_local_subchannel_pool", 1)]
    )


async def call_all(
    channel: grpc.aio.Channel, numbers: range, *, concurrency: int, method: bytes = ECHO
) -> None:
    """Make a call for each number, and raise the first error."""
    call = channel.unary_unary(method.decode())
    remaining = iter(numbers)

    async def worker() -> None:
        for number in remaining:
            message = b"%d" % number
            assert await call(message) == message

    await asyncio.gather(*(worker() for _ in range(concurrency)))


@pytest.mark.parametrize("concurrency", [8, 100])
def test_calls_across_many_connections_run_once(concurrency: int) -> None:
    async def test() -> None:
        async with serving(announce_after_streams=100) as served, channel_to(served) as channel:
            await call_all(channel, range(3_000), concurrency=concurrency)
        assert served.app.started == Counter(b"%d" % n for n in range(3_000))
        assert len(served.connections) > 10

    run(test())


@pytest.mark.soak
@pytest.mark.parametrize("concurrency", [8, 100])
def test_a_hundred_thousand_calls_over_one_channel(concurrency: int) -> None:
    async def test() -> None:
        async with serving() as served, channel_to(served) as channel:
            await call_all(channel, range(100_000), concurrency=concurrency)
        assert served.app.started == Counter(b"%d" % n for n in range(100_000))
        assert len(served.connections) > 25

    run(test(), seconds=300)


def test_slow_calls_outlive_the_recycling_of_their_connection() -> None:
    async def test() -> None:
        async with serving(announce_after_streams=150) as served, channel_to(served) as channel:
            slow = asyncio.ensure_future(
                call_all(channel, range(110), concurrency=110, method=HOLD)
            )
            await until(lambda: len(served.app.started) == 110)
            await call_all(channel, range(1_000, 2_000), concurrency=8)
            assert len(served.connections) > 3
            served.app.release.set()
            await slow
        assert set(served.app.started.values()) == {1}

    run(test())


def test_more_cancelled_calls_than_a_connection_may_have_resets() -> None:
    async def test() -> None:
        async with serving() as served, channel_to(served) as channel:
            hold = channel.unary_unary(HOLD.decode())
            kept = asyncio.ensure_future(hold(b"kept"))
            codes: Counter[grpc.StatusCode] = Counter()
            for first in range(0, 600, 100):
                cancelled = [hold(b"%d" % n, timeout=0.1) for n in range(first, first + 100)]
                codes.update([await call.code() for call in cancelled])
            assert codes == {grpc.StatusCode.DEADLINE_EXCEEDED: 600}
            served.app.release.set()
            assert await kept == b"kept"
        assert max(served.app.started.values()) == 1
        assert len(served.connections) > 1

    run(test())


@pytest.mark.parametrize("concurrency", [8, 100])
def test_a_server_drains_under_load(concurrency: int) -> None:
    async def test() -> None:
        async with (
            serving() as successor,
            serving() as served,
            channel_to(served, successor) as channel,
        ):
            load = asyncio.ensure_future(call_all(channel, range(1_500), concurrency=concurrency))
            await until(lambda: len(served.app.started) > 300)
            await served.stop()
            await load
        assert served.app.started + successor.app.started == Counter(
            b"%d" % n for n in range(1_500)
        )
        assert len(successor.app.started) > 0

    run(test())


def test_http_1_on_the_same_port() -> None:
    async def test() -> None:
        async with serving() as served, connected(served) as (reader, writer):
            for message in (b"first", b"second"):
                head = b"POST %b HTTP/1.1\r\nHost: test\r\nContent-Length: %d\r\n\r\n"
                body = prefixed(message)
                writer.write(head % (ECHO, len(body)) + body)
                assert await reader.readline() == b"HTTP/1.1 200 OK\r\n"
                assert message in await reader.readuntil(message)
                assert b"0\r\n" in await reader.readuntil(b"\r\n\r\n")
        assert served.app.started == {b"first": 1, b"second": 1}
        assert served.connections == []

    run(test())


def test_tls_clients_are_offered_http_2_first() -> None:
    assert RecyclingProtocol.alpn_protocols == ["h2", "http/1.1"]


# What is on the wire


class Frame(NamedTuple):
    kind: int
    flags: int
    stream_id: int
    payload: bytes


class Peer:
    """A client that does nothing by itself, not even what the protocol demands."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer
        self.goaways: list[tuple[int, int]] = []  # last stream id, error code
        self.pings: list[bytes] = []
        self.messages: dict[int, bytes] = {}  # by stream id
        self.answered: set[int] = set()
        self.resets: dict[int, int] = {}  # error code by stream id

    @classmethod
    @asynccontextmanager
    async def connected(cls, served: Served, settings: bytes = b"") -> AsyncIterator[Self]:
        async with connected(served) as (reader, writer):
            peer = cls(reader, writer)
            writer.write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
            peer.send(SETTINGS, payload=settings)
            yield peer

    def send(self, kind: int, flags: int = 0, stream_id: int = 0, payload: bytes = b"") -> None:
        head = len(payload).to_bytes(3) + bytes([kind, flags]) + stream_id.to_bytes(4)
        self.writer.write(head + payload)

    def call(self, stream_id: int, path: bytes = ECHO) -> None:
        """Open a stream with a whole call, whose message is the stream's id."""
        self.send(HEADERS, END_HEADERS, stream_id, header_block(path))
        self.send(DATA, END_STREAM, stream_id, prefixed(b"%d" % stream_id))

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

    async def announcement(self) -> None:
        """Read up to the end of the first phase's frames, and check them."""
        await self.until(lambda: self.pings)
        assert self.goaways == [(MAX_STREAM_ID, NO_ERROR)]

    async def final_goaway(self) -> int:
        """Read up to the second phase's GOAWAY, and return its last stream id."""
        await self.until(lambda: len(self.goaways) == 2)
        last, code = self.goaways[1]
        assert code == NO_ERROR
        return last

    async def answer(self, stream_id: int) -> None:
        """Read up to the end of a stream, and check that it brought the call's own message."""
        await self.until(lambda: stream_id in self.answered)
        assert self.messages[stream_id] == prefixed(b"%d" % stream_id)
        assert stream_id not in self.resets

    async def ended(self, stream_id: int) -> None:
        await self.until(lambda: stream_id in self.answered or stream_id in self.resets)

    async def refusal(self, stream_id: int) -> None:
        """Read up to the reset of a stream, and check that it invites to try again."""
        await self.until(lambda: stream_id in self.resets)
        assert self.resets[stream_id] == REFUSED_STREAM

    async def end(self) -> None:
        """Read up to the server's end of the connection."""
        with pytest.raises(asyncio.IncompleteReadError) as caught:
            await self.until(lambda: False)
        assert caught.value.partial == b""


def prefixed(message: bytes) -> bytes:
    """A message as gRPC frames it: not compressed, its length in four bytes."""
    return b"\x00" + len(message).to_bytes(4) + message


def header_block(path: bytes) -> bytes:
    """POST and http from HPACK's static table, the rest as literals."""
    literals = [(b":path", path), (b":authority", b"test"), (b"te", b"trailers")]
    return b"\x83\x86" + b"".join(
        b"\x00" + bytes([len(name)]) + name + bytes([len(value)]) + value
        for name, value in literals
    )


def test_the_two_phases() -> None:
    async def test() -> None:
        async with (
            serving(announce_after_streams=3, patience=0.2) as served,
            Peer.connected(served) as peer,
        ):
            for stream_id in (1, 3, 5):
                peer.call(stream_id, HOLD)
            await peer.announcement()

            # A stream that was on its way is served.
            peer.call(7)
            await peer.answer(7)
            assert len(peer.goaways) == 1

            # The client has read the announcement, so the second GOAWAY is exact.
            peer.answer_ping()
            assert await peer.final_goaway() == 7

            # A later stream is refused, and those in flight may take their time.
            peer.call(9)
            await peer.refusal(9)
            await asyncio.sleep(0.4)
            served.app.release.set()
            for stream_id in (1, 3, 5):
                await peer.answer(stream_id)

            # With nothing in flight, the client has time to close before the server does.
            peer.call(11)
            await peer.refusal(11)
            await peer.end()
        assert served.app.started == {b"1": 1, b"3": 1, b"5": 1, b"7": 1}
        assert len(peer.goaways) == 2

    run(test())


def test_a_ping_that_is_not_answered_does_not_hold_up_the_second_phase() -> None:
    async def test() -> None:
        async with (
            serving(announce_after_streams=1, patience=0.1) as served,
            Peer.connected(served) as peer,
        ):
            peer.call(1)
            await peer.answer(1)
            assert await peer.final_goaway() == 1
            await peer.end()

    run(test())


def test_a_burst_before_the_second_phase_brings_it_on() -> None:
    async def test() -> None:
        async with (
            serving(announce_after_streams=3, refuse_after_streams=5) as served,
            Peer.connected(served) as peer,
        ):
            for stream_id in range(1, 15, 2):
                peer.call(stream_id, HOLD)
            assert await peer.final_goaway() == 9
            await peer.refusal(11)
            await peer.refusal(13)
            served.app.release.set()
            for stream_id in range(1, 11, 2):
                await peer.answer(stream_id)
        assert served.app.started == Counter(b"%d" % n for n in range(1, 11, 2))

    run(test())


@pytest.mark.parametrize("batch", [100, 5_000])
def test_a_client_that_never_listens_does_not_meet_the_limit_of_streams(batch: int) -> None:
    async def test() -> None:
        async with serving(patience=0.2) as served, Peer.connected(served) as peer:
            peer.call(1, HOLD)
            await until(lambda: len(served.app.started) == 1)
            for first in range(3, 10_003, 2 * batch):
                stream_ids = range(first, first + 2 * batch, 2)
                for stream_id in stream_ids:
                    peer.call(stream_id)
                if stream_ids[-1] < 2 * RecyclingH2Protocol.ignore_after_streams:
                    await peer.ended(stream_ids[-1])
            served.app.release.set()
            await peer.answer(1)
            await peer.end()
        assert {code for _, code in peer.goaways} <= {NO_ERROR}
        # Whatever was not refused was run, once, and answered.
        assert {b"%d" % n for n in peer.answered} == set(served.app.started)
        assert set(served.app.started.values()) == {1}
        assert set(peer.resets.values()) == {REFUSED_STREAM}

    run(test())


def test_a_client_that_never_listens_does_not_meet_the_limit_of_resets() -> None:
    async def test() -> None:
        async with serving() as served, Peer.connected(served) as peer:
            peer.call(1, HOLD)
            for stream_id in range(3, 1_003, 2):
                peer.call(stream_id, HOLD)
                peer.reset(stream_id)
            refused_from = 1 + 2 * RecyclingH2Protocol.refuse_after_resets + 2
            assert await peer.final_goaway() == refused_from - 2
            for stream_id in range(refused_from, 1_003, 2):
                await peer.refusal(stream_id)
            served.app.release.set()
            await peer.answer(1)
            assert len(peer.goaways) == 2

    run(test())


SMALL_WINDOW = (4).to_bytes(2) + (3).to_bytes(4)  # SETTINGS_INITIAL_WINDOW_SIZE, in bytes


def test_a_response_that_waits_for_the_clients_window_is_in_flight() -> None:
    async def test() -> None:
        async with (
            serving(announce_after_streams=1, patience=0.05, timeout_keep_alive=60) as served,
            Peer.connected(served, SMALL_WINDOW) as peer,
        ):
            peer.call(1)
            await peer.until(lambda: peer.messages)
            assert await peer.final_goaway() == 1
            # Long enough for a server that thinks the connection idle to close it.
            await asyncio.sleep(0.2)
            peer.send(WINDOW_UPDATE, 0, 1, (100).to_bytes(4))
            await peer.answer(1)
            await peer.end()

    run(test())


def test_a_response_does_not_wait_for_a_client_that_is_gone() -> None:
    async def test() -> None:
        async with (
            serving(announce_after_streams=1, patience=0.05, timeout_keep_alive=1) as served,
            Peer.connected(served, SMALL_WINDOW) as peer,
        ):
            peer.call(1)
            assert await peer.final_goaway() == 1
            await peer.end()
            assert 1 not in peer.answered

    run(test())


def test_a_stream_that_meets_the_idle_time_out_is_served() -> None:
    async def test() -> None:
        async with serving(timeout_keep_alive=1) as served, Peer.connected(served) as peer:
            await peer.announcement()
            peer.call(1)
            await peer.answer(1)
            peer.answer_ping()
            assert await peer.final_goaway() == 1

    run(test())


def test_a_stream_that_meets_the_shutdown_is_served() -> None:
    async def test() -> None:
        async with serving() as served, Peer.connected(served) as peer:
            peer.call(1, HOLD)
            await until(lambda: len(served.app.started) == 1)
            await served.stop()
            await peer.announcement()
            peer.call(3)
            await peer.answer(3)
            peer.answer_ping()
            assert await peer.final_goaway() == 3
            served.app.release.set()
            await peer.answer(1)

    run(test())


@pytest.mark.parametrize("listening", [True, False])
def test_an_idle_connection_does_not_keep_the_server_from_stopping(listening: bool) -> None:
    async def test() -> None:
        patience = 60.0 if listening else 0.1
        async with serving(patience=patience) as served, Peer.connected(served) as peer:
            peer.call(1)
            await peer.answer(1)
            await served.stop()
            if listening:
                await peer.announcement()
                peer.answer_ping()
                assert await peer.final_goaway() == 1
                peer.writer.close()
            await until(lambda: not served.server.server_state.connections)

    run(test())


@pytest.mark.parametrize("final", [False, True])
def test_a_client_that_goes_away_meanwhile_leaves_nothing_behind(final: bool) -> None:
    async def test() -> None:
        async with serving(announce_after_streams=2) as served, Peer.connected(served) as peer:
            peer.call(1, HOLD)
            peer.call(3, HOLD)
            await peer.announcement()
            if final:
                peer.answer_ping()
                await peer.final_goaway()
            protocol = served.connections[0]()
            assert protocol is not None
            assert (protocol.phase_timer is None) == final
            peer.writer.transport.abort()
            await until(lambda: not served.server.server_state.connections)
            await until(lambda: len(served.app.disconnected) == 2)
            assert protocol.phase_timer is None
            assert protocol.cycles == {}
            del protocol
            await until(lambda: not served.server.server_state.tasks)
            gc.collect()
            assert served.connections[0]() is None

    run(test())


def test_a_clients_goaway_starts_the_same_end() -> None:
    async def test() -> None:
        async with serving() as served, Peer.connected(served) as peer:
            peer.send(GOAWAY, payload=bytes(8))
            await peer.announcement()
            peer.call(1)
            await peer.answer(1)
            peer.answer_ping()
            assert await peer.final_goaway() == 1

    run(test())


def test_a_path_that_is_not_ascii_costs_its_own_stream_only() -> None:
    async def test() -> None:
        async with serving() as served, Peer.connected(served) as peer:
            peer.call(1, HOLD)
            peer.call(3, b"/\xff")
            await peer.until(lambda: 3 in peer.resets)
            assert peer.resets == {3: PROTOCOL_ERROR}
            served.app.release.set()
            await peer.answer(1)

    run(test())
