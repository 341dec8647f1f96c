"""Canaries, as in ``test_workarounds``: faults of uvicorn and uvloop that show over TLS."""

from __future__ import annotations

import asyncio
import ssl
from contextlib import suppress
from pathlib import Path

import pytest

from tests.support.certificates import HOST, Issued, Trust
from tests.support.http2 import ECHO, connected, run, until
from tests.support.plain_uvicorn import WAIT, only_connection, plain, request
from tests.support.raw import PREFACE
from tests.support.tls_records import received


@pytest.fixture(scope="module")
def ca() -> Issued:
    return Issued.ca()


@pytest.fixture
def context(ca: Issued, tmp_path: Path) -> ssl.SSLContext:
    return ca.issue().save(tmp_path, "server").context()


# server.http.tls_handshake, server.http.negotiation


def test_uvicorn_does_not_know_of_handshakes_under_way(context: ssl.SSLContext) -> None:
    async def test() -> None:
        async with plain(context=context) as served, connected(served) as (_, writer):
            writer.write(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc")  # the start of a ClientHello
            await asyncio.sleep(0.2)
            assert served.server.server_state.connections == set()

    run(test())


def test_uvloop_does_not_tell_of_encrypted_bytes_that_wait(
    ca: Issued, context: ssl.SSLContext
) -> None:
    async def test() -> None:
        async with plain(context=context) as served:
            reader, writer = await asyncio.open_connection(
                HOST, served.port, ssl=Trust(ca).context(), server_hostname=HOST, limit=2**10
            )
            writer.write(request(ECHO, bytes(32 * 2**20)))
            await until(lambda: served.app.started.total() == 1)
            await asyncio.sleep(WAIT)  # The client has stopped reading.
            assert len(reader._buffer) < 2**20  # type: ignore[attr-defined]
            assert only_connection(served).transport.get_write_buffer_size() < 2**10
            writer.transport.abort()

    run(test())


def test_uvicorn_goes_by_alpn_alone(ca: Issued, context: ssl.SSLContext) -> None:
    async def test() -> None:
        async with plain(context=context) as served:
            reader, writer = await asyncio.open_connection(
                HOST, served.port, ssl=Trust(ca).context(), server_hostname=HOST
            )
            writer.write(PREFACE)
            assert (await reader.readline()).startswith(b"HTTP/1.1 400 ")
            writer.transport.abort()

    run(test())


def test_uvloop_sends_no_alert_when_a_handshake_fails(ca: Issued, context: ssl.SSLContext) -> None:
    context.load_verify_locations(cadata=ca.cert_pem().decode())
    context.verify_mode = ssl.CERT_REQUIRED

    async def test() -> None:
        async with plain(context=context) as served:
            reader, writer = await asyncio.open_connection(
                HOST, served.port, ssl=Trust(ca).context(), server_hostname=HOST
            )
            with suppress(ConnectionError):
                assert await reader.read() == b""
            writer.transport.abort()

    run(test())


# server.http.joined_writes


def test_uvicorn_writes_the_parts_of_a_response_one_by_one(
    ca: Issued, context: ssl.SSLContext
) -> None:
    def ends(record: bytes) -> bool:
        return record.endswith(b"0\r\n\r\n")

    async def test() -> None:
        async with plain(context=context) as served:
            sent = request()
            records = await asyncio.to_thread(received, ca, served.port, "http/1.1", sent, ends)
            assert len(records) > 1

    run(test())
