"""What becomes of connections over TLS: shaken hands halfway, read slowly, or never closed."""

from __future__ import annotations

import asyncio
import socket
import ssl
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from server.http.h2_flow import NO_ERROR
from server.process.certificates import TLS
from tests.support.certificates import HOST, Issued, Trust, rsa_key
from tests.support.http2 import (
    ECHO,
    HOLD,
    Peer,
    Served,
    connected,
    dripping,
    prefixed,
    run,
    serving,
    until,
)
from tests.support.raw import PREFACE

BODY = prefixed(b"1")
CLIENT_HELLO = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc"  # what it begins with


def request(path: bytes = ECHO, body: bytes = BODY, *headers: bytes) -> bytes:
    lines = [b"POST %b HTTP/1.1" % path, b"Host: test", b"Content-Length: %d" % len(body), *headers]
    return b"\r\n".join([*lines, b"", body])


@pytest.fixture(scope="module")
def ca() -> Issued:
    return Issued.ca()


@pytest.fixture
def tls(ca: Issued, tmp_path: Path) -> TLS:
    return TLS(*ca.issue().save(tmp_path, "server"), client_ca=None)


@contextmanager
def secured(served: Served, context: ssl.SSLContext) -> Iterator[ssl.SSLSocket]:
    """Connect as a client that reads only what is asked of it. Blocks: call it in a thread."""
    with socket.socket() as plain:
        plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16_384)
        plain.settimeout(20)
        plain.connect((HOST, served.port))
        with context.wrap_socket(plain, server_hostname=HOST) as client:
            yield client


async def nobody_is_left(served: Served) -> None:
    await until(lambda: not served.server.server_state.connections)


@pytest.mark.parametrize("start", [b"", CLIENT_HELLO])
@pytest.mark.parametrize("drop", [b"", b"\0"])
def test_half_a_handshake_ends(ca: Issued, tls: TLS, start: bytes, drop: bytes) -> None:
    """And nobody else does."""

    async def test() -> None:
        async with (
            serving(tls, ticks=1, sending=0.3) as served,
            connected(served) as (half, writer),
        ):
            other, other_writer = await asyncio.open_connection(
                HOST, served.port, ssl=Trust(ca).context(), server_hostname=HOST
            )
            other_writer.write(request(HOLD))
            writer.write(start)
            async with dripping(writer, drop), asyncio.timeout(5):
                with suppress(ConnectionError):
                    assert await half.read() == b""
            await until(lambda: len(served.server.server_state.connections) == 1)
            served.app.release.set()
            assert b"200 OK" in await other.readuntil(b"0\r\n\r\n")
            other_writer.close()

    run(test())


def test_a_handshake_is_finished_while_the_server_stops(ca: Issued, tls: TLS) -> None:
    """Who has connected by then gets an answer, and who goes no further is not waited for."""

    async def test() -> None:
        async with serving(tls) as served, connected(served), connected(served) as (_, writer):
            writer.write(CLIENT_HELLO)
            with socket.create_connection((HOST, served.port)) as plain:
                await until(lambda: len(served.server.server_state.connections) == 3)
                began = time.monotonic()
                await served.stop()

                def call() -> bytes:
                    with Trust(ca).context().wrap_socket(plain, server_hostname=HOST) as client:
                        time.sleep(0.3)  # By now it has been looked at as it is.
                        client.sendall(request())
                        return client.recv(65_536)

                assert b"200 OK" in await asyncio.to_thread(call)
            await nobody_is_left(served)
            assert time.monotonic() - began < 4

    run(test())


def test_an_answer_that_is_not_read_ends_with_its_connection(ca: Issued, tls: TLS) -> None:
    """Though TLS has encrypted and handed on all of it."""

    async def test() -> None:
        async with serving(tls, ticks=1, reading=0.3) as served:

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


def test_an_answer_that_is_read_slowly_is_sent_whole(ca: Issued, tls: TLS) -> None:
    """Although the connection has been closed on the server's side long before."""

    async def test() -> None:
        async with serving(tls, ticks=1) as served:
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


def test_a_client_that_does_not_close_is_not_waited_for(ca: Issued, tls: TLS) -> None:
    async def test() -> None:
        async with serving(tls, ticks=1) as served:

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


def test_half_a_request_ends_with_its_connection(ca: Issued, tls: TLS) -> None:
    async def test() -> None:
        async with serving(tls, ticks=1, sending=0.3) as served:
            reader, writer = await asyncio.open_connection(
                HOST, served.port, ssl=Trust(ca).context(), server_hostname=HOST
            )
            writer.write(request()[:-1])
            async with asyncio.timeout(5):
                assert b"HTTP/1.1 408 Request Timeout\r\n" in await reader.read()
            writer.close()
            await nobody_is_left(served)

    run(test())


@pytest.mark.parametrize("alpn", ["h2", "http/1.1", "spdy/3", ""])
def test_the_first_bytes_tell_what_is_spoken(ca: Issued, tls: TLS, alpn: str) -> None:
    """A client need not know ALPN, even for HTTP/2."""

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
                await peer.announcement()
                peer.answer_ping()
                assert await peer.final_goaway() == 1
                assert peer.goaways[1] == (1, NO_ERROR)
            writer.close()

    run(test())


@pytest.mark.parametrize("sent", [request(), PREFACE])
def test_who_does_not_begin_with_tls_is_ended_at_once(
    tls: TLS, sent: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    async def test() -> None:
        async with serving(tls) as served, connected(served) as (reader, writer):
            writer.write(sent)
            async with asyncio.timeout(2):
                with suppress(ConnectionError):
                    assert b"HTTP" not in await reader.read()
            await nobody_is_left(served)
            assert served.app.started.total() == 0

    run(test())
    assert [each for each in caplog.records if each.levelname != "DEBUG"] == []


def test_versions_before_1_2_are_refused(
    ca: Issued, tls: TLS, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG", "server")

    async def test() -> None:
        context = Trust(ca).context()
        context.set_ciphers("ALL:@SECLEVEL=0")
        async with serving(tls) as served:
            for version in (ssl.TLSVersion.TLSv1_3, ssl.TLSVersion.TLSv1_2):
                context.minimum_version = context.maximum_version = version
                _, writer = await asyncio.open_connection(
                    HOST, served.port, ssl=context, server_hostname=HOST
                )
                writer.close()
            with pytest.warns(DeprecationWarning, match="TLSv1_1"):
                context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_1
            with pytest.raises((ssl.SSLError, ConnectionError)):
                await asyncio.open_connection(HOST, served.port, ssl=context, server_hostname=HOST)

    run(test())
    assert "UNSUPPORTED_PROTOCOL" in caplog.text
    assert "Traceback" not in caplog.text


def test_a_key_of_another_type_replaces_the_first(ca: Issued, tls: TLS, tmp_path: Path) -> None:
    """Clients that only knew what to do with that one get none of it."""

    def shown(served: Served, signed_by: str) -> ssl.SSLSocket:
        context = Trust(ca).context()
        context.maximum_version = ssl.TLSVersion.TLSv1_2
        context.set_ciphers(f"ECDHE-{signed_by}-AES128-GCM-SHA256")
        with secured(served, context) as client:
            return client

    async def test() -> None:
        async with serving(tls) as served:
            await asyncio.to_thread(shown, served, "ECDSA")
            ca.issue(key=rsa_key()).save(tmp_path, "server")
            tls.poll()
            await asyncio.to_thread(shown, served, "RSA")
            with pytest.raises((ssl.SSLError, ConnectionError)):
                await asyncio.to_thread(shown, served, "ECDSA")

    run(test())


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_a_client_whose_ca_is_taken_out_cannot_resume(
    ca: Issued, tmp_path: Path, version: ssl.TLSVersion
) -> None:
    ours, theirs = Issued.ca("ours"), Issued.ca("theirs")
    trusted = tmp_path / "clients.pem"
    trusted.write_bytes(ours.cert_pem() + theirs.cert_pem())
    tls = TLS(*ca.issue().save(tmp_path, "server"), client_ca=trusted)
    context = Trust(ca, theirs.issue().save(tmp_path, "client")).context()
    context.minimum_version = context.maximum_version = version

    def call(served: Served, session: ssl.SSLSession | None) -> tuple[bool, ssl.SSLSession | None]:
        with (
            socket.create_connection((HOST, served.port), timeout=20) as plain,
            context.wrap_socket(plain, server_hostname=HOST, session=session) as client,
        ):
            client.sendall(request())
            assert b"200 OK" in client.recv(65_536)
            return bool(client.session_reused), client.session

    async def test() -> None:
        async with serving(tls) as served:
            resumed, session = await asyncio.to_thread(call, served, None)
            assert not resumed
            resumed, session = await asyncio.to_thread(call, served, session)
            assert resumed
            trusted.write_bytes(ours.cert_pem())
            tls.poll()
            with pytest.raises((ssl.SSLError, ConnectionError, AssertionError)):
                await asyncio.to_thread(call, served, session)
            assert served.app.started.total() == 2

    run(test())
