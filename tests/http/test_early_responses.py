"""HTTP/1.1 responses that begin before the body of their request has been received."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final, TypeAlias

import pytest
from uvicorn._types import ASGIReceiveCallable, ASGISendCallable, Scope

from server.http import Limits, Server
from tests.support.certificates import HOST, Issued, Trust
from tests.support.http2 import run, running, until

Parts: TypeAlias = tuple[bytes, bytes]
"""A request up to a point within its body, and the rest."""

LIMIT: Final = 64 * 1024
NEXT: Final = b"POST /read HTTP/1.1\r\nHost: test\r\nContent-Length: 1\r\n\r\nx"
CLOSES: Final = b"connection: close\r\n"
CONTINUE: Final = b"Expect: 100-continue"


async def refuse_or_read(
    scope: Scope, receive: ASGIReceiveCallable, send: ASGISendCallable
) -> None:
    """Answer /refuse with 401 at once, others with 200 after their body."""
    assert scope["type"] == "http"
    refused = scope["path"] == "/refuse"
    more_body = not refused
    while more_body:
        message = await receive()
        if message["type"] != "http.request":
            return
        more_body = message["more_body"]
    headers = [(b"content-length", b"4")]
    await send(
        {
            "type": "http.response.start",
            "status": 401 if refused else 200,
            "headers": headers,
            "trailers": False,
        }
    )
    await send({"type": "http.response.body", "body": b"done", "more_body": False})


@asynccontextmanager
async def serving(
    context: ssl.SSLContext | None = None, **options: Any
) -> AsyncIterator[tuple[Server, int]]:
    tls = None if context is None else lambda: context
    limits = Limits(max_read_ahead=LIMIT, **options)
    server = Server(refuse_or_read, tls=tls, limits=limits)
    async with running(server) as port:
        yield server, port


@asynccontextmanager
async def connected(
    port: int, context: ssl.SSLContext | None = None
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    reader, writer = await asyncio.open_connection(HOST, port, ssl=context)
    try:
        yield reader, writer
    finally:
        writer.transport.abort()


def refused(*headers: bytes) -> bytes:
    return b"\r\n".join([b"POST /refuse HTTP/1.1", b"Host: test", *headers, b"", b""])


def of_length(length: int, *headers: bytes) -> Parts:
    return refused(b"Content-Length: %d" % length, *headers) + b"x", bytes(length - 1)


def chunked(length: int) -> Parts:
    start = refused(b"Transfer-Encoding: chunked") + b"1\r\nx\r\n"
    return start, b"%x\r\n%b\r\n0\r\n\r\n" % (length, bytes(length))


async def response(reader: asyncio.StreamReader) -> tuple[bytes, bool]:
    """Return the status of a response, and whether it is the last of its connection."""
    async with asyncio.timeout(5):
        head = await reader.readuntil(b"\r\n\r\n")
        assert await reader.readexactly(4) == b"done"
    return head.split()[1], CLOSES in head


@pytest.mark.parametrize(
    "parts",
    [
        pytest.param(of_length(2), id="2 bytes"),
        pytest.param(of_length(LIMIT), id="limit"),
    ],
)
@pytest.mark.parametrize("together", [True, False])
def test_a_connection_goes_on_after_a_short_body(parts: Parts, together: bool) -> None:
    """Whether the next requests arrive with the rest of the body or after it."""
    start, rest = parts

    async def test() -> None:
        async with serving() as (_, port), connected(port) as (reader, writer):
            for _ in range(2):
                writer.write(start)
                assert await response(reader) == (b"401", False)
                writer.write(rest)
                if not together:
                    await writer.drain()
                    await asyncio.sleep(0.05)  # the server reads the next requests separately
                writer.write(NEXT * 500)
                for _ in range(500):
                    assert await response(reader) == (b"200", False)

    run(test())


@pytest.mark.parametrize(
    "parts",
    [
        pytest.param(of_length(LIMIT + 1), id="above the limit"),
        pytest.param(of_length(2**22), id="4 MiB"),
        pytest.param(chunked(1), id="chunked"),
        pytest.param(chunked(2**22), id="chunked, 4 MiB"),
        pytest.param((refused(b"Content-Length: 2", CONTINUE), b"xx"), id="without a 100"),
    ],
)
@pytest.mark.parametrize("secure", [False, True], ids=["plain", "tls"])
def test_a_connection_that_does_not_go_on_says_so(
    parts: Parts, secure: bool, tmp_path: Path
) -> None:
    """And its client can read the response, although it still sends the body."""
    start, rest = parts
    context = client = None
    if secure:
        ca = Issued.ca()
        context, client = ca.issue().save(tmp_path, "server").context(), Trust(ca).context()

    async def test() -> None:
        async with (
            serving(context, close_delay=0.5) as (server, port),
            connected(port, client) as (reader, writer),
        ):
            writer.write(start)
            await until(lambda: server.server_state.total_requests == 1)
            writer.write(rest)
            assert await response(reader) == (b"401", True)
            await until(lambda: not server.server_state.connections)

    run(test())


def test_a_body_that_arrives_before_the_response_begins_changes_nothing() -> None:
    async def test() -> None:
        async with serving() as (_, port), connected(port) as (reader, writer):
            for start, rest in (of_length(LIMIT + 1), chunked(2**16)):
                writer.write(start.replace(b"/refuse", b"/read") + rest)
                assert await response(reader) == (b"200", False)

    run(test())
