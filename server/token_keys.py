"""The public keys of those who issue tokens: a JWK Set (RFC 7517), in a file or at a URL.

A file is read again when it has changed. A URL is asked every few minutes, and at once when a token
names a key that is not known, though not again and again: whoever sends tokens could choose how
often. While the keys cannot be had, those that are known go on.
"""

import asyncio
import json
import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import jwt
from pyqwest import Client, HTTPTransport

from persistence.trouble import Trouble
from server.settings import Settings, SettingsError, variable
from server.tokens import ALGORITHMS
from server.watched_files import WatchedFiles

# Seconds.
_EVERY: Final = 300.0  # after which a URL is asked again
_AT_ONCE: Final = 10.0  # after which it is asked again for a key that is not known
_AGAIN: Final = 2.0  # after which it is asked again when that failed
_PATIENCE: Final = 5.0  # for its answer

_MOST_BYTES: Final = 1024 * 1024

DEVELOPMENT: Final = "development-only"
"""How the ``kid`` of a key begins that is not fit for anything else."""

_log = logging.getLogger(__name__)


class KeysUnavailable(Exception):
    """There are no keys yet to check a token with."""


class TokenKeys:
    """The keys at one place. Use it as an async context manager."""

    def __init__(self, location: str) -> None:
        """``location`` is a path or a URL. Raises SettingsError for a file that cannot be used."""
        self.changes = 0
        self.changed: Callable[[], object] = lambda: None
        """Is called when ``fault`` has changed."""
        self._source = _source(location)
        self._keys: Sequence[jwt.PyJWK] = ()
        self._trouble = Trouble(_log, f"the keys of tokens at {location} cannot be used")
        self._reading: asyncio.Task[None] | None = None
        if isinstance(self._source, _File):
            try:
                self._take(self._source.path.read_bytes())
            except (OSError, ValueError) as error:
                reason = getattr(error, "strerror", None) or error
                raise SettingsError(f"{variable('jwks')}: {location}: {reason}") from error

    @classmethod
    def of(cls, settings: Settings) -> Self | None:
        """Return those that the settings name, if they do. Raises SettingsError."""
        return None if settings.jwks is None else cls(settings.jwks)

    async def __aenter__(self) -> Self:
        """Read a URL for the first time. Tokens are refused until that works."""
        self.look()
        if self._reading is not None:
            await self._reading
        if any((key.key_id or "").startswith(DEVELOPMENT) for key in self._keys):
            _log.warning("tokens of `listings dev-token` are taken: not for production")
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
        """Why no token can be checked, for people; None when there are keys."""
        return None if self._keys else "the keys of tokens cannot be fetched"

    async def find(self, key_id: str | None, algorithm: str) -> jwt.PyJWK | None:
        """Return the key with that ``kid``; without one, the only key for the algorithm.

        Raises KeysUnavailable, while there are none at all.
        """
        key = self._find(key_id, algorithm)
        if key is None and (self._reading or self._source.is_due(wanted=True)):
            await asyncio.shield(self.reload())  # others may wait for it as well
            key = self._find(key_id, algorithm)
        if not self._keys:
            raise KeysUnavailable("the keys of tokens cannot be fetched")
        return key

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
            self._take(await self._source.read())
            self._trouble.is_over()
        except Exception as error:  # whatever it is, the keys that are known go on
            self._trouble.is_there(error)
        finally:
            self._reading = None

    def _take(self, key_set: bytes) -> None:
        had_none = not self._keys
        self._keys = parse(key_set)
        self.changes += 1
        if had_none:
            self.changed()

    def _find(self, key_id: str | None, algorithm: str) -> jwt.PyJWK | None:
        keys = [key for key in self._keys if key.algorithm_name == algorithm]
        if key_id is not None:
            keys = [key for key in keys if key.key_id == key_id]
        return keys[0] if len(keys) == 1 else None


async def read_once(location: str) -> list[jwt.PyJWK]:
    """Return the keys that are at ``location`` now. Raises any Exception."""
    return parse(await _source(location).read())


def _source(location: str) -> "_File | _Url":
    return _Url(location) if "://" in location else _File(Path(location))


class _File:
    """A JWK Set in a file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._watched = WatchedFiles([path])

    def is_due(self, *, wanted: bool) -> bool:
        """Return whether to read it now; ``wanted`` when a key is not known."""
        return self._watched.have_changed()

    async def read(self) -> bytes:
        return self.path.read_bytes()


class _Url:
    """A JWK Set at a URL, which is not asked more often than needs be."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._due = self._due_if_wanted = 0.0

    def is_due(self, *, wanted: bool) -> bool:
        return time.monotonic() >= (self._due_if_wanted if wanted else self._due)

    async def read(self) -> bytes:
        now = time.monotonic()
        self._due, self._due_if_wanted = now + _AGAIN, now + _AT_ONCE
        key_set = await _get(self._url)
        self._due = now + _EVERY
        return key_set


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


def parse(key_set: bytes) -> list[jwt.PyJWK]:
    """Return the keys of a JWK Set that tokens can be checked with. Raises ValueError."""
    try:
        entries = json.loads(key_set)["keys"]
        keys = [key for entry in entries if (key := _key(entry))]
    except (KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError('it is not a JWK Set: expected {"keys": [...]}') from error
    if not keys:
        raise ValueError(f"it has no key for {', '.join(ALGORITHMS)}")
    return keys


def _key(entry: dict[str, Any]) -> jwt.PyJWK | None:
    """Return the key that ``entry`` describes, or None if it is for something else."""
    if "d" in entry:
        raise ValueError("it has a private key, where only public ones belong")
    if entry.get("use", "sig") != "sig" or "verify" not in entry.get("key_ops", ["verify"]):
        return None
    try:
        key = jwt.PyJWK(entry)
    except jwt.PyJWTError:
        return None
    if key.algorithm_name not in ALGORITHMS:
        return None
    if too_short := key.Algorithm.check_key_length(key.key):
        raise ValueError(too_short)
    return key
