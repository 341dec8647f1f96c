"""What is written in one iteration of the event loop arrives together."""

from __future__ import annotations

import asyncio
import socket
import ssl
from pathlib import Path
from typing import Final

import pytest

from server.http.joined_writes import _MAX_JOINED, JoinedWrites
from tests.support.certificates import Issued
from tests.support.http2 import (
    DATA,
    ECHO,
    END_HEADERS,
    END_STREAM,
    HEADERS,
    PLAIN,
    SETTINGS,
    header_block,
    prefixed,
    run,
    serving,
)
from tests.support.raw import PREFACE, frame, frames
from tests.support.tls_records import received

BODY: Final = prefixed(b"1")


@pytest.fixture(scope="module")
def ca() -> Issued:
    return Issued.ca()


@pytest.fixture
def context(ca: Issued, tmp_path: Path) -> ssl.SSLContext:
    return ca.issue().save(tmp_path, "server").context()


@pytest.mark.parametrize("path", [ECHO, PLAIN], ids=["trailers", "no trailers"])
def test_http_2(ca: Issued, context: ssl.SSLContext, path: bytes) -> None:
    sent = PREFACE + frame(SETTINGS)
    sent += frame(HEADERS, END_HEADERS, 1, header_block(path)) + frame(DATA, END_STREAM, 1, BODY)

    def ends(record: bytes) -> bool:
        return any(each.stream_id == 1 and each.flags & END_STREAM for each in frames(record))

    async def test() -> None:
        async with serving(lambda: context) as served:
            records = await asyncio.to_thread(received, ca, served.port, "h2", sent, ends)
        response = [record for record in records if any(f.stream_id == 1 for f in frames(record))]
        assert len(response) == 1

    run(test())


def test_http_1(ca: Issued, context: ssl.SSLContext) -> None:
    sent = b"POST %b HTTP/1.1\r\nhost: test\r\ncontent-length: %d\r\n\r\n%b"

    async def test() -> None:
        async with serving(lambda: context) as served:
            records = await asyncio.to_thread(
                received,
                ca,
                served.port,
                "http/1.1",
                sent % (ECHO, len(BODY), BODY),
                lambda record: record.endswith(b"0\r\n\r\n"),
            )
        assert len(records) == 1

    run(test())


class Paused(asyncio.Protocol):
    """Remembers whether its transport has asked it to stop writing."""

    is_paused = False

    def pause_writing(self) -> None:
        self.is_paused = True


def test_the_transport_pauses_a_response_that_is_written_in_one_iteration() -> None:
    """What is held to be joined is not counted by the transport."""

    async def test() -> None:
        ours, theirs = socket.socketpair()
        with theirs:  # reads nothing
            loop = asyncio.get_running_loop()
            transport, protocol = await loop.create_connection(Paused, sock=ours)
            joined = JoinedWrites(transport, loop)
            joined.write(bytes(_MAX_JOINED - 1))
            assert transport.get_write_buffer_size() == 0
            for _ in range(100):
                joined.write(bytes(_MAX_JOINED // 4))
            assert protocol.is_paused
            transport.abort()

    run(test())
