"""HTTP/2 connections end without losing a call of grpcio and without running one twice."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Iterator

import grpc
import pytest

from server.http import ALPN_PROTOCOLS
from tests.support.http2 import ECHO, HOLD, Served, connected, prefixed, run, serving, until


@pytest.fixture(autouse=True)
def _nothing_is_logged(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Fail a test during which asyncio or uvicorn logged a warning or an error."""
    yield
    assert [r.getMessage() for r in caplog.get_records("call") if r.levelno > logging.INFO] == []


def channel_to(*served: Served) -> grpc.aio.Channel:
    """A channel to the first reachable one of some servers."""
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
        async with serving(goaway_after_streams=100) as served, channel_to(served) as channel:
            await call_all(channel, range(3_000), concurrency=concurrency)
        assert served.app.started == Counter(b"%d" % n for n in range(3_000))
        assert len(served.connections) > 10

    run(test())


def test_slow_calls_outlive_the_goaway_of_their_connection() -> None:
    async def test() -> None:
        async with serving(goaway_after_streams=150) as served, channel_to(served) as channel:
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
            load = asyncio.ensure_future(call_all(channel, range(4_000), concurrency=concurrency))
            await until(lambda: len(served.app.started) > 300)
            await served.stop()
            await load
        assert served.app.started + successor.app.started == Counter(
            b"%d" % n for n in range(4_000)
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
    assert ALPN_PROTOCOLS == ("h2", "http/1.1")
