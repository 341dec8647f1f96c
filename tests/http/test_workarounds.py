"""Canaries: faults of uvicorn, zttp and uvloop that ``server.http`` works around.

Each test shows one fault on a plain ``uvicorn.Server``. When a test fails after an update of these
packages, the workaround that it names may go: see the table in ``docs/development.md``.
"""

from __future__ import annotations

import asyncio
import fcntl
import socket
import ssl
import termios
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import uvicorn
import zttp

from server.http import ALPN_PROTOCOLS
from server.http.h2 import SETTINGS_ACK_FRAME
from server.http.h2_flow import ENHANCE_YOUR_CALM, NO_ERROR
from server.http.sockets import listen
from tests.support.certificates import HOST, Issued, Trust
from tests.support.http2 import (
    DATA,
    EARLY,
    ECHO,
    END_HEADERS,
    END_STREAM,
    GOAWAY,
    HEADERS,
    HOLD,
    PING,
    Calls,
    Peer,
    Served,
    connected,
    dripping,
    header_block,
    prefixed,
    run,
    running,
    until,
)
from tests.support.raw import PREFACE, frame
from tests.support.tls_records import received

_WAIT = 0.7
"""Seconds, longer than each timeout that a test gives uvicorn."""

NO_WINDOW = (4).to_bytes(2) + (0).to_bytes(4)  # SETTINGS_INITIAL_WINDOW_SIZE
BODY = prefixed(b"1")


def request(path: bytes = ECHO, body: bytes = BODY, length: int | None = None) -> bytes:
    """An HTTP/1.1 request, whose Content-Length may be larger than its body."""
    head = b"POST %b HTTP/1.1\r\nHost: test\r\nContent-Length: %d\r\n\r\n"
    return head % (path, length or len(body)) + body


def plain_config(app: Any, **options: Any) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        http="zttp",
        http2=True,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        **{"timeout_keep_alive": 75, "timeout_graceful_shutdown": 1} | options,
    )


@asynccontextmanager
async def plain(
    app: Any = None, context: ssl.SSLContext | None = None, **options: Any
) -> AsyncIterator[Served]:
    """Serve `Calls`, or another application, with uvicorn and zttp as they are."""
    calls = Calls()
    if context is not None:
        options["ssl_context_factory"] = lambda _config, _default: context
    server = uvicorn.Server(plain_config(app or calls, **options))
    async with running(server) as port:
        try:
            yield Served(calls, port, server, [])
        finally:
            calls.release.set()
            for connection in list(server.server_state.connections):
                connection.transport.abort()


def only_connection(served: Served) -> Any:
    (connection,) = served.server.server_state.connections
    return connection


async def stays(served: Served) -> None:
    """Check that the server does not close the connection within ``_WAIT``."""
    await asyncio.sleep(_WAIT)
    assert not only_connection(served).transport.is_closing()


async def has_no_end(peer: Peer, end: Callable[[], object]) -> None:
    """Check that an HTTP/2 client does not receive ``end`` within ``_WAIT``."""
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(_WAIT):
            await peer.until(end)


async def until_read(served: Served, writer: asyncio.StreamWriter) -> None:
    """Wait until the server has read from its socket all that the client has sent."""

    def waiting() -> int:
        client = writer.get_extra_info("socket")
        server = only_connection(served).transport.get_extra_info("socket")
        unsent = fcntl.ioctl(client.fileno(), termios.TIOCOUTQ, bytes(4))
        unread = fcntl.ioctl(server.fileno(), termios.FIONREAD, bytes(4))
        return (
            writer.transport.get_write_buffer_size()
            + int.from_bytes(unsent, "little")
            + int.from_bytes(unread, "little")
        )

    await until(lambda: waiting() == 0)


# Writes: server.http.joined_writes


def test_uvicorn_writes_the_parts_of_a_response_one_by_one(
    ca: Issued, context: ssl.SSLContext
) -> None:
    def ends(record: bytes) -> bool:
        return record.endswith(b"0\r\n\r\n")

    async def test() -> None:
        async with plain(context=context) as served:
            sent = request()
            records = await asyncio.to_thread(received, ca, served.port, "http/1.1", sent, ends)
            assert len(records) > 1

    run(test())


# HTTP/2: server.http.h2


def test_zttp_ends_a_connection_at_its_4097th_stream() -> None:
    async def test() -> None:
        async with plain() as served, Peer.connected(served) as peer:
            peer.call(1, HOLD)
            for first in range(3, 8_400, 182):
                for stream_id in range(first, first + 182, 2):
                    peer.call(stream_id)
                await peer.until(lambda: peer.goaways or stream_id in peer.answered)  # noqa: B023
                if peer.goaways:
                    break
            assert [code for _, code in peer.goaways] == [ENHANCE_YOUR_CALM]
            assert len(peer.answered) < 4_096
            assert 1 not in peer.answered

    run(test())


def test_zttp_ends_a_connection_at_its_257th_reset() -> None:
    async def test() -> None:
        async with plain() as served, Peer.connected(served) as peer:
            peer.call(1, HOLD)
            for stream_id in range(3, 3 + 2 * 300, 2):
                peer.call(stream_id, HOLD)
                peer.reset(stream_id)
            await peer.until(lambda: peer.goaways)
            assert [code for _, code in peer.goaways] == [ENHANCE_YOUR_CALM]

    run(test())


def test_zttp_has_no_call_to_send_a_ping() -> None:
    connection = zttp.Connection(zttp.SERVER, protocol=zttp.HTTP2)
    assert [name for name in dir(connection) if "ping" in name] == []


def test_zttp_has_no_event_for_an_acknowledgement_of_settings() -> None:
    connection = zttp.Connection(zttp.SERVER, protocol=zttp.HTTP2)
    connection.initiate_connection()
    connection.receive_data(PREFACE)
    while connection.next_event() is not zttp.NEED_DATA:
        pass
    connection.receive_data(SETTINGS_ACK_FRAME)
    assert connection.next_event() is zttp.NEED_DATA


def test_uvicorn_answers_new_streams_with_503_while_it_stops() -> None:
    async def test() -> None:
        async with plain() as served, Peer.connected(served) as peer:
            peer.call(1, HOLD)
            await until(lambda: len(served.app.started) == 1)
            await served.stop()
            peer.call(3)
            await peer.until(lambda: 3 in peer.answered)
            assert peer.messages[3] == b"Service Unavailable"
            assert peer.goaways == []

    run(test())


def test_uvicorn_ends_an_idle_connection_with_one_goaway() -> None:
    """A call sent before the client receives the GOAWAY is lost."""

    async def test() -> None:
        async with plain(timeout_keep_alive=0.2) as served, Peer.connected(served) as peer:
            await peer.until(lambda: peer.goaways)
            peer.call(1)
            with suppress(ConnectionError, AssertionError):
                await peer.end()
            assert peer.goaways == [(0, NO_ERROR)]
            assert peer.pings == []
            assert 1 not in peer.answered

    run(test())


def test_uvicorn_closes_an_idle_connection_at_its_clients_goaway() -> None:
    """A GOAWAY is about streams that its receiver opens (RFC 9113, section 6.8)."""

    async def test() -> None:
        async with plain() as served, Peer.connected(served) as peer:
            peer.send(GOAWAY, payload=bytes(8))
            await peer.end()
            assert peer.goaways == [(0, NO_ERROR)]
            assert peer.pings == []

    run(test())


def test_uvicorn_closes_before_the_last_bytes_of_a_response_are_sent() -> None:
    async def test() -> None:
        async with plain() as served, Peer.connected(served, NO_WINDOW) as peer:
            peer.call(1)
            await until(lambda: len(served.app.started) == 1)
            await served.stop()
            await asyncio.wait_for(peer.end(), _WAIT)
            assert 1 not in peer.answered

    run(test())


def test_uvicorn_starts_the_idle_timer_anew_with_each_byte_of_a_frame() -> None:
    async def test() -> None:
        async with plain(timeout_keep_alive=0.3) as served, Peer.connected(served) as peer:
            peer.writer.write(frame(HEADERS, 0, 1, header_block(ECHO))[:20])
            async with dripping(peer.writer, b"x"):
                await has_no_end(peer, lambda: peer.goaways)

    run(test())


def test_zttp_and_uvicorn_take_any_number_of_pings() -> None:
    """See server.http.h2_flood."""

    async def test() -> None:
        async with plain() as served, Peer.connected(served) as peer:
            for _ in range(5_000):
                peer.send(PING, payload=bytes(8))
            peer.call(1)
            await peer.answer(1)
            assert peer.goaways == []

    run(test())


# HTTP/2 streams: server.http.h2_flow


def test_uvicorn_waits_for_the_body_of_a_request_that_ends_with_its_headers() -> None:
    async def test() -> None:
        async with plain() as served, Peer.connected(served) as peer:
            peer.send(HEADERS, END_HEADERS | END_STREAM, 1, header_block(ECHO))
            await has_no_end(peer, lambda: 1 in peer.answered)
            assert served.app.started.total() == 0

    run(test())


def test_uvicorn_ends_a_connection_for_one_path_that_is_not_ascii() -> None:
    async def test() -> None:
        async with plain() as served, Peer.connected(served) as peer:
            peer.call(1, HOLD)
            await until(lambda: len(served.app.started) == 1)
            peer.call(3, b"/\xff")
            with suppress(ConnectionError):
                await peer.end()
            assert 1 not in peer.answered
            assert peer.resets == {}

    run(test())


def test_zttp_and_uvicorn_keep_unsent_bytes_without_a_limit() -> None:
    size, parts = 2**16, 64

    async def test() -> None:
        sent = asyncio.Event()

        async def app(_scope: Any, _receive: Any, send: Any) -> None:
            await send({"type": "http.response.start", "status": 200, "headers": []})
            for _ in range(parts):
                await send({"type": "http.response.body", "body": bytes(size), "more_body": True})
            sent.set()
            await asyncio.sleep(60)

        async with plain(app) as served, Peer.connected(served, NO_WINDOW) as peer:
            peer.call(1)
            await asyncio.wait_for(sent.wait(), 10)
            cycle = only_connection(served).cycles[1]
            assert cycle.stream.pending_bytes == size * parts

    run(test())


# HTTP/1.1: server.http.h1


def test_uvicorn_has_no_answer_to_a_path_that_is_not_ascii() -> None:
    async def test() -> None:
        async with plain() as served, connected(served) as (reader, writer):
            writer.write(request("/é".encode()))
            with suppress(ConnectionError):
                assert await reader.read() == b""

    run(test())


def test_uvicorn_has_no_answer_to_a_malformed_head_request() -> None:
    async def test() -> None:
        async with plain() as served, connected(served) as (reader, writer):
            head = b"HEAD %b HTTP/1.1\r\nHost: test\r\nTransfer-Encoding: chunked\r\n\r\n"
            writer.write(head % HOLD + b"no chunk\r\n")
            with suppress(ConnectionError):
                assert await reader.read() == b""

    run(test())


def test_zttp_keeps_what_arrives_while_a_request_is_answered() -> None:
    async def test() -> None:
        async with plain() as served, connected(served) as (_, writer):
            writer.write(request(HOLD))
            await until(lambda: len(served.app.started) == 1)
            writer.write(request(length=2**24) + bytes(7 * 2**20))
            await until_read(served, writer)
            await stays(served)

    run(test())


def test_uvicorn_reads_the_rest_of_an_answered_request_without_end() -> None:
    async def test() -> None:
        async with plain() as served, connected(served) as (reader, writer):
            writer.write(request(EARLY, length=2**30))
            await reader.readuntil(b"0\r\n\r\n")
            writer.write(bytes(16 * 2**20))
            await until_read(served, writer)
            await stays(served)

    run(test())


def test_uvicorn_sets_no_idle_timer_after_the_rest_of_an_answered_request() -> None:
    async def test() -> None:
        async with (
            plain(timeout_keep_alive=0.3) as served,
            connected(served) as (reader, writer),
        ):
            writer.write(request(EARLY, BODY[:1], len(BODY)))
            await reader.readuntil(b"0\r\n\r\n")
            writer.write(BODY[1:])
            await stays(served)

    run(test())


# Slow clients: server.http.timeouts


INCOMPLETE = {
    "head": b"POST / HTTP/1.1\r\nx: ",
    "body": request(length=100),
}


@pytest.mark.parametrize("kind", INCOMPLETE)
def test_uvicorn_has_no_timeout_for_an_incomplete_request(kind: str) -> None:
    async def test() -> None:
        async with plain(timeout_keep_alive=0.3) as served, connected(served) as (_, writer):
            writer.write(INCOMPLETE[kind])
            await stays(served)

    run(test())


def test_uvicorn_has_no_timeout_for_an_incomplete_request_over_http_2() -> None:
    async def test() -> None:
        async with plain(timeout_keep_alive=0.3) as served, Peer.connected(served) as peer:
            peer.send(HEADERS, END_HEADERS, 1, header_block(ECHO))
            peer.send(DATA, 0, 1, b"x")
            await has_no_end(peer, lambda: peer.resets or peer.goaways)

    run(test())


def test_uvicorn_has_no_timeout_for_a_response_that_is_not_read() -> None:
    async def test() -> None:
        async with plain(timeout_keep_alive=0.3) as served, connected(served) as (_, writer):
            writer.write(request(ECHO, bytes(8 * 2**20)))
            await until(lambda: served.app.started.total() == 1)
            await asyncio.sleep(_WAIT)
            assert only_connection(served).transport.get_write_buffer_size() > 0

    run(test())


def test_an_incomplete_request_keeps_uvicorn_from_stopping() -> None:
    """See server.http.server."""

    async def test() -> None:
        async with (
            plain(timeout_graceful_shutdown=None) as served,
            connected(served) as (_, writer),
        ):
            writer.write(request(length=100))
            await until(lambda: bool(served.server.server_state.tasks))
            await served.stop()
            await stays(served)

    run(test())


# Listening sockets: server.http.server, server.http.sockets


def test_uvicorn_resets_connections_that_it_has_not_accepted() -> None:
    async def test() -> None:
        config = plain_config(Calls())
        config.load()
        server = uvicorn.Server(config)
        server.lifespan = config.lifespan_class(config)
        (listener,) = listen(HOST, 0)
        await server.startup([listener])
        # The kernel completes the connection; the event loop does not run to accept it.
        with socket.create_connection(listener.getsockname()) as client:
            client.sendall(request())
            await server.shutdown([listener])
            with pytest.raises(ConnectionResetError):
                client.recv(100)

    run(test())


# TLS: server.http.tls_handshake, server.http.negotiation


@pytest.fixture(scope="module")
def ca() -> Issued:
    return Issued.ca()


@pytest.fixture
def context(ca: Issued, tmp_path: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*ca.issue().save(tmp_path, "server"))
    context.set_alpn_protocols(ALPN_PROTOCOLS)
    return context


def test_uvicorn_does_not_know_of_handshakes_under_way(context: ssl.SSLContext) -> None:
    async def test() -> None:
        async with plain(context=context) as served, connected(served) as (_, writer):
            writer.write(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc")  # the start of a ClientHello
            await asyncio.sleep(0.2)
            assert served.server.server_state.connections == set()

    run(test())


def test_uvloop_does_not_tell_of_encrypted_bytes_that_wait(
    ca: Issued, context: ssl.SSLContext
) -> None:
    async def test() -> None:
        async with plain(context=context) as served:
            reader, writer = await asyncio.open_connection(
                HOST, served.port, ssl=Trust(ca).context(), server_hostname=HOST, limit=2**10
            )
            writer.write(request(ECHO, bytes(32 * 2**20)))
            await until(lambda: served.app.started.total() == 1)
            await asyncio.sleep(_WAIT)  # The client has stopped reading.
            assert len(reader._buffer) < 2**20  # type: ignore[attr-defined]
            assert only_connection(served).transport.get_write_buffer_size() < 2**10
            writer.transport.abort()

    run(test())


def test_uvicorn_goes_by_alpn_alone(ca: Issued, context: ssl.SSLContext) -> None:
    async def test() -> None:
        async with plain(context=context) as served:
            reader, writer = await asyncio.open_connection(
                HOST, served.port, ssl=Trust(ca).context(), server_hostname=HOST
            )
            writer.write(PREFACE)
            assert (await reader.readline()).startswith(b"HTTP/1.1 400 ")
            writer.transport.abort()

    run(test())
