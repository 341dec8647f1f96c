"""Probes the database about twice a second, on a connection of its own.

Not on one of the pool: a pool whose connections are all in use is no fault of the database.
"""

import asyncio
import logging
from collections.abc import Callable
from types import TracebackType
from typing import Final, NoReturn, Self

import asyncpg

from persistence.dsn import asyncpg_dsn

# Seconds. Their sum is how long a fault may stay unnoticed.
_INTERVAL: Final = 0.5  # between two probes, and between two attempts to connect
_TIMEOUT: Final = 1.0

_FAULTS = (
    (TimeoutError, "the database does not answer in time"),
    (asyncpg.CannotConnectNowError, "the database is starting up or shutting down"),
    (asyncpg.TooManyConnectionsError, "the database has no connection left for us"),
    (asyncpg.InvalidAuthorizationSpecificationError, "the database refuses our user or password"),
    (asyncpg.InvalidCatalogNameError, "the database does not exist"),
    ((OSError, asyncpg.InterfaceError), "the database cannot be reached"),
    (asyncpg.PostgresConnectionError, "the database cannot be reached"),
)

_log = logging.getLogger(__name__)


class HealthProbe:
    """Probes one database. Use it as an async context manager."""

    def __init__(self, url: str, on_change: Callable[[], object]) -> None:
        """Describe the probe of the database at ``url``, a libpq URL; nothing is opened yet.

        ``on_change`` is called when ``fault`` has changed. Raises InvalidDatabaseURL.
        """
        self.fault: str | None = "the database has not been asked yet"
        """What is wrong with the database, or None. It names neither hosts nor users."""
        self._dsn = asyncpg_dsn(url)
        self._on_change = on_change
        self._has_result = asyncio.Event()
        self._had_answers = False  # on the present connection, or the one that was just lost
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        """Probe once, and go on in the background."""
        self._task = asyncio.create_task(self._run())
        await self._has_result.wait()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Stop probing."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> None:
        while True:
            try:
                await self._probe_until_error()
            except Exception as error:  # of any kind: probing must go on
                if self._had_answers and not isinstance(error, TimeoutError):
                    # It may be this connection alone that was lost.
                    self._had_answers = False
                    continue
                self._set_fault(_description(error), error)
            await asyncio.sleep(_INTERVAL)

    async def _probe_until_error(self) -> NoReturn:
        """Probe on one connection. Raises what the driver raises when it is lost, or times out."""
        connection = await asyncpg.connect(
            dsn=self._dsn, timeout=_TIMEOUT, command_timeout=_TIMEOUT
        )
        try:
            while True:
                # A simple query, because it has no arguments: a prepared statement might be unknown
                # to the server behind a connection pooler.
                await connection.execute("SELECT")
                self._had_answers = True
                self._set_fault(None)
                await asyncio.sleep(_INTERVAL)
        finally:
            connection.terminate()

    def _set_fault(self, fault: str | None, error: Exception | None = None) -> None:
        if fault != self.fault:
            if fault is not None:
                _log.warning("%s: %s", fault, error or type(error).__name__)
            elif self._has_result.is_set():
                _log.info("the database answers again")
            self.fault = fault
            self._on_change()
        self._has_result.set()


def _description(error: Exception) -> str:
    for kinds, description in _FAULTS:
        if isinstance(error, kinds):
            return description
    return f"the database reports an error ({getattr(error, 'sqlstate', type(error).__name__)})"
