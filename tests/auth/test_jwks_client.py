"""JWK Sets from a file and from a URL, as they change."""

import asyncio
import logging
import os
import resource
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from server.auth import jwks_client
from server.auth.jwks_client import JwksClient, KeysUnavailable
from server.settings import SettingsError
from tests.support.key_server import KeyServer, serving
from tests.support.tokens import Issuer, ec_key, ed_key
from tests.support.waiting import eventually

pytestmark = pytest.mark.anyio

OLD, NEW = ed_key("old"), ec_key("new")


@pytest.fixture
def issuer(tmp_path: Path) -> Issuer:
    return Issuer(tmp_path / "jwks.json", [OLD])


@pytest.fixture
def server(issuer: Issuer, monkeypatch: pytest.MonkeyPatch) -> Iterator[KeyServer]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with serving(issuer.key_set()) as server:
        yield server


async def known(keys: JwksClient) -> set[str | None]:
    """Return which of the two keys are found."""
    found = [await keys.find(key.key_id, key.algorithm) for key in (OLD, NEW)]
    return {key.key_id for key in found if key}


class TestFile:
    async def test_an_added_key_is_found_at_once(self, issuer: Issuer) -> None:
        async with JwksClient(str(issuer.jwks)) as keys:
            assert await known(keys) == {"old"}
            issuer.publish(OLD, NEW)
            assert await known(keys) == {"old", "new"}

    async def test_a_removed_key_is_not_found_any_more(self, issuer: Issuer) -> None:
        async with JwksClient(str(issuer.jwks)) as keys:
            issuer.publish(NEW)
            keys.poll()
            await asyncio.sleep(0)  # in which the file is read
            assert await known(keys) == {"new"}

    async def test_a_malformed_file_keeps_the_previous_keys(
        self, issuer: Issuer, caplog: pytest.LogCaptureFixture
    ) -> None:
        async with JwksClient(str(issuer.jwks)) as keys:
            for text in ("{", "[]"):
                issuer.jwks.write_text(text)
                for _ in range(3):
                    keys.poll()
                    assert await known(keys) == {"old"}
            issuer.jwks.unlink()
            assert await known(keys) == {"old"}
            warnings = [each for each in caplog.records if each.levelno == logging.WARNING]
            assert len(warnings) == 2, "each is logged once"
            issuer.publish(NEW)
            keys.poll()
            await keys.reload()
            assert await known(keys) == {"new"}

    async def test_the_last_key_can_be_removed(
        self, issuer: Issuer, caplog: pytest.LogCaptureFixture
    ) -> None:
        async with JwksClient(str(issuer.jwks)) as keys:
            issuer.jwks.write_text('{"keys": []}')
            await keys.reload()
            assert await known(keys) == set()
            assert keys.fault is None
            assert "every token is rejected" in caplog.text

    async def test_an_unreadable_file_is_retried(
        self, issuer: Issuer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Even without another change, as after a lack of file descriptors."""
        async with JwksClient(str(issuer.jwks)) as keys:
            issuer.publish(NEW)
            limit = resource.getrlimit(resource.RLIMIT_NOFILE)
            used = len(os.listdir("/proc/self/fd"))
            resource.setrlimit(resource.RLIMIT_NOFILE, (used, limit[1]))
            opened = []
            try:
                with suppress(OSError):
                    while True:
                        opened.append(os.open("/dev/null", os.O_RDONLY))
                await keys.reload()
            finally:
                for descriptor in opened:
                    os.close(descriptor)
                resource.setrlimit(resource.RLIMIT_NOFILE, limit)
            keys.poll()
            await keys.reload()
            assert await known(keys) == {"new"}

    @pytest.mark.parametrize("text", [None, "", '{"keys": []}', "{}"])
    def test_an_unusable_file_is_an_error_at_start(self, tmp_path: Path, text: str | None) -> None:
        file = tmp_path / "keys"
        if text is not None:
            file.write_text(text)
        with pytest.raises(SettingsError, match=f"LISTINGS_JWKS: {file}: "):
            JwksClient(str(file))


class TestUrl:
    async def test_it_is_fetched_at_start_and_periodically(
        self, server: KeyServer, issuer: Issuer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        async with JwksClient(server.url) as keys:
            assert await known(keys) == {"old"}
            keys.poll()
            assert server.asked == 1
            issuer.publish(NEW)
            server.body = issuer.key_set()
            monkeypatch.setattr(jwks_client, "_REFRESH_INTERVAL", 0.0)
            await keys.reload()
            assert await known(keys) == {"new"}
            keys.poll()
            await keys.reload()
            assert server.asked == 3

    async def test_it_is_fetched_for_an_unknown_key(
        self, server: KeyServer, issuer: Issuer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(jwks_client, "_UNKNOWN_KEY_INTERVAL", 0.0)
        async with JwksClient(server.url) as keys:
            issuer.publish(OLD, NEW)
            server.body = issuer.key_set()
            found = await asyncio.gather(*(keys.find("new", "ES256") for _ in range(10)))
            assert [key and key.key_id for key in found] == ["new"] * 10
            assert server.asked == 2, "once at the start, and once for all of them"

    async def test_waiting_for_unknown_keys_is_bounded(
        self, server: KeyServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Each waiting call occupies a slot that an authenticated caller needs."""
        monkeypatch.setattr(jwks_client, "_UNKNOWN_KEY_INTERVAL", 0.0)
        async with JwksClient(server.url) as keys:
            server.go_on.clear()
            waiting = [asyncio.create_task(keys.find(f"{n}", "ES256")) for n in range(30)]
            done, pending = await asyncio.wait(waiting, timeout=0.5)
            assert (len(done), len(pending)) == (20, 10)
            assert all(isinstance(each.exception(), KeysUnavailable) for each in done)
            assert await keys.find("old", "EdDSA")
            server.go_on.set()
            assert await asyncio.gather(*pending) == [None] * 10

    async def test_fetches_for_unknown_keys_are_spaced(self, server: KeyServer) -> None:
        async with JwksClient(server.url) as keys:
            for n in range(20):
                assert await keys.find(f"made up {n}", "ES256") is None
            assert server.asked == 1

    @pytest.mark.parametrize(
        ("status", "body", "headers"),
        [
            (500, "{}", {}),
            (404, "nobody", {}),
            (302, "", {"location": "/elsewhere"}),
            (200, "<html>", {}),
            (200, "right, but too long", {}),
        ],
    )
    async def test_an_unusable_response_keeps_the_previous_keys(
        self,
        server: KeyServer,
        caplog: pytest.LogCaptureFixture,
        status: int,
        body: str,
        headers: dict[str, str],
    ) -> None:
        async with JwksClient(server.url) as keys:
            server.status, server.body, server.headers = status, body, headers
            if body.startswith("right"):
                server.body = server.first_body.ljust(2**21)
            for _ in range(2):
                await keys.reload()
            assert await known(keys) == {"old"}
            assert keys.fault is None
        assert len([each for each in caplog.records if "cannot use" in each.message]) == 1

    async def test_a_silent_server_delays_no_known_key(
        self, server: KeyServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(jwks_client, "_FETCH_TIMEOUT", 0.2)
        monkeypatch.setattr(jwks_client, "_UNKNOWN_KEY_INTERVAL", 0.0)
        async with JwksClient(server.url) as keys:
            server.go_on.clear()
            async with asyncio.timeout(5):
                assert await known(keys) == {"old"}
            assert server.asked == 2

    async def test_a_server_that_is_unreachable_at_first(
        self, issuer: Issuer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        with serving("") as gone:
            url, port = gone.url, gone.server_port
        changes: list[str | None] = []
        async with JwksClient(url) as keys:
            keys.changed = lambda: changes.append(keys.fault)
            assert keys.fault == "the keys of tokens cannot be fetched"
            with pytest.raises(KeysUnavailable):
                await keys.find("old", "EdDSA")
            with serving(issuer.key_set(), port):
                await keys.reload()
                assert await known(keys) == {"old"}
        assert changes == [None]

    async def test_exit_cancels_a_fetch(self, server: KeyServer) -> None:
        async with asyncio.timeout(5):
            async with JwksClient(server.url) as keys:
                server.go_on.clear()
                keys.reload()
                await asyncio.to_thread(eventually, lambda: server.asked == 2)
