"""Requests over HTTP/1.1 and 1.0 as RFC 9112 has them, and those that it does not allow."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final, NamedTuple

import pytest
from uvicorn._types import ASGIReceiveCallable, ASGISendCallable, Scope

from server.http import Limits, Server
from server.http.h1_requests import MAX_FIELDS, MAX_HEAD, MAX_LINE
from tests.support.certificates import HOST
from tests.support.http2 import run, running

LENGTH: Final = b"content-length: "


async def describe(scope: Scope, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
    """Answer with what the application gets; /sized says how long that is."""
    assert scope["type"] == "http"
    content = b""
    while True:
        message = await receive()
        if message["type"] != "http.request":
            return
        content += message["body"]
        if not message["more_body"]:
            break
    headers = dict(scope["headers"])
    got = {
        "path": scope["path"],
        "raw_path": scope["raw_path"].decode(),
        "query": scope["query_string"].decode(),
        "host": headers.get(b"host", b"").decode(),
        "content": content.decode(),
    }
    body = json.dumps(got).encode()
    sized = [(b"content-length", b"%d" % len(body))] if "sized" in scope["path"] else []
    await send({"type": "http.response.start", "status": 200, "headers": sized, "trailers": False})
    await send({"type": "http.response.body", "body": body[:1], "more_body": True})
    await send({"type": "http.response.body", "body": body[1:], "more_body": False})


class Connection(NamedTuple):
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def head(self) -> bytes:
        async with asyncio.timeout(5):
            return (await self.reader.readuntil(b"\r\n\r\n")).lower()

    async def sized(self) -> dict[str, Any]:
        """Return what the application got, from a response of known length."""
        head = await self.head()
        assert head.startswith(b"http/1.1 200"), head
        length = int(head.partition(LENGTH)[2].partition(b"\r\n")[0])
        return dict(json.loads(await self.reader.readexactly(length)))

    async def rest(self) -> bytes:
        async with asyncio.timeout(5):
            return await self.reader.read()


@asynccontextmanager
async def serving() -> AsyncIterator[int]:
    async with running(Server(describe, headers=[("x-default", "1")])) as port:
        yield port


@asynccontextmanager
async def connected(port: int) -> AsyncIterator[Connection]:
    reader, writer = await asyncio.open_connection(HOST, port)
    yield Connection(reader, writer)
    writer.transport.abort()


@asynccontextmanager
async def connection() -> AsyncIterator[Connection]:
    async with serving() as port, connected(port) as client:
        yield client


def get(*fields: bytes, target: bytes = b"/", version: bytes = b"1.1") -> bytes:
    return b"\r\n".join([b"GET %b HTTP/%b" % (target, version), *fields, b"", b""])


# Targets


@pytest.mark.parametrize(
    ("target", "host", "path", "query"),
    [
        ("http://other.example:8080/sized/%C3%A9?a=/b", "other.example:8080", "/sized/é", "a=/b"),
        ("HTTPS://[::1]/sized", "[::1]", "/sized", ""),
        ("http://other.example/sized?x=http://third.example/", "other.example", "/sized", None),
        ("/sized?x=http://third.example/", "test", "/sized", None),
    ],
)
def test_the_target_may_be_in_absolute_form(
    target: str, host: str, path: str, query: str | None
) -> None:
    """RFC 9112, section 3.2.2: its authority takes the place of Host."""

    async def test() -> None:
        async with connection() as client:
            for _ in range(2):
                client.writer.write(f"GET {target} HTTP/1.1\r\nHost: test\r\n\r\n".encode())
                got = await client.sized()
                assert (got["host"], got["path"]) == (host, path)
                if query is not None:
                    assert got["query"] == query

    run(test())


def test_a_target_in_absolute_form_may_have_no_path() -> None:
    async def test() -> None:
        async with connection() as client:
            request = (
                b"GET http://other.example?a HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n"
            )
            client.writer.write(request)
            answer = await client.rest()
            assert b'"path": "/", "raw_path": "/", "query": "a", "host": "other.example"' in answer

    run(test())


# Empty lines


@pytest.mark.parametrize("pause", [False, True])
@pytest.mark.parametrize("body", [b"", b"{}"])
@pytest.mark.parametrize("lines", [b"\r\n", b"\r\n\r\n\r\n"])
def test_empty_lines_before_a_request_are_ignored(lines: bytes, body: bytes, pause: bool) -> None:
    """RFC 9112, section 2.2. In one read with the request, or byte by byte."""
    request = b"POST /sized HTTP/1.1\r\nHost: test\r\nContent-Length: %d\r\n\r\n" % len(body)

    async def test() -> None:
        async with connection() as client:
            for _ in range(3):
                for part in [lines[i : i + 1] for i in range(len(lines))] if pause else [lines]:
                    client.writer.write(part)
                    await asyncio.sleep(0.01 if pause else 0)
                client.writer.write(request)
                await asyncio.sleep(0.01 if pause else 0)
                client.writer.write(body)
                assert (await client.sized())["content"] == body.decode()

    run(test())


@pytest.mark.parametrize("body", [b"", b"{}", b"\r\n\r\n"])
def test_empty_lines_between_pipelined_requests_are_ignored(body: bytes) -> None:
    """In one read with either request, or split anywhere."""
    request = get(b"Host: test", b"Content-Length: %d" % len(body), target=b"/sized") + body
    sent = (request + b"\r\n\r\n") * 2

    async def test() -> None:
        async with serving() as port:
            for at in (*range(len(request), len(request) + 9), len(sent)):
                async with connected(port) as client:
                    client.writer.write(sent[:at])
                    await client.sized()
                    client.writer.write(sent[at:])
                    await client.sized()
                    client.writer.write(request)
                    await client.sized()

    run(test())


def test_an_empty_line_within_pipelined_requests_stays() -> None:
    """The end of a head is not taken for an empty line, wherever the first read ends."""
    head = get(b"Host: test", target=b"/sized")
    body = b"\r\n\r\n"
    with_body = get(b"Host: test", b"Content-Length: 4", target=b"/sized") + body

    async def test() -> None:
        async with serving() as port:
            for sent in (head * 3, (with_body * 3)):
                for at in range(len(sent) // 3, len(sent)):
                    async with connected(port) as client:
                        client.writer.write(sent[:at])
                        await client.sized()
                        client.writer.write(sent[at:])
                        for _ in range(2):
                            await client.sized()

    run(test())


# HTTP/1.0


@pytest.mark.parametrize("method", [b"GET", b"HEAD"])
@pytest.mark.parametrize("path", [b"/", b"/sized"])
@pytest.mark.parametrize("keep_alive", [False, True])
def test_http_1_0_gets_no_chunks(method: bytes, path: bytes, keep_alive: bool) -> None:
    """The end of the body is that of the connection, unless its length is known."""
    field = b"Connection: keep-alive\r\n" if keep_alive else b""
    request = b"%b %b HTTP/1.0\r\n%b\r\n" % (method, path, field)

    async def test() -> None:
        async with connection() as client:
            client.writer.write(request)
            head = await client.head()
            assert head.startswith(b"http/1.1 200 ok\r\n")
            assert b"transfer-encoding" not in head
            assert b"x-default: 1\r\n" in head
            persists = keep_alive and (path == b"/sized" or method == b"HEAD")
            assert (b"connection: keep-alive\r\n" in head) == persists
            if not persists:
                assert head.count(b"connection: close\r\n") == 1
                body = await client.rest()
                assert body == b"" if method == b"HEAD" else json.loads(body)
            elif method != b"HEAD":
                await client.reader.readexactly(int(head.partition(LENGTH)[2].split()[0]))
            if persists:
                client.writer.write(request)
                assert await client.head() == head

    run(test())


def test_http_1_0_gets_no_100() -> None:
    """RFC 9110, section 10.1.1."""

    async def test() -> None:
        async with connection() as client:
            head = b"POST / HTTP/1.0\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n"
            client.writer.write(head)
            await asyncio.sleep(0.1)
            client.writer.write(b"{}")
            assert (await client.head()).startswith(b"http/1.1 200 ok\r\n")

    run(test())


# What is refused


def chunked(coding: bytes) -> bytes:
    fields = (b"Host: test", b"Transfer-Encoding: " + coding)
    return get(*fields).replace(b"GET", b"POST") + b"0\r\n\r\n"


LIMIT: Final = f"{MAX_LINE} bytes, all together {MAX_HEAD}, and there may be {MAX_FIELDS} fields"

REFUSED: Final = {
    "no Host": (get(), 400, "Host is missing"),
    "two Hosts": (get(b"Host: test", b"Host: test"), 400, "more than once"),
    "two Hosts, HTTP/1.0": (get(b"Host: a", b"Host: a", version=b"1.0"), 400, "more than once"),
    **{
        f"Host: {host!r}": (get(b"Host: " + host), 400, "Host is neither")
        for host in (b"a b", b"a/b", b"a@b", b"a:b", b"a:123456", b"[::1", b"\xff", b"a?b", b"%4")
    },
    "target: word": (get(b"Host: a", target=b"word"), 400, "neither a path"),
    "target: *": (get(b"Host: a", target=b"*"), 400, "neither a path"),
    "target: ftp": (get(b"Host: a", target=b"ftp://a/"), 400, "neither a path"),
    "target: user": (get(b"Host: a", target=b"http://u@a/"), 400, "neither a path"),
    "target: no host": (get(b"Host: a", target=b"http:///a"), 400, "neither a path"),
    "target: not ASCII": (get(b"Host: a", target="/é".encode()), 400, "not ASCII"),
    "gzip": (chunked(b"gzip"), 501, "chunked"),
    "gzip, chunked": (chunked(b"gzip, chunked"), 501, "chunked"),
    "identity": (chunked(b"identity"), 501, "chunked"),
    "HTTP/1.0": (chunked(b"chunked").replace(b"HTTP/1.1", b"HTTP/1.0"), 400, "HTTP/1.0 has no"),
    "chunked twice": (chunked(b"chunked, chunked"), 400, "how long the body is"),
    "both": (chunked(b"chunked\r\nContent-Length: 5"), 400, "how long the body is"),
    "length": (get(b"Host: a", b"Content-Length: -1"), 400, "how long the body is"),
    "long line": (get(b"Host: a", target=b"/" + b"a" * MAX_LINE), 431, LIMIT),
    "long field": (get(b"Host: a", b"x: " + b"a" * MAX_LINE), 431, LIMIT),
    "many fields": (get(b"Host: a", *[b"x: 1"] * MAX_FIELDS), 431, LIMIT),
    "much": (get(b"Host: a", *[b"x: " + b"a" * 1_000] * 66), 431, LIMIT),
    "much, and more to come": (get(b"Host: a", b"x: " + b"a" * 500_000), 431, LIMIT),
    "field": (get(b"Host: a", b"no colon"), 400, "a header field"),
    "line": (b"GET\r\n\r\n", 400, "the request line"),
    "version": (get(b"Host: a", version=b"3.0"), 400, "the request line"),
    "chunk": (chunked(b"chunked")[:-5] + b"no chunk\r\n", 400, "a chunk is not"),
    "TLS": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\r\n\r\n", 400, "TLS"),
}


@pytest.mark.parametrize("first", [False, True], ids=["second", "first"])
def test_a_request_that_is_not_allowed_is_told_why(
    first: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """In a text, which ends the connection. The log has it at the level of errors of callers."""
    caplog.set_level(logging.INFO)

    async def test() -> None:
        async with serving() as port:
            for name, (sent, status, reason) in REFUSED.items():
                caplog.clear()
                async with connected(port) as client:
                    if not first:
                        client.writer.write(get(b"Host: a", target=b"/sized"))
                        await client.sized()
                    client.writer.write(sent)
                    head = await client.head()
                    body = (await client.rest()).decode()
                assert int(head.split()[1]) == status, name
                assert b"content-type: text/plain; charset=utf-8\r\n" in head
                assert b"%b%d\r\n" % (LENGTH, len(body)) in head
                assert head.count(b"connection: close\r\n") == 1
                assert b"x-default: 1\r\n" in head
                assert reason in body, name
                (entry,) = caplog.records
                assert entry.levelno == logging.INFO
                assert f"with {status}: " in entry.getMessage()
                assert reason in entry.getMessage()

    run(test())


def test_a_length_may_begin_with_zeros() -> None:
    """More of them than Python's int() takes."""

    async def test() -> None:
        async with connection() as client:
            length = b"0" * 5_000 + b"2"
            head = b"POST /sized HTTP/1.1\r\nHost: a\r\nContent-Length: %b\r\n\r\n" % length
            for _ in range(2):
                client.writer.write(head + b"{}")
                assert (await client.sized())["content"] == "{}"

    run(test())


def test_a_refusal_of_head_has_no_body() -> None:
    async def test() -> None:
        async with serving() as port:
            for fields in ((), (b"Host: a b",)):
                async with connected(port) as client:
                    client.writer.write(get(*fields).replace(b"GET", b"HEAD"))
                    assert (await client.head()).startswith(b"http/1.1 400")
                    assert await client.rest() == b""

    run(test())


def test_a_client_that_sends_on_after_a_refusal_is_cut_off() -> None:
    """Before the time is over in which it can read why."""
    server = Server(describe, limits=Limits(close_delay=60))

    async def test() -> None:
        async with running(server) as port, connected(port) as client:
            client.writer.write(get(b"Host: a", target=b"word"))
            assert (await client.head()).startswith(b"http/1.1 400")
            with pytest.raises(ConnectionError):
                async with asyncio.timeout(20):
                    while True:
                        client.writer.write(b"x" * 65_536)
                        await client.writer.drain()
                        await asyncio.sleep(0)

    run(test())
