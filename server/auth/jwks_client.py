"""The public keys of the token issuer: a JWK Set (RFC 7517) in a file or at a URL.

A file is read again when it has changed. A URL is fetched every 5 minutes, and before that for a
token with an unknown ``kid``, at most every 10 s: tokens come from clients, which could otherwise
choose how often. When a read fails, the previous keys stay in use.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final, Protocol, Self

import jwt
from pyqwest import Client, HTTPTransport

from persistence.state_log import StateLog
from server.auth.jwks import KeySet, parse_jwks
from server.files.watch import FileWatcher
from server.settings import Settings, SettingsError, variable

# Seconds.
_REFRESH_INTERVAL: Final = 300.0
_UNKNOWN_KEY_INTERVAL: Final = 10.0  # least time between two fetches for unknown keys
_RETRY_INTERVAL: Final = 2.0  # after a fetch that failed
_FETCH_TIMEOUT: Final = 5.0

_MAX_BYTES: Final = 1024 * 1024
_MAX_WAITING: Final = 10  # calls that wait for a fetch

_log = logging.getLogger(__name__)


class KeysUnavailable(Exception):
    """No token can be verified now: the keys are not known, or are being fetched."""


class JwksClient:
    """The keys at one location. Use it as an async context manager."""

    def __init__(self, location: str) -> None:
        """``location`` is a path or a URL. Raises SettingsError for a file without usable keys."""
        self.generation = 0
        """How often the keys have been replaced."""
        self.changed: Callable[[], object] = lambda: None
        """Is called when ``fault`` has changed."""
        self._source = _source(location)
        self._keys: KeySet | None = None
        shown = location.partition("?")[0]  # the query of a URL may be secret
        self._state = StateLog(_log, f"cannot use the JWK Set at {shown}")
        self._reading: asyncio.Task[None] | None = None
        self._waiting = 0
        if isinstance(self._source, _FileSource):
            try:
                keys = parse_jwks(self._source.path.read_bytes())
                if not keys.keys:
                    raise ValueError("; ".join(keys.warnings))
            except (OSError, ValueError) as error:
                reason = getattr(error, "strerror", None) or error
                raise SettingsError(f"{variable('jwks')}: {location}: {reason}") from error
            self._replace(keys)

    @classmethod
    def from_settings(cls, settings: Settings) -> Self | None:
        """Return a client for the setting ``jwks``, or None without it. Raises SettingsError."""
        return None if settings.jwks is None else cls(settings.jwks)

    async def __aenter__(self) -> Self:
        """Fetch a URL for the first time; a failure is logged, not raised."""
        self.poll()
        if self._reading is not None:
            await self._reading
        return self

    async def __aexit__(self, *_error: object) -> None:
        """Cancel a read that is in progress."""
        if self._reading is not None:
            self._reading.cancel()
            await asyncio.gather(self._reading, return_exceptions=True)

    @property
    def fault(self) -> str | None:
        """Why no token can be verified, for people; None once the keys are known."""
        return "the keys of tokens cannot be fetched" if self._keys is None else None

    async def find(self, key_id: str | None, algorithm: str) -> jwt.PyJWK | None:
        """Return the key with the ``kid`` ``key_id``; for None, the only key of ``algorithm``.

        An unknown key may wait for a read. Raises KeysUnavailable when no keys are known, or
        ``_MAX_WAITING`` calls wait already.
        """
        key = self._find(key_id, algorithm)
        if key is None and (self._reading or self._source.is_due(key_is_unknown=True)):
            await self._wait()
            key = self._find(key_id, algorithm)
        if self._keys is None:
            raise KeysUnavailable("the keys of tokens cannot be fetched")
        return key

    async def _wait(self) -> None:
        """Wait for a read. Unauthenticated clients get here, so the number is bounded."""
        if self._waiting == _MAX_WAITING:
            raise KeysUnavailable("the keys of tokens are being fetched")
        self._waiting += 1
        try:
            await asyncio.shield(self.reload())  # other calls may wait for it as well
        finally:
            self._waiting -= 1

    def poll(self) -> None:
        """Start a read in the background if one is due."""
        if self._source.is_due(key_is_unknown=False):
            self.reload()

    def reload(self) -> asyncio.Task[None]:
        """Return the read that is in progress, or start one in the background."""
        if self._reading is None:
            self._reading = asyncio.create_task(self._read())
        return self._reading

    async def _read(self) -> None:
        try:
            self._replace(parse_jwks(await self._source.read()))
            self._source.succeeded()
            self._state.succeeded()
        except Exception as error:  # the previous keys stay in use, whatever the error is
            self._state.failed(error)
        finally:
            self._reading = None

    def _replace(self, keys: KeySet) -> None:
        before, self._keys = self._keys, keys
        self.generation += 1
        for warning in keys.warnings:
            if before is None or warning not in before.warnings:
                _log.warning("JWK Set: %s", warning)
        if before is None:
            self.changed()

    def _find(self, key_id: str | None, algorithm: str) -> jwt.PyJWK | None:
        return None if self._keys is None else self._keys.find(key_id, algorithm)


async def read_once(location: str) -> KeySet:
    """Return the keys that are at a path or URL now. Raises any Exception."""
    return parse_jwks(await _source(location).read())


class _Source(Protocol):
    """Where a JWK Set is read from."""

    def is_due(self, *, key_is_unknown: bool) -> bool:
        """Return whether to read it now, for a key that is not known or as a matter of routine."""

    async def read(self) -> bytes:
        """Return the present content. Raises any Exception."""

    def succeeded(self) -> None:
        """Note that the content of the last ``read`` is in use."""


def _source(location: str) -> _Source:
    return _UrlSource(location) if "://" in location else _FileSource(Path(location))


class _FileSource(_Source):
    """A file, which is due after a change, and until it has been read with success."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._watcher = FileWatcher([path])
        self._is_due = False

    def is_due(self, *, key_is_unknown: bool) -> bool:
        self._is_due |= self._watcher.changed()
        return self._is_due

    async def read(self) -> bytes:
        self._is_due = True
        return self.path.read_bytes()

    def succeeded(self) -> None:
        self._is_due = False


class _UrlSource(_Source):
    """A URL, whose requests are spaced by the intervals above."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._due = self._due_for_unknown_key = 0.0

    def is_due(self, *, key_is_unknown: bool) -> bool:
        due = self._due_for_unknown_key if key_is_unknown else self._due
        return time.monotonic() >= due

    async def read(self) -> bytes:
        now = time.monotonic()
        self._due = now + _RETRY_INTERVAL
        self._due_for_unknown_key = now + _UNKNOWN_KEY_INTERVAL
        return await _get(self._url)

    def succeeded(self) -> None:
        self._due = time.monotonic() + _REFRESH_INTERVAL


async def _get(url: str) -> bytes:
    """Return the body of a URL. Raises ValueError unless it is 200 and at most 1 MiB."""
    transport = HTTPTransport(
        tls_include_system_certs=True,
        timeout=_FETCH_TIMEOUT,
        follow_redirects=False,  # which might lead from https to plain http
        enable_otel=False,
    )
    async with transport:
        accept = {"accept": "application/json"}
        async with Client(transport).stream("GET", url, accept) as response:
            if response.status != 200:
                raise ValueError(f"HTTP status {response.status} instead of 200")
            content = bytearray()
            async for chunk in response.content:
                content += chunk
                if len(content) > _MAX_BYTES:
                    raise ValueError(f"longer than {_MAX_BYTES} bytes")
    return bytes(content)
