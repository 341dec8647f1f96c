"""Canaries: faults of uvicorn, zttp and uvloop that ``server.http`` works around.

Each test shows one fault on a plain ``uvicorn.Server``. When a test fails after an update of these
packages, the workaround that it names may go: see the table in ``docs/development.md``. Those for
HTTP/2 are in ``test_workarounds_h2``, those for TLS in ``test_workarounds_tls``.
"""

from __future__ import annotations

import asyncio
import fcntl
import socket
import struct
import subprocess
import sys
import termios
from contextlib import suppress

import pytest
import uvicorn
import zttp

from server.http.h1_requests import MAX_FIELDS, MAX_HEAD, MAX_LINE
from server.http.sockets import listen
from tests.support.certificates import HOST
from tests.support.http2 import EARLY, ECHO, HOLD, Calls, Served, connected, run, until
from tests.support.plain_uvicorn import (
    BODY,
    WAIT,
    only_connection,
    plain,
    plain_config,
    request,
)


async def stays(served: Served) -> None:
    """Check that the server does not close the connection within ``WAIT``."""
    await asyncio.sleep(WAIT)
    assert not only_connection(served).transport.is_closing()


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


# HTTP/1.1: server.http.h1


def test_uvicorn_has_no_answer_to_a_path_that_is_not_ascii() -> None:
    async def test() -> None:
        async with plain() as served, connected(served) as (reader, writer):
            writer.write(request("/é".encode()))
            with suppress(ConnectionError):
                assert await reader.read() == b""

    run(test())


def status_of(request: bytes) -> str | None:
    """Return what zttp says of a request, or None where it takes it."""
    connection = zttp.Connection(zttp.SERVER)
    try:
        event = connection.receive_event(request)
    except zttp.RemoteProtocolError as error:
        return str(error)
    return None if isinstance(event, zttp.Request) else type(event).__name__


def test_zttp_takes_any_value_of_host_any_target_and_other_transfer_codings() -> None:
    for target, host, field in (
        (b"/", b"a b", b""),
        (b"word", b"a", b""),
        (b"http://a/", b"b", b""),
        (b"/", b"a", b"Transfer-Encoding: gzip, chunked\r\n"),
    ):
        head = b"POST %b HTTP/1.1\r\nHost: %b\r\n%b\r\n"
        assert status_of(head % (target, host, field)) is None


def test_zttp_takes_no_empty_line_before_a_request() -> None:
    head = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
    assert status_of(head) is None
    assert status_of(b"\r\n" + head) == "malformed header field"


def test_zttp_has_one_error_for_several_faults_of_a_head() -> None:
    """And limits that cannot be set: see server.http.h1_requests."""
    head = b"GET / HTTP/1.1\r\nHost: a\r\n"
    framing = "ambiguous or conflicting message framing"
    assert status_of(b"GET / HTTP/1.1\r\n\r\n") == "malformed header field"
    assert status_of(head + b"word\r\n\r\n") == "malformed header field"
    assert status_of(head + b"Transfer-Encoding: gzip\r\n\r\n") == framing
    assert status_of(head + b"Content-Length: x\r\n\r\n") == framing
    too_large = "message exceeded configured size limit"
    assert status_of(head + b"x: " + b"a" * (MAX_LINE - 3) + b"\r\n\r\n") is None
    assert status_of(head + b"x: " + b"a" * (MAX_LINE - 2) + b"\r\n\r\n") == too_large
    assert status_of(head + b"x: 1\r\n" * (MAX_FIELDS - 1) + b"\r\n") is None
    assert status_of(head + b"x: 1\r\n" * MAX_FIELDS + b"\r\n") == too_large
    rest = b"x: " + b"a" * 8_000 + b"\r\n"
    filled = head + rest * 8
    assert status_of(filled + b"y: " + b"a" * (MAX_HEAD - len(filled) - 200) + b"\r\n\r\n") is None
    assert status_of(filled + b"y: " + b"a" * (MAX_HEAD - len(filled) + 200) + b"\r\n\r\n") == (
        too_large
    )


def test_uvicorn_does_not_say_what_is_wrong_with_a_request() -> None:
    async def test() -> None:
        async with plain() as served, connected(served) as (reader, writer):
            writer.write(b"GET / HTTP/1.1\r\n\r\n")
            assert (await reader.read()).endswith(b"\r\n\r\nInvalid HTTP request received.")

    run(test())


def test_uvicorn_sends_chunks_and_100_to_http_1_0() -> None:
    async def test() -> None:
        async with plain() as served, connected(served) as (reader, writer):
            head = b"POST %b HTTP/1.0\r\nContent-Length: 6\r\nExpect: 100-continue\r\n\r\n"
            writer.write(head % ECHO)
            assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 100 ")
            writer.write(BODY)
            assert b"transfer-encoding: chunked\r\n" in await reader.readuntil(b"\r\n\r\n")

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


def test_uvicorn_keeps_the_idle_timer_of_a_connection_that_is_reset() -> None:
    async def test() -> None:
        async with plain() as served, connected(served) as (reader, writer):
            writer.write(request())
            await reader.readuntil(b"0\r\n\r\n")
            connection = only_connection(served)
            client = writer.get_extra_info("socket")
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()
            await until(lambda: not served.server.server_state.connections)
            timer = connection.timeout_keep_alive_task
            assert timer is not None
            assert not timer.cancelled()
            timer.cancel()

    run(test())


def test_uvicorn_closes_an_idle_connection_at_once_when_it_stops() -> None:
    async def test() -> None:
        async with plain() as served, connected(served) as (reader, writer):
            writer.write(request(ECHO, BODY))
            await reader.readuntil(b"0\r\n\r\n")
            only_connection(served).shutdown()
            async with asyncio.timeout(WAIT):
                assert await reader.read() == b""

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


def test_uvicorn_has_no_timeout_for_a_response_that_is_not_read() -> None:
    async def test() -> None:
        async with plain(timeout_keep_alive=0.3) as served, connected(served) as (_, writer):
            writer.write(request(ECHO, bytes(8 * 2**20)))
            await until(lambda: served.app.started.total() == 1)
            await asyncio.sleep(WAIT)
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


WITHOUT_DESCRIPTORS = """
import asyncio, logging, resource, socket, uvloop

async def main():
    listener = socket.create_server(("127.0.0.1", 0))
    await asyncio.get_running_loop().create_server(asyncio.Protocol, sock=listener)
    used = listener.fileno() + 20
    resource.setrlimit(resource.RLIMIT_NOFILE, (used, used))
    held = []
    try:
        while True:
            held.append(socket.socket())
    except OSError:
        pass
    print(listener.getsockname()[1], flush=True)
    await asyncio.sleep(60)

logging.basicConfig(level=logging.DEBUG)
uvloop.run(main())
"""


def test_uvloop_says_nothing_when_there_are_no_file_descriptors() -> None:
    """It closes the connection. See server.http.descriptors."""
    command = [sys.executable, "-c", WITHOUT_DESCRIPTORS]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as server:
        assert server.stdout is not None
        assert server.stderr is not None
        port = int(server.stdout.readline())
        for _ in range(3):
            with (
                socket.create_connection((HOST, port), timeout=10) as client,
                suppress(ConnectionError),
            ):
                assert client.recv(1) == b""
        server.terminate()
        assert server.stderr.read() == b""
