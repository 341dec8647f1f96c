"""Connections over TLS: incomplete handshakes, slow readers, and clients that do not close."""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeAlias

import pytest

from server.http.h2_flow import NO_ERROR
from tests.support.certificates import HOST, Issued, Trust
from tests.support.http2 import (
    ECHO,
    HEADERS,
    HOLD,
    Peer,
    Served,
    connected,
    dripping,
    header_block,
    prefixed,
    run,
    serving,
    until,
)
from tests.support.raw import PREFACE, frame

TLS: TypeAlias = Callable[[], ssl.SSLContext]

BODY = prefixed(b"1")
CLIENT_HELLO = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc"  # its first bytes


def request(path: bytes = ECHO, body: bytes = BODY, *headers: bytes) -> bytes:
    lines = [b"POST %b HTTP/1.1" % path, b"Host: test", b"Content-Length: %d" % len(body), *headers]
    return b"\r\n".join([*lines, b"", body])


@pytest.fixture(scope="module")
def ca() -> Issued:
    return Issued.ca()


@pytest.fixture
def tls(ca: Issued, tmp_path: Path) -> TLS:
    context = ca.issue().save(tmp_path, "server").context()
    return lambda: context


@contextmanager
def secured(served: Served, context: ssl.SSLContext) -> Iterator[ssl.SSLSocket]:
    """Connect a blocking client with a small receive buffer, for use in a thread."""
    with socket.socket() as plain:
        plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16_384)
        plain.settimeout(20)
        plain.connect((HOST, served.port))
        with context.wrap_socket(plain, server_hostname=HOST) as client:
            yield client


async def no_connection_is_left(served: Served) -> None:
    await until(lambda: not served.server.server_state.connections)


@pytest.mark.parametrize("start", [b"", CLIENT_HELLO])
@pytest.mark.parametrize("part", [b"", b"\0"])
def test_an_incomplete_handshake_ends(ca: Issued, tls: TLS, start: bytes, part: bytes) -> None:
    """The handshake times out; other connections stay open."""

    async def test() -> None:
        async with (
            serving(tls, check_interval=0.1, request_timeout=0.3) as served,
            connected(served) as (reader, writer),
        ):
            other, other_writer = await asyncio.open_connection(
                HOST, served.port, ssl=Trust(ca).context(), server_hostname=HOST
            )
            other_writer.write(request(HOLD))
            writer.write(start)
            async with dripping(writer, part), asyncio.timeout(5):
                with suppress(ConnectionError):
                    assert await reader.read() == b""
            await until(lambda: len(served.server.server_state.connections) == 1)
            served.app.release.set()
            assert b"200 OK" in await other.readuntil(b"0\r\n\r\n")
            other_writer.close()

    run(test())


def test_a_handshake_is_finished_while_the_server_stops(ca: Issued, tls: TLS) -> None:
    """A handshake that continues gets its response; one that does not does not delay the stop."""

    async def test() -> None:
        async with serving(tls) as served, connected(served), connected(served) as (_, writer):
            writer.write(CLIENT_HELLO)
            with socket.create_connection((HOST, served.port)) as plain:
                await until(lambda: len(served.server.server_state.connections) == 3)
                began = time.monotonic()
                await served.stop()

                def call() -> bytes:
                    with Trust(ca).context().wrap_socket(plain, server_hostname=HOST) as client:
                        time.sleep(0.3)  # The drain has checked the connection by now.
                        client.sendall(request())
                        return client.recv(65_536)

                assert b"200 OK" in await asyncio.to_thread(call)
            await no_connection_is_left(served)
            assert time.monotonic() - began < 4

    run(test())


def test_a_response_that_is_not_read_ends_with_its_connection(ca: Issued, tls: TLS) -> None:
    """Even if TLS has encrypted the whole response."""

    async def test() -> None:
        async with serving(tls, check_interval=0.1, response_stall_timeout=0.3) as served:

            def call() -> int:
                with secured(served, Trust(ca).context()) as client:
                    client.sendall(request(ECHO, bytes(8 * 2**20)))
                    client.recv(10)
                    deadline = time.monotonic() + 5
                    while served.server.server_state.connections:
                        assert time.monotonic() < deadline
                        time.sleep(0.01)
                    received = 10
                    with suppress(OSError):
                        while part := client.recv(65_536):
                            received += len(part)
                    return received

            assert await asyncio.to_thread(call) < 8 * 2**20

    run(test())


def test_a_response_that_is_read_slowly_is_sent_completely(ca: Issued, tls: TLS) -> None:
    """Even if the server closed its side long before the client has read it."""

    async def test() -> None:
        async with serving(tls, check_interval=0.1) as served:
            body = bytes(8 * 2**20)

            def call() -> int:
                with secured(served, Trust(ca).context()) as client:
                    client.sendall(request(ECHO, body, b"Connection: close"))
                    received = 0
                    while part := client.recv(2**18):
                        received += len(part)
                        time.sleep(5 * len(part) / len(body))
                    return received

            began = time.monotonic()
            assert await asyncio.to_thread(call) > len(body)
            assert time.monotonic() - began > 4

    run(test())


def test_a_client_that_does_not_close_is_closed_after_a_timeout(ca: Issued, tls: TLS) -> None:
    async def test() -> None:
        async with serving(tls, check_interval=0.1) as served:

            def call() -> None:
                with secured(served, Trust(ca).context()) as client:
                    client.sendall(request(ECHO, BODY, b"Connection: close"))
                    client.recv(10)
                    began = time.monotonic()
                    while served.server.server_state.connections:
                        time.sleep(0.01)
                    assert 1 < time.monotonic() - began < 4

            await asyncio.to_thread(call)

    run(test())


def test_an_incomplete_request_ends_with_its_connection(ca: Issued, tls: TLS) -> None:
    async def test() -> None:
        async with serving(tls, check_interval=0.1, request_timeout=0.3) as served:
            reader, writer = await asyncio.open_connection(
                HOST, served.port, ssl=Trust(ca).context(), server_hostname=HOST
            )
            writer.write(request()[:-1])
            async with asyncio.timeout(5):
                assert b"HTTP/1.1 408 Request Timeout\r\n" in await reader.read()
            writer.close()
            await no_connection_is_left(served)

    run(test())


@pytest.mark.parametrize("alpn", ["h2", "http/1.1"])
@pytest.mark.parametrize(
    "sent",
    [b"", PREFACE + frame(HEADERS, 0, 1, header_block(ECHO))],
    ids=["nothing", "header-list"],
)
def test_a_connection_without_a_whole_request_ends(
    ca: Issued, tls: TLS, alpn: str, sent: bytes
) -> None:
    async def test() -> None:
        async with serving(
            tls, check_interval=0.1, request_timeout=0.3, h2_frame_timeout=0.3
        ) as served:
            reader, writer = await asyncio.open_connection(
                HOST, served.port, ssl=Trust(ca).context(alpn), server_hostname=HOST
            )
            writer.write(sent)
            async with asyncio.timeout(5):
                await reader.read()
            await no_connection_is_left(served)
            writer.close()

    run(test())


@pytest.mark.parametrize("alpn", ["h2", "http/1.1", "spdy/3", ""])
def test_the_first_bytes_decide_the_protocol(ca: Issued, tls: TLS, alpn: str) -> None:
    """A client needs no ALPN, even for HTTP/2."""

    async def test() -> None:
        context = Trust(ca).context(*([alpn] if alpn else []))
        async with serving(tls) as served:
            reader, writer = await asyncio.open_connection(
                HOST, served.port, ssl=context, server_hostname=HOST
            )
            chosen = writer.get_extra_info("ssl_object").selected_alpn_protocol()
            assert chosen == (alpn if alpn in {"h2", "http/1.1"} else None)
            if alpn == "http/1.1":
                writer.write(request())
                assert b"200 OK" in await reader.readuntil(b"0\r\n\r\n")
            else:
                writer.write(PREFACE)
                peer = Peer(reader, writer)
                peer.call(1)
                await peer.answer(1)
                await served.stop()
                await peer.initial_goaway()
                peer.answer_ping()
                assert await peer.final_goaway() == 1
                assert peer.goaways[1] == (1, NO_ERROR)
            writer.close()

    run(test())


@pytest.mark.parametrize("sent", [request(), PREFACE])
def test_a_client_without_tls_is_closed_at_once(
    tls: TLS, sent: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    async def test() -> None:
        async with serving(tls) as served, connected(served) as (reader, writer):
            writer.write(sent)
            async with asyncio.timeout(2):
                with suppress(ConnectionError):
                    assert b"HTTP" not in await reader.read()
            await no_connection_is_left(served)
            assert served.app.started.total() == 0

    run(test())
    assert [each for each in caplog.records if each.levelname != "DEBUG"] == []


def test_each_handshake_uses_the_context_of_its_time(ca: Issued, tmp_path: Path) -> None:
    contexts = [ca.issue(name).save(tmp_path, name).context() for name in ("first", "second")]

    async def test() -> None:
        async with serving(lambda: contexts[0]) as served:
            context = Trust(ca).context()
            context.check_hostname = False
            for expected in ("first", "second"):
                _, writer = await asyncio.open_connection(HOST, served.port, ssl=context)
                shown = writer.get_extra_info("peercert")["subjectAltName"]
                assert shown == (("DNS", expected),)
                writer.close()
                contexts.reverse()

    run(test())


def test_failed_handshakes_hold_few_descriptors(ca: Issued, tls: TLS) -> None:
    async def test() -> None:
        async with serving(tls) as served:
            before = len(os.listdir("/proc/self/fd"))
            for _ in range(150):
                reader, writer = await asyncio.open_connection(HOST, served.port)
                writer.write(b"\x16\x03\x01\x00\x05hello")
                assert await reader.read() != b"", "no alert"
                writer.close()
                await writer.wait_closed()
            await no_connection_is_left(served)
            assert len(os.listdir("/proc/self/fd")) - before <= 64

    run(test())


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
@pytest.mark.parametrize(
    ("own", "alert", "reason"),
    [
        (None, "CERTIFICATE_REQUIRED|HANDSHAKE_FAILURE", "peer did not return a certificate"),
        ("refused", "UNKNOWN_CA", "certificate verify failed: unable to get local issuer"),
    ],
)
def test_a_client_learns_why_its_certificate_does_not_do(  # noqa: PLR0913, PLR0917 - parameters
    ca: Issued,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    version: ssl.TLSVersion,
    own: str | None,
    alert: str,
    reason: str,
) -> None:
    """By an alert, though it has sent its request by then; and so does the log, once a second."""
    caplog.set_level("INFO", "server.http.tls_handshake")
    context = ca.issue().save(tmp_path, "server").context()
    context.load_verify_locations(cadata=ca.cert_pem().decode())
    context.verify_mode = ssl.CERT_REQUIRED
    files = own and Issued.ca("other").issue("client").save(tmp_path, own)
    client = Trust(ca, files or None).context()
    client.minimum_version = client.maximum_version = version

    async def test() -> None:
        async with serving(lambda: context) as served:

            def call() -> None:
                with (
                    pytest.raises(ssl.SSLError, match=alert),
                    socket.create_connection((HOST, served.port), 20) as plain,
                    client.wrap_socket(plain, server_hostname=HOST) as secure,
                ):
                    secure.sendall(request())
                    secure.recv(100)

            for _ in range(20):
                await asyncio.to_thread(call)
            await no_connection_is_left(served)

    run(test())
    told = [each.getMessage() for each in caplog.records if "handshake" in each.name]
    assert 0 < len(told) < 5
    assert sum(int(each.split()[3].strip(",")) for each in told) == 20
    assert all(reason in each and f" {HOST}:" in each for each in told)
