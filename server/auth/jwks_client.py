"""The public keys of those who issue tokens: a JWK Set (RFC 7517), in a file or at a URL.

A file is read again when it has changed. A URL is asked every few minutes, and at once when a token
names a key that is not known, though not again and again: whoever sends tokens could choose how
often. While the keys cannot be had, those that are known go on.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import jwt
from pyqwest import Client, HTTPTransport

from persistence.state_log import StateLog
from server.auth.jwks import KeySet, parse
from server.files.watch import WatchedFiles
from server.settings import Settings, SettingsError, variable

# Seconds.
_EVERY: Final = 300.0  # after which a URL is asked again
_AT_ONCE: Final = 10.0  # after which it is asked again for a key that is not known
_AGAIN: Final = 2.0  # after which it is asked again when that failed
_PATIENCE: Final = 5.0  # for its answer

_MOST_BYTES: Final = 1024 * 1024
_MOST_WAITING: Final = 10  # calls, for a key that is not known

_log = logging.getLogger(__name__)


class KeysUnavailable(Exception):
    """It cannot be told now whether a token is signed by one of the keys."""


class TokenKeys:
    """The keys at one place. Use it as an async context manager."""

    def __init__(self, location: str) -> None:
        """``location`` is a path or a URL. Raises SettingsError for a file that cannot be used."""
        self.changes = 0
        self.changed: Callable[[], object] = lambda: None
        """Is called when ``fault`` has changed."""
        self._source = _source(location)
        self._keys: KeySet | None = None
        shown = location.partition("?")[0]  # the rest of a URL may be secret
        self._state = StateLog(_log, f"the keys of tokens at {shown} cannot be used")
        self._reading: asyncio.Task[None] | None = None
        self._waiting = 0
        if isinstance(self._source, _File):
            try:
                keys = parse(self._source.path.read_bytes())
                if not keys.keys:
                    raise ValueError("; ".join(keys.notes))
            except (OSError, ValueError) as error:
                reason = getattr(error, "strerror", None) or error
                raise SettingsError(f"{variable('jwks')}: {location}: {reason}") from error
            self._take(keys)

    @classmethod
    def of(cls, settings: Settings) -> Self | None:
        """Return those that the settings name, if they do. Raises SettingsError."""
        return None if settings.jwks is None else cls(settings.jwks)

    async def __aenter__(self) -> Self:
        """Read a URL for the first time. Tokens are refused until that works."""
        self.look()
        if self._reading is not None:
            await self._reading
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Read no more."""
        if self._reading is not None:
            self._reading.cancel()
            await asyncio.gather(self._reading, return_exceptions=True)

    @property
    def fault(self) -> str | None:
        """Why no token can be checked, for people; None when it is known which keys there are."""
        return "the keys of tokens cannot be fetched" if self._keys is None else None

    async def find(self, key_id: str | None, algorithm: str) -> jwt.PyJWK | None:
        """Return the key with that ``kid``; without one, the only key for the algorithm.

        Raises KeysUnavailable, when it is not known which keys there are, or too many want to know.
        """
        key = self._find(key_id, algorithm)
        if key is None and (self._reading or self._source.is_due(wanted=True)):
            await self._wait()
            key = self._find(key_id, algorithm)
        if self._keys is None:
            raise KeysUnavailable("the keys of tokens cannot be fetched")
        return key

    async def _wait(self) -> None:
        """Wait for the keys to be read. Strangers, who have any keys, may not wait in numbers."""
        if self._waiting == _MOST_WAITING:
            raise KeysUnavailable("the keys of tokens are being fetched")
        self._waiting += 1
        try:
            await asyncio.shield(self.reload())  # others may wait for it as well
        finally:
            self._waiting -= 1

    def look(self) -> None:
        """Read the keys, in the background, if it is time to."""
        if self._source.is_due(wanted=False):
            self.reload()

    def reload(self) -> asyncio.Task[None]:
        """Read the keys, in the background, and return what does."""
        if self._reading is None:
            self._reading = asyncio.create_task(self._read())
        return self._reading

    async def _read(self) -> None:
        try:
            self._take(parse(await self._source.read()))
            self._source.done()
            self._state.succeeded()
        except Exception as error:  # whatever it is, the keys that are known go on
            self._state.failed(error)
        finally:
            self._reading = None

    def _take(self, keys: KeySet) -> None:
        before, self._keys = self._keys, keys
        self.changes += 1
        for note in keys.notes:
            if before is None or note not in before.notes:
                _log.warning("the keys of tokens: %s", note)
        if before is None:
            self.changed()

    def _find(self, key_id: str | None, algorithm: str) -> jwt.PyJWK | None:
        return None if self._keys is None else self._keys.find(key_id, algorithm)


async def read_once(location: str) -> KeySet:
    """Return the keys that are at ``location`` now. Raises any Exception."""
    return parse(await _source(location).read())


def _source(location: str) -> "_File | _Url":
    return _Url(location) if "://" in location else _File(Path(location))


class _File:
    """A JWK Set in a file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._watched = WatchedFiles([path])
        self._is_due = False

    def is_due(self, *, wanted: bool) -> bool:
        """Return whether to read it now; ``wanted`` when a key is not known."""
        self._is_due |= self._watched.have_changed()
        return self._is_due

    async def read(self) -> bytes:
        """Return what is in it."""
        self._is_due = True
        return self.path.read_bytes()

    def done(self) -> None:
        """Take note that what was read can be used."""
        self._is_due = False


class _Url:
    """A JWK Set at a URL, which is not asked more often than needs be."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._due = self._due_if_wanted = 0.0

    def is_due(self, *, wanted: bool) -> bool:
        """Return whether to ask now; ``wanted`` when a key is not known."""
        return time.monotonic() >= (self._due_if_wanted if wanted else self._due)

    async def read(self) -> bytes:
        """Return what is there."""
        now = time.monotonic()
        self._due, self._due_if_wanted = now + _AGAIN, now + _AT_ONCE
        return await _get(self._url)

    def done(self) -> None:
        """Take note that what was read can be used."""
        self._due = time.monotonic() + _EVERY


async def _get(url: str) -> bytes:
    transport = HTTPTransport(
        tls_include_system_certs=True,
        timeout=_PATIENCE,
        follow_redirects=False,  # which might lead from https to somewhere else
        enable_otel=False,
    )
    async with transport:
        accept = {"accept": "application/json"}
        async with Client(transport).stream("GET", url, accept) as response:
            if response.status != 200:
                raise ValueError(f"the answer is HTTP {response.status} instead of 200")
            content = bytearray()
            async for chunk in response.content:
                content += chunk
                if len(content) > _MOST_BYTES:
                    raise ValueError(f"it is longer than {_MOST_BYTES} bytes")
    return bytes(content)
