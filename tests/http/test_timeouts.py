"""Timeouts of incomplete requests and of responses that are not read."""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress

import pytest

from server.http import Server
from server.http.h2_flow import ENHANCE_YOUR_CALM
from tests.support.http2 import (
    CANCEL,
    DATA,
    EARLY,
    ECHO,
    END_HEADERS,
    END_STREAM,
    HEADERS,
    HOLD,
    NO_WINDOW,
    PING,
    PLAIN,
    SETTINGS,
    Calls,
    Peer,
    connected,
    dripping,
    header_block,
    prefixed,
    run,
    running,
    serving,
    until,
)
from tests.support.raw import PREFACE, frame

BODY = prefixed(b"1")
HEAD = b"POST %b HTTP/1.1\r\nHost: test\r\nContent-Length: %d\r\n\r\n" % (ECHO, len(BODY))

HEADER_LIST = frame(HEADERS, 0, 1, header_block(ECHO))  # without END_HEADERS

# The start of a request, and bytes sent repeatedly after it that do not complete it.
INCOMPLETE = {
    "nothing": (b"", b""),
    "preface": (b"PRI * HT", b""),
    "preface-without-settings": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b""),
    "head": (b"POST / HTTP/1.1\r\nx: ", b"x"),
    "second-head": (HEAD + BODY + b"POST / HTTP/1.1\r\nx: ", b"x"),
    "body": (HEAD[: HEAD.index(b"Content")] + b"Content-Length: 100000\r\n\r\n", b"x"),
    "chunked-body": (
        HEAD[: HEAD.index(b"Content")] + b"Transfer-Encoding: chunked\r\n\r\n",
        b"1\r\nx\r\n",
    ),
    "frame": (PREFACE, b"x"),
    "header-list": (PREFACE, b""),
    # In one read with what is complete.
    "settings-and-frame": (PREFACE + HEADER_LIST[:20], b""),
    "settings-and-header-list": (PREFACE + HEADER_LIST, b""),
    "ping-and-header-list": (PREFACE + frame(PING, payload=bytes(8)) + HEADER_LIST, b""),
    "request-and-header-list": (
        PREFACE
        + frame(HEADERS, END_HEADERS | END_STREAM, 1, header_block(ECHO))
        + frame(HEADERS, 0, 3, header_block(ECHO)),
        b"",
    ),
}


@pytest.mark.parametrize("kind", INCOMPLETE)
def test_an_incomplete_request_ends_with_its_connection(kind: str) -> None:
    start, part = INCOMPLETE[kind]

    async def test() -> None:
        async with (
            serving(check_interval=0.1, request_timeout=0.3, h2_frame_timeout=0.3) as served,
            connected(served) as (reader, writer),
        ):
            writer.write(start)
            if start == PREFACE:  # the server reads it separately from the incomplete part
                await reader.readexactly(9)
                await asyncio.sleep(0.05)
                writer.write(HEADER_LIST if kind == "header-list" else HEADER_LIST[:20])
            async with dripping(writer, part), asyncio.timeout(5):
                answer = b""
                with suppress(ConnectionError):
                    answer = await reader.read()
            if start.startswith(b"POST"):
                assert b"HTTP/1.1 408 Request Timeout\r\n" in answer
            complete = kind in ("second-head", "request-and-header-list")
            assert served.app.started.total() == complete

    run(test())


@pytest.mark.parametrize("at", [30, len(HEAD) + 1])
def test_an_incomplete_request_that_was_answered_with_408_is_not_executed(at: int) -> None:
    """The rest arrives after the 408, which may have made the client retry elsewhere."""

    async def test() -> None:
        async with (
            serving(check_interval=0.1, request_timeout=0.3) as served,
            connected(served) as (reader, writer),
        ):
            request = HEAD + BODY
            writer.write(request[:at])
            assert b"408" in await reader.readline()
            writer.write(request[at:])
            await until(lambda: not served.server.server_state.connections)
        assert served.app.started.total() == 0

    run(test())


@pytest.mark.parametrize("size", [0, 1])
def test_an_incomplete_body_over_http_2_resets_its_stream_only(size: int) -> None:
    """Other streams of the connection are answered, even later than the timeout."""

    async def test() -> None:
        async with (
            serving(check_interval=0.1, request_timeout=0.3) as served,
            Peer.connected(served) as peer,
        ):
            peer.call(1, HOLD)
            peer.send(HEADERS, END_HEADERS, 3, header_block(ECHO))
            part = b"\0\0" + size.to_bytes() + b"\0\0\0\0\0\3" + b"x" * size  # DATA
            async with dripping(peer.writer, part), asyncio.timeout(5):
                await peer.until(lambda: 3 in peer.resets)
            assert peer.resets == {3: CANCEL}
            peer.call(5)
            await peer.answer(5)
            served.app.release.set()
            await peer.answer(1)
            assert peer.goaways == []
        assert served.app.started == {b"1": 1, b"5": 1}

    run(test())


def test_complete_requests_and_idle_connections_do_not_time_out() -> None:
    """A connection with a request in flight and an idle one stay open past request_timeout."""

    async def test() -> None:
        async with (
            serving(
                check_interval=0.1,
                request_timeout=0.2,
                h2_frame_timeout=0.2,
                response_stall_timeout=0.2,
            ) as served,
            connected(served) as (waiting_reader, waiting),
            connected(served) as (quiet_reader, quiet),
            Peer.connected(served) as peer,
        ):
            head = HEAD.replace(ECHO, HOLD)
            waiting.write(head + BODY)
            quiet.write(HEAD + BODY)
            await quiet_reader.readuntil(b"0\r\n\r\n")
            # The SETTINGS acknowledgement of the handshake arrives alone.
            peer.send(SETTINGS, 1)
            await asyncio.sleep(0.8)

            quiet.write(HEAD + BODY)
            assert b"200 OK" in await quiet_reader.readuntil(b"0\r\n\r\n")
            served.app.release.set()
            assert b"200 OK" in await waiting_reader.readuntil(b"0\r\n\r\n")
            peer.call(1)
            await peer.answer(1)
            assert peer.goaways == []

    run(test())


def test_a_response_that_is_not_read_ends_with_its_connection() -> None:
    async def test() -> None:
        async with (
            serving(check_interval=0.1, response_stall_timeout=0.3) as served,
            connected(served) as (_, writer),
        ):
            body = bytes(8 * 2**20)  # echoed; more than the socket buffers hold
            head = HEAD.replace(
                b"Content-Length: %d" % len(BODY), b"Content-Length: %d" % len(body)
            )
            writer.write(head + body)
            async with asyncio.timeout(5):
                while len(served.server.server_state.connections) > 0:  # noqa: ASYNC110
                    await asyncio.sleep(0.01)

    run(test())


@pytest.mark.parametrize("also", [False, True])
def test_a_response_over_http_2_that_is_not_read_resets_its_stream_only(also: bool) -> None:
    """With and without other calls of the client in flight."""

    async def test() -> None:
        async with (
            serving(check_interval=0.1, response_stall_timeout=0.3) as served,
            Peer.connected(served, NO_WINDOW) as peer,
        ):
            if also:
                peer.call(1, HOLD)
            peer.call(3)
            async with asyncio.timeout(5):
                await peer.until(lambda: 3 in peer.resets)
            assert peer.resets == {3: ENHANCE_YOUR_CALM}  # gRPC's RESOURCE_EXHAUSTED
            assert peer.goaways == []

    run(test())


@pytest.mark.parametrize("path", [ECHO, PLAIN])
def test_a_connection_that_is_lost_during_a_response_is_freed(path: bytes) -> None:
    async def test() -> None:
        async with serving() as served:
            body = prefixed(bytes(300_000))  # echoed; more than the flow-control window
            for _ in range(3):
                async with Peer.connected(served) as peer:
                    peer.send(HEADERS, END_HEADERS, 1, header_block(path))
                    for at in range(0, len(body), 16_000):
                        peer.send(DATA, 0, 1, body[at : at + 16_000])
                        await asyncio.sleep(0)
                    peer.send(DATA, END_STREAM, 1)
                    while len(peer.messages.get(1, b"")) < 60_000:
                        peer.take(await peer.frame())
                peer.writer.transport.abort()
            state = served.server.server_state
            await until(lambda: not state.connections and not state.tasks)

    run(test())


def test_a_request_may_be_answered_before_it_is_complete() -> None:
    """After the rest of the request has arrived, the connection serves further requests."""

    async def test() -> None:
        async with (
            serving(check_interval=0.1, request_timeout=0.3) as served,
            connected(served) as (reader, writer),
        ):
            for _ in range(2):
                writer.write(HEAD.replace(ECHO, EARLY) + BODY[:1])
                assert b"200 OK" in await reader.readuntil(b"0\r\n\r\n")
                writer.write(BODY[1:])
                await asyncio.sleep(0.8)
            writer.write(HEAD + BODY)
            assert b"200 OK" in await reader.readuntil(b"0\r\n\r\n")

    run(test())


@pytest.mark.parametrize("slowly", [False, True])
def test_the_rest_of_an_answered_request_is_bounded(slowly: bool) -> None:
    """The server closes after some time in which the client can read the response."""

    async def test() -> None:
        async with (
            serving(check_interval=0.1, request_timeout=0.3 if slowly else 30) as served,
            connected(served) as (reader, writer),
        ):
            long = HEAD.replace(b"Length: %d" % len(BODY), b"Length: 10000000")
            writer.write(long.replace(ECHO, EARLY) + b"x")
            async with dripping(writer, b"x" if slowly else bytes(16_000)), asyncio.timeout(5):
                answer = await reader.read()
                assert answer.startswith(b"HTTP/1.1 200 OK")
                assert b"408" not in answer
                began = time.monotonic()
                await until(lambda: not served.server.server_state.connections)
                assert 1 < time.monotonic() - began < 3

    run(test())


def test_pipelined_requests_may_exceed_max_read_ahead_in_all() -> None:
    """The limit applies to the bytes that are read ahead at one time."""

    async def test() -> None:
        async with serving() as served, connected(served) as (reader, writer):
            request = HEAD + BODY
            writer.write(request * 8)
            for number in range(2_000):
                await reader.readuntil(b"0\r\n\r\n")
                if number < 1_992:
                    writer.write(request)
        assert served.app.started == {b"1": 2_000}

    run(test())


def test_what_comes_in_one_read_may_exceed_max_read_ahead() -> None:
    """The limit applies to further reads: of this one, the first request is on its way already."""

    async def test() -> None:
        async with serving(max_read_ahead=100) as served, connected(served) as (reader, writer):
            writer.write((HEAD + BODY) * 8)
            for _ in range(8):
                await reader.readuntil(b"0\r\n\r\n")
        assert served.app.started == {b"1": 8}

    run(test())


def test_a_head_that_begins_behind_an_answered_request_is_limited() -> None:
    async def test() -> None:
        async with (
            serving(check_interval=0.1, request_timeout=0.3, keep_alive=30) as served,
            connected(served) as (reader, writer),
            asyncio.timeout(5),
        ):
            writer.write(HEAD.replace(ECHO, EARLY) + BODY[:1])
            assert b"200 OK" in await reader.readuntil(b"0\r\n\r\n")
            writer.write(BODY[1:] + HEAD[:10])
            assert b"408" in await reader.read()

    run(test())


def test_a_path_that_is_not_ascii_over_http_1(caplog: pytest.LogCaptureFixture) -> None:
    async def test() -> None:
        async with serving() as served, connected(served) as (reader, writer):
            writer.write(HEAD.replace(ECHO, "/é".encode()) + BODY)
            assert (await reader.read()).startswith(b"HTTP/1.1 400 Bad Request")

    run(test())
    assert "Traceback" not in caplog.text


def test_pings_keep_an_idle_connection() -> None:
    """As gRPC's keep-alive does: a PING restarts the idle timer."""

    async def test() -> None:
        async with serving(h2_idle=0.3) as served, Peer.connected(served) as peer:
            for number in range(10):
                peer.send(PING, payload=number.to_bytes(8))
                await asyncio.sleep(0.1)
            peer.call(1)
            await peer.answer(1)
            assert peer.goaways == []

    run(test())


def test_an_old_connection_ends_and_loses_no_call() -> None:
    async def test() -> None:
        async with serving(h2_age=0.3) as served, Peer.connected(served) as peer:
            peer.call(1, HOLD)
            await peer.initial_goaway()
            peer.call(3)
            await peer.answer(3)
            peer.answer_ping()
            assert await peer.final_goaway() == 3
            served.app.release.set()
            await peer.answer(1)
            await peer.end()
        assert served.app.started == {b"1": 1, b"3": 1}

    run(test())


def test_every_second_is_called_every_second() -> None:
    async def test() -> None:
        times: list[float] = []
        loop = asyncio.get_running_loop()
        server = Server(Calls(), every_second=lambda: times.append(loop.time()))
        async with running(server):
            await until(lambda: len(times) == 3)
        assert 1.8 < times[2] - times[0] < 5

    run(test())
