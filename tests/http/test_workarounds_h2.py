"""Canaries for HTTP/2: faults of uvicorn and zttp that ``server.http`` works around.

Each test shows one fault on a plain ``uvicorn.Server``, as in ``test_workarounds``. When a test
fails after an update of these packages, the workaround that it names may go: see the table in
``docs/development.md``.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
import zttp

from server.http.h2_flow import ENHANCE_YOUR_CALM, NO_ERROR
from tests.support.answers import Recorder
from tests.support.http2 import (
    ACK,
    CONTINUATION,
    DATA,
    ECHO,
    END_HEADERS,
    END_STREAM,
    GOAWAY,
    HEADERS,
    HOLD,
    NO_WINDOW,
    PING,
    SETTINGS,
    Peer,
    dripping,
    header_block,
    run,
    until,
)
from tests.support.plain_uvicorn import WAIT, only_connection, plain
from tests.support.raw import PREFACE, frame


async def has_no_end(peer: Peer, end: Callable[[], object]) -> None:
    """Check that an HTTP/2 client does not receive ``end`` within ``WAIT``."""
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(WAIT):
            await peer.until(end)


# Connections: server.http.h2


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


def test_zttp_ends_a_connection_with_a_header_list_above_64_kib() -> None:
    """See ``Limits.h2_max_header_list``."""

    async def test() -> None:
        async with plain() as served, Peer.connected(served) as peer:
            peer.call(1, HOLD)
            block = header_block(ECHO, (b"x", b"a" * 2**16))
            peer.send(HEADERS, 0, 3, block[:16_384])
            for at in range(16_384, len(block), 16_384):
                last = END_HEADERS if at + 16_384 >= len(block) else 0
                peer.send(CONTINUATION, last, 3, block[at : at + 16_384])
            await peer.until(lambda: peer.goaways)
            assert peer.goaways[0][1] == ENHANCE_YOUR_CALM

    run(test())


def test_zttp_does_not_tell_whether_a_frame_is_incomplete() -> None:
    """After an acknowledgement of SETTINGS it says the same as after a part of a header list."""

    def after(received: bytes) -> tuple[object, set[str]]:
        connection = zttp.Connection(zttp.SERVER, protocol=zttp.HTTP2)
        connection.initiate_connection()
        connection.receive_data(PREFACE)
        while connection.next_event() is not zttp.NEED_DATA:
            pass
        connection.receive_data(received)
        return connection.next_event(), {name for name in dir(connection) if "pend" in name}

    expected = zttp.NEED_DATA, {"has_pending_send"}
    assert after(frame(SETTINGS, ACK)) == expected
    assert after(frame(HEADERS, 0, 1, header_block(ECHO))) == expected


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
            await asyncio.wait_for(peer.end(), WAIT)
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


# Streams: server.http.h2_flow


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


def test_uvicorn_sends_the_head_of_a_response_without_content_apart() -> None:
    """See server.http.trailers_only."""

    async def app(_scope: Any, _receive: Any, send: Any) -> None:
        head = {"type": "http.response.start", "status": 200, "headers": [], "trailers": True}
        await send(head)
        await send({"type": "http.response.body"})
        await send({"type": "http.response.trailers", "headers": [(b"grpc-status", b"14")]})

    async def test() -> None:
        async with plain(app) as served, Recorder.connected(served) as client:
            client.call(1)
            await client.until(lambda: 1 in client.answered)
            assert client.kinds(1) == [HEADERS, HEADERS]

    run(test())


# Slow clients: server.http.timeouts


def test_uvicorn_has_no_timeout_for_an_incomplete_request_over_http_2() -> None:
    async def test() -> None:
        async with plain(timeout_keep_alive=0.3) as served, Peer.connected(served) as peer:
            peer.send(HEADERS, END_HEADERS, 1, header_block(ECHO))
            peer.send(DATA, 0, 1, b"x")
            await has_no_end(peer, lambda: peer.resets or peer.goaways)

    run(test())
