"""TLS by settings on ``server.http``: protocol versions, and replaced files."""

from __future__ import annotations

import asyncio
import socket
import ssl
from pathlib import Path

import pytest

from server.process.certificates import TLS
from tests.support.certificates import HOST, Issued, Trust, rsa_key
from tests.support.http2 import ECHO, Served, prefixed, run, serving

BODY = prefixed(b"1")
REQUEST = b"POST %b HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n%b" % (
    ECHO,
    len(BODY),
    BODY,
)


@pytest.fixture(scope="module")
def ca() -> Issued:
    return Issued.ca()


@pytest.fixture
def tls(ca: Issued, tmp_path: Path) -> TLS:
    return TLS(*ca.issue().save(tmp_path, "server"), client_ca=None)


def test_versions_before_1_2_are_rejected(
    ca: Issued, tls: TLS, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG", "server")

    async def test() -> None:
        context = Trust(ca).context()
        context.set_ciphers("ALL:@SECLEVEL=0")
        async with serving(lambda: tls.context) as served:
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
    assert "unsupported protocol" in caplog.text
    assert "Traceback" not in caplog.text


def test_a_key_of_another_type_replaces_the_previous_one(
    ca: Issued, tls: TLS, tmp_path: Path
) -> None:
    """Clients that support the previous type alone can no longer connect."""

    def shown(served: Served, signed_by: str) -> ssl.SSLSocket:
        context = Trust(ca).context()
        context.maximum_version = ssl.TLSVersion.TLSv1_2
        context.set_ciphers(f"ECDHE-{signed_by}-AES128-GCM-SHA256")
        with (
            socket.create_connection((HOST, served.port), timeout=20) as plain,
            context.wrap_socket(plain, server_hostname=HOST) as client,
        ):
            return client

    async def test() -> None:
        async with serving(lambda: tls.context) as served:
            await asyncio.to_thread(shown, served, "ECDSA")
            ca.issue(key=rsa_key()).save(tmp_path, "server")
            tls.poll()
            await asyncio.to_thread(shown, served, "RSA")
            with pytest.raises((ssl.SSLError, ConnectionError)):
                await asyncio.to_thread(shown, served, "ECDSA")

    run(test())


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_a_client_of_a_removed_ca_cannot_resume_its_session(
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
            client.sendall(REQUEST)
            assert b"200 OK" in client.recv(65_536)
            return bool(client.session_reused), client.session

    async def test() -> None:
        async with serving(lambda: tls.context) as served:
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
