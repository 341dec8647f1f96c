"""The frames of the end of an HTTP/2 connection (RFC 9113, section 6.8)."""

from __future__ import annotations

import asyncio
import gc
import logging
from collections import Counter
from collections.abc import Iterator

import pytest

from server.http import Limits
from server.http.h2_flow import NO_ERROR
from tests.support.http2 import (
    CONTINUATION,
    DATA,
    ECHO,
    END_HEADERS,
    END_STREAM,
    GOAWAY,
    HEADERS,
    HOLD,
    PROTOCOL_ERROR,
    REFUSED_STREAM,
    WINDOW_UPDATE,
    Peer,
    header_block,
    prefixed,
    run,
    serving,
    until,
)


@pytest.fixture(autouse=True)
def _nothing_is_logged(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Fail a test during which asyncio or uvicorn logged a warning or an error."""
    yield
    assert [r.getMessage() for r in caplog.get_records("call") if r.levelno > logging.INFO] == []


def test_initial_and_final_goaway() -> None:
    async def test() -> None:
        async with (
            serving(goaway_after_streams=3, goaway_timeout=0.2) as served,
            Peer.connected(served) as peer,
        ):
            for stream_id in (1, 3, 5):
                peer.call(stream_id, HOLD)
            await peer.initial_goaway()

            # A stream opened before the client received the initial GOAWAY is served.
            peer.call(7)
            await peer.answer(7)
            assert len(peer.goaways) == 1

            # The client has read the initial GOAWAY, so the final one is exact.
            peer.answer_ping()
            assert await peer.final_goaway() == 7

            # A later stream is refused; those in flight are not bounded by goaway_timeout.
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


def test_a_request_may_end_with_its_headers() -> None:
    """A POST without a body has END_STREAM on its HEADERS; the application gets an empty body."""

    async def test() -> None:
        async with serving() as served, Peer.connected(served) as peer:
            peer.send(HEADERS, END_HEADERS | END_STREAM, 1, header_block(ECHO))
            await peer.until(lambda: 1 in peer.answered)
        assert served.app.started == {b"": 1}

    run(test())


@pytest.mark.parametrize("size", [32_768, 32_769, 65_536])
def test_a_header_list_that_is_too_large_ends_its_stream_only(size: int) -> None:
    """Up to what zttp announces to clients (SETTINGS_MAX_HEADER_LIST_SIZE)."""

    async def test() -> None:
        async with serving() as served, Peer.connected(served) as peer:
            peer.call(1, HOLD)
            # RFC 9113, section 6.5.2: names, values, and 32 for each field; of header_block's five.
            others = ":methodPOST:schemehttp:path:authoritylocalhosttetrailersx"
            rest = size - 6 * 32 - len(others) - len(ECHO)
            block = header_block(ECHO, (b"x", b"a" * rest))
            peer.send(HEADERS, 0, 3, block[:16_384])
            for at in range(16_384, len(block), 16_384):
                last = END_HEADERS if at + 16_384 >= len(block) else 0
                peer.send(CONTINUATION, last, 3, block[at : at + 16_384])
            peer.send(DATA, END_STREAM, 3, prefixed(b"3"))
            await peer.until(lambda: 3 in peer.answered)
            if size > 32_768:
                text = f"the header list has {size} bytes, and may have 32768 (RFC 9113"
                assert peer.messages[3].startswith(text.encode())
            else:
                assert peer.messages[3] == prefixed(b"3")
            served.app.release.set()
            await peer.answer(1)
            assert peer.goaways == []
        assert served.app.started == {b"1": 1} | ({b"3": 1} if size <= 32_768 else {})

    run(test())


def test_the_final_goaway_does_not_wait_for_a_ping_that_is_not_answered() -> None:
    async def test() -> None:
        async with (
            serving(goaway_after_streams=1, ping_timeout=0.1, goaway_timeout=0.1) as served,
            Peer.connected(served) as peer,
        ):
            peer.call(1)
            await peer.answer(1)
            assert await peer.final_goaway() == 1
            await peer.end()

    run(test())


def test_a_client_that_answers_the_ping_late_loses_no_stream() -> None:
    """As on a loaded machine. It has not read the initial GOAWAY, and goes on as before."""

    async def test() -> None:
        async with (
            serving(goaway_after_streams=1, goaway_timeout=0.02) as served,
            Peer.connected(served) as peer,
        ):
            peer.call(1)
            await peer.initial_goaway()
            last, ends = 1, asyncio.get_running_loop().time() + 0.3
            while asyncio.get_running_loop().time() < ends:
                last += 2
                peer.call(last)
                await peer.answer(last)
                await asyncio.sleep(0.005)
            peer.answer_ping()
            assert await peer.final_goaway() == last

    run(test())


def test_while_the_server_drains_a_ping_has_less_time() -> None:
    """Also one that was sent before."""

    async def test() -> None:
        async with (
            serving(goaway_after_streams=1, ping_timeout=60, goaway_timeout=0.1) as served,
            Peer.connected(served) as peer,
        ):
            peer.call(1)
            await peer.initial_goaway()
            await served.stop()
            assert await peer.final_goaway() == 1

    run(test())


def test_a_burst_of_streams_brings_the_final_goaway_on() -> None:
    async def test() -> None:
        async with (
            serving(goaway_after_streams=3, refuse_after_streams=5) as served,
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
def test_a_client_that_ignores_goaway_does_not_reach_zttps_limit_of_streams(batch: int) -> None:
    async def test() -> None:
        async with serving(goaway_timeout=0.2) as served, Peer.connected(served) as peer:
            peer.call(1, HOLD)
            await until(lambda: len(served.app.started) == 1)
            for first in range(3, 10_003, 2 * batch):
                stream_ids = range(first, first + 2 * batch, 2)
                for stream_id in stream_ids:
                    peer.call(stream_id)
                if stream_ids[-1] < 2 * Limits().ignore_after_streams:
                    await peer.ended(stream_ids[-1])
            served.app.release.set()
            await peer.answer(1)
            await peer.end()
        assert {code for _, code in peer.goaways} <= {NO_ERROR}
        # Each stream that was not refused ran once and was answered.
        assert {b"%d" % n for n in peer.answered} == set(served.app.started)
        assert set(served.app.started.values()) == {1}
        assert set(peer.resets.values()) == {REFUSED_STREAM}

    run(test())


def test_a_client_that_ignores_goaway_does_not_reach_zttps_limit_of_resets() -> None:
    async def test() -> None:
        async with serving() as served, Peer.connected(served) as peer:
            peer.call(1, HOLD)
            for stream_id in range(3, 1_003, 2):
                peer.call(stream_id, HOLD)
                peer.reset(stream_id)
            refused_from = 1 + 2 * Limits().refuse_after_resets + 2
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
            serving(goaway_after_streams=1, goaway_timeout=0.05, h2_idle=60) as served,
            Peer.connected(served, SMALL_WINDOW) as peer,
        ):
            peer.call(1)
            await peer.until(lambda: peer.pings)
            peer.answer_ping()
            await peer.until(lambda: peer.messages)
            assert await peer.final_goaway() == 1
            # Longer than goaway_timeout, after which an idle connection is closed.
            await asyncio.sleep(0.2)
            peer.send(WINDOW_UPDATE, 0, 1, (100).to_bytes(4))
            await peer.answer(1)
            await peer.end()

    run(test())


def test_a_response_does_not_wait_longer_than_the_idle_timeout() -> None:
    async def test() -> None:
        async with (
            serving(goaway_after_streams=1, goaway_timeout=0.05, h2_idle=1) as served,
            Peer.connected(served, SMALL_WINDOW) as peer,
        ):
            peer.call(1)
            await peer.until(lambda: peer.pings)
            peer.answer_ping()
            assert await peer.final_goaway() == 1
            await peer.end()
            assert 1 not in peer.answered

    run(test())


def test_a_stream_that_crosses_the_idle_goaway_is_served() -> None:
    async def test() -> None:
        async with serving(h2_idle=1) as served, Peer.connected(served) as peer:
            await peer.initial_goaway()
            peer.call(1)
            await peer.answer(1)
            peer.answer_ping()
            assert await peer.final_goaway() == 1

    run(test())


def test_a_stream_that_crosses_the_goaway_of_a_shutdown_is_served() -> None:
    async def test() -> None:
        async with serving() as served, Peer.connected(served) as peer:
            peer.call(1, HOLD)
            await until(lambda: len(served.app.started) == 1)
            await served.stop()
            await peer.initial_goaway()
            peer.call(3)
            await peer.answer(3)
            peer.answer_ping()
            assert await peer.final_goaway() == 3
            served.app.release.set()
            await peer.answer(1)

    run(test())


@pytest.mark.parametrize("obeys", [True, False])
def test_an_idle_connection_does_not_keep_the_server_from_stopping(obeys: bool) -> None:
    async def test() -> None:
        timeout = 60.0 if obeys else 0.1
        async with serving(goaway_timeout=timeout) as served, Peer.connected(served) as peer:
            peer.call(1)
            await peer.answer(1)
            await served.stop()
            if obeys:
                await peer.initial_goaway()
                peer.answer_ping()
                assert await peer.final_goaway() == 1
                peer.writer.close()
            await until(lambda: not served.server.server_state.connections)

    run(test())


@pytest.mark.parametrize("final", [False, True])
def test_a_connection_that_is_lost_meanwhile_is_freed(final: bool) -> None:
    async def test() -> None:
        async with serving(goaway_after_streams=2) as served, Peer.connected(served) as peer:
            peer.call(1, HOLD)
            peer.call(3, HOLD)
            await peer.initial_goaway()
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


def test_a_clients_goaway_starts_the_graceful_end() -> None:
    async def test() -> None:
        async with serving() as served, Peer.connected(served) as peer:
            peer.send(GOAWAY, payload=bytes(8))
            await peer.initial_goaway()
            peer.call(1)
            await peer.answer(1)
            peer.answer_ping()
            assert await peer.final_goaway() == 1

    run(test())


def test_a_path_that_is_not_ascii_resets_its_own_stream_only() -> None:
    async def test() -> None:
        async with serving() as served, Peer.connected(served) as peer:
            peer.call(1, HOLD)
            peer.call(3, b"/\xff")
            await peer.until(lambda: 3 in peer.resets)
            assert peer.resets == {3: PROTOCOL_ERROR}
            served.app.release.set()
            await peer.answer(1)

    run(test())
