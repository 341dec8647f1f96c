"""The public interface of ``server.http``: hooks, headers, lifespan and shutdown."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest
import zttp

from server.http import Exchange, H2Connection, Limits, Server
from tests.support.http2 import (
    EARLY,
    ECHO,
    HOLD,
    PLAIN,
    Calls,
    Peer,
    Served,
    connected,
    prefixed,
    run,
    running,
    serving,
    until,
)

BODY = prefixed(b"1")
REQUEST = b"POST %b HTTP/1.1\r\nHost: test\r\nContent-Length: %d\r\n\r\n%b" % (
    ECHO,
    len(BODY),
    BODY,
)


class UpperCase:
    """An exchange that echoes the complete request body in upper case."""

    def __init__(self, connection: H2Connection, request: zttp.Request) -> None:
        self.stream = connection.conn.stream(request.stream_id)
        self.body = bytearray()
        self.more_body = not request.end_stream
        self.disconnected = self.response_started = self.response_complete = False
        self._connection = connection
        self._request = request

    @property
    def message_event(self) -> UpperCase:
        return self

    def set(self) -> None:
        if self.more_body or self.response_complete or self.disconnected:
            return
        if b"app" in self.body:
            self._connection.hand_over(self._request, self)
            return
        self.stream.send_response(200, [*self._connection.server_state.default_headers])
        self.stream.send_data(bytes(self.body).upper())
        self.stream.end_message()
        self.response_started = self.response_complete = True
        self._connection.flush()
        self._connection.sent(self, len(self.body))
        self._connection.on_response_complete(self.stream.stream_id)


def upper_case(connection: H2Connection, request: zttp.Request) -> Exchange | None:
    return UpperCase(connection, request) if request.path == PLAIN else None


async def message(peer: Peer, stream_id: int) -> bytes:
    await peer.until(lambda: stream_id in peer.answered)
    return peer.messages.get(stream_id, b"")


def test_a_request_is_rejected_or_answered_or_reaches_the_application() -> None:
    def reject(request: zttp.Request) -> list[tuple[bytes, bytes]] | None:
        return [(b"grpc-status", b"8")] if request.path == HOLD else None

    async def test() -> None:
        app = Calls()
        server = Server(app, reject=reject, answer=upper_case)
        async with (
            running(server) as port,
            Peer.connected(Served(app, port, server, [])) as peer,
        ):
            peer.call(1, HOLD)
            peer.call(3, PLAIN)
            peer.call(5, ECHO)
            assert await message(peer, 1) == b""
            assert await message(peer, 3) == prefixed(b"3")
            assert await message(peer, 5) == prefixed(b"5")
            assert peer.resets == {}
        assert app.started == {b"5": 1}

    run(test())


@pytest.mark.parametrize(("sent", "received"), [(b"abc", b"ABC"), (b"for the app", b"for the app")])
def test_an_exchange_may_hand_over_to_the_application(sent: bytes, received: bytes) -> None:
    async def test() -> None:
        app = Calls()
        server = Server(app, answer=upper_case)
        async with (
            running(server) as port,
            Peer.connected(Served(app, port, server, [])) as peer,
        ):
            peer.post(1, PLAIN, prefixed(sent))
            assert await message(peer, 1) == prefixed(received)
        assert app.started.total() == (sent == received)

    run(test())


def test_headers_are_on_every_response() -> None:
    async def test() -> None:
        app = Calls()
        server = Server(app, headers=[("x-one", "1")])
        async with (
            running(server) as port,
            connected(Served(app, port, server, [])) as (reader, writer),
        ):
            writer.write(REQUEST)
            head = await reader.readuntil(b"\r\n\r\n")
            assert b"x-one: 1\r\n" in head
            assert b"server:" not in head

    run(test())


@pytest.mark.parametrize("lifespan", ["auto", "off"])
def test_lifespan_events_are_sent_if_enabled(lifespan: Any) -> None:
    events: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "lifespan":
            await calls(scope, receive, send)
            return
        for _ in range(2):
            event = (await receive())["type"]
            events.append(event)
            await send({"type": f"{event}.complete"})

    calls = Calls()

    async def test() -> None:
        server = Server(
            app,
            lifespan=lifespan,
            started=lambda: events.append("started"),
            stopping=lambda: events.append("stopping"),
        )
        async with running(server):
            pass

    run(test())
    ours = ["started", "stopping"]
    if lifespan == "auto":
        ours = ["lifespan.startup", *ours, "lifespan.shutdown"]
    assert events == ours


def test_calls_are_cancelled_after_the_drain_timeout(caplog: pytest.LogCaptureFixture) -> None:
    async def test() -> None:
        app = Calls()
        server = Server(app, drain_timeout=0.3)
        async with running(server) as port:
            served = Served(app, port, server, [])
            async with Peer.connected(served) as peer:
                peer.call(1, HOLD)
                await until(lambda: len(app.started) == 1)
                began = time.monotonic()
                await served.stop()
                await until(lambda: not server.server_state.tasks)
                assert time.monotonic() - began < 2
        assert app.disconnected == {b"1": 1}

    run(test())
    assert "1 calls cancelled, 1 connections closed" in caplog.text


def test_a_connection_without_a_request_does_not_delay_the_stop() -> None:
    async def test() -> None:
        app = Calls()
        server = Server(app, limits=Limits(drain_first_bytes=0.2))
        async with running(server) as port:
            served = Served(app, port, server, [])
            async with connected(served) as (reader, _):
                await until(lambda: len(server.server_state.connections) == 1)
                await served.stop()
                async with asyncio.timeout(0.8):
                    assert await reader.read() == b""

    run(test())


def test_a_connection_has_time_for_its_first_bytes_while_the_server_stops() -> None:
    async def test() -> None:
        async with (
            serving(drain_request_timeout=0.1) as served,
            connected(served) as (reader, writer),
        ):
            await until(lambda: len(connections(served)) == 1)
            await asyncio.sleep(0.3)
            await served.stop()
            await asyncio.sleep(0.5)
            writer.write(REQUEST)
            assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200 OK\r\n")

    run(test())


def test_the_rest_of_an_answered_request_does_not_delay_the_stop() -> None:
    async def test() -> None:
        async with serving() as served, connected(served) as (reader, writer):
            request = REQUEST.replace(ECHO, EARLY)
            writer.write(request[:-1])
            await reader.readuntil(b"0\r\n\r\n")
            began = time.monotonic()
            await served.stop()
            await until(lambda: connections(served)[0]._is_draining)
            writer.write(request[-1:])
            assert await reader.read() == b""
            assert time.monotonic() - began < 5

    run(test())


@pytest.mark.parametrize("calls", [0, 1])
def test_an_idle_connection_serves_a_request_on_its_way_while_the_server_stops(calls: int) -> None:
    """Its response says that it is the last one; so does that of a call in progress."""

    async def test() -> None:
        async with serving() as served, connected(served) as (reader, writer):
            writer.write(REQUEST)
            await reader.readuntil(b"0\r\n\r\n")
            if calls:
                writer.write(REQUEST.replace(ECHO, HOLD))
                await until(lambda: served.app.started.total() == 2)
            await served.stop()
            if calls:
                served.app.release.set()
            else:
                await until(lambda: connections(served)[0]._is_draining)
                writer.write(REQUEST)
            async with asyncio.timeout(5):
                last = await reader.read()
            assert last.startswith(b"HTTP/1.1 200 OK\r\n")
            assert b"connection: close\r\n" in last.lower()
            assert last.endswith(b"0\r\n\r\n")

    run(test())


def test_an_idle_connection_does_not_delay_the_stop_for_long() -> None:
    async def test() -> None:
        async with serving() as served, connected(served) as (reader, writer):
            writer.write(REQUEST)
            await reader.readuntil(b"0\r\n\r\n")
            began = time.monotonic()
            await served.stop()
            assert await reader.read() == b""
            assert time.monotonic() - began < 3

    run(test())


def connections(served: Served) -> list[Any]:
    return list(served.server.server_state.connections)
