"""Probes the database about twice a second, on a connection of its own.

Not on one of the pool, unless it is refused its own: a pool whose connections are all in use is no
fault of the database. It looks for what makes every call fail: also tables that are gone or hidden,
rights that were revoked, prepared statements that a connection pooler loses.
"""

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import Final, Self

import asyncpg

from persistence import roles
from persistence.database import Database
from persistence.diagnostics import pooling
from persistence.diagnostics.connection import Connection, Fetches
from persistence.diagnostics.rights import Lookup
from persistence.dsn import asyncpg_dsn
from persistence.errors import DatabaseTimeout, PersistenceError

# Seconds.
_INTERVAL: Final = 0.5  # between two probes, and between two attempts to connect
_TIMEOUT: Final = 1.0  # to connect, and for each statement

_RENEWAL: Final = 30.0
"""Seconds after which the connection is replaced: settings and limits count for new sessions."""

_LOSES_STATEMENTS: Final = (
    "a connection pooler in front of the database loses prepared statements: "
    "LISTINGS_PREPARED_STATEMENTS has to be off"
)

_FAULTS = (
    (TimeoutError, "the database does not answer in time"),
    (asyncpg.CannotConnectNowError, "the database is starting up or shutting down"),
    (asyncpg.TooManyConnectionsError, "the database has no connection left for us"),
    (asyncpg.InvalidAuthorizationSpecificationError, "the database refuses our user or password"),
    (asyncpg.InvalidCatalogNameError, "the database does not exist"),
    (pooling.LOST_ERRORS, _LOSES_STATEMENTS),
    ((OSError, asyncpg.InterfaceError), "the database cannot be reached"),
    (asyncpg.PostgresConnectionError, "the database cannot be reached"),
)

_OF_EVERY_CALL: Final = Lookup(
    (each for each in roles.REQUIRED if each.table in {"orders", "order_payment_events"}),
    roles.CALLED,
)
"""What each call needs. Those that record or list refused events also need their table."""

_log = logging.getLogger(__name__)


class _Unusable(Exception):
    """The database answers, and calls fail. ``str`` says why."""


class HealthProbe:
    """Probes one database. Use it as an async context manager."""

    def __init__(self, url: str, pool: Database, on_change: Callable[[], object]) -> None:
        """Describe the probe of the database at ``url``, a libpq URL; nothing is opened yet.

        ``pool`` is that of calls, at the same URL: while it has connections, calls do not fail for
        what a new connection meets. ``on_change`` is called when ``fault`` has changed. Raises
        InvalidDatabaseURL.
        """
        self.fault: str | None = "the database has not been asked yet"
        """What is wrong with the database, or None. It names neither hosts nor users."""
        self._url = url
        self._dsn = asyncpg_dsn(url)
        self._on_change = on_change
        self._pool = pool
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

    async def _probe_until_error(self) -> None:
        """Probe again and again. Raises what the driver raises, or _Unusable.

        Returns when a further connection is refused, and those that calls have are of use.
        """
        connection = await self._connect()
        if connection is None:
            self._set_fault(None)
            return
        try:
            await self._require_statements(connection)
            while True:
                for _ in range(int(_RENEWAL / _INTERVAL)):
                    await self._probe(connection)
                    self._had_answers = True
                    self._set_fault(None)
                    await asyncio.sleep(_INTERVAL)
                connection = await self._renewed(connection)
        finally:
            connection.terminate()

    async def _connect(self) -> "Connection | None":
        """Return a connection by which calls would not fail.

        None when a further one is refused, and those that calls have are of use: there is no slot
        left, say, or the password has changed.
        """
        try:
            connection: Connection = await asyncpg.connect(
                dsn=self._dsn,
                timeout=_TIMEOUT,
                command_timeout=_TIMEOUT,
                # As calls do, so that their probe fails as they do.
                statement_cache_size=1 if self._pool.prepared_statements else 0,
            )
        except (asyncpg.PostgresError, OSError) as error:
            if isinstance(error, TimeoutError) or not await self._calls_have_connections():
                raise
            return None
        try:
            await self._probe(connection)
        except BaseException:
            connection.terminate()
            raise
        return connection

    async def _calls_have_connections(self) -> bool:
        """Return whether the pool has connections that are of use. Raises _Unusable."""
        if not self._pool.has_connections:
            return False
        try:
            async with asyncio.timeout(_TIMEOUT):
                await self._probe(self._pool)
        except (TimeoutError, DatabaseTimeout):  # as far as it is known: all of them are in use
            return True
        except PersistenceError:  # a pooler has let them in, say, and cannot reach the database
            return False
        return True

    async def _require_statements(self, connection: Connection) -> None:
        """Raise _Unusable when a pooler loses prepared statements.

        Not for each connection: to find it out takes several, of which the pooler may have few.
        """
        if (
            self._pool.prepared_statements
            and await pooling.is_pooled(connection)
            and await pooling.are_kept(self._url) is False
        ):
            raise _Unusable(_LOSES_STATEMENTS)

    async def _probe(self, database: Fetches) -> None:
        lacking = await _OF_EVERY_CALL.lacking(database)
        if not all(each.exists for each in lacking):
            raise _Unusable("tables or functions are missing, or not on the search_path")
        if lacking:
            raise _Unusable("the database user lacks rights")

    async def _renewed(self, connection: Connection) -> Connection:
        """Return a new connection in the place of that one; itself, if calls can do without."""
        try:
            renewed = await self._connect()
        except Exception:
            if not self._pool.has_connections:
                raise
            renewed = None
        if renewed is None:
            return connection
        with suppress(Exception):  # not terminated, which PostgreSQL would log
            await connection.close(timeout=_TIMEOUT)
        return renewed

    def _set_fault(self, fault: str | None, error: Exception | None = None) -> None:
        if fault != self.fault:
            if isinstance(error, _Unusable):
                _log.warning("%s", fault)
            elif fault is not None:
                _log.warning("%s: %s", fault, error or type(error).__name__)
            elif self._has_result.is_set():
                _log.info("the database answers again")
            self.fault = fault
            self._on_change()
        self._has_result.set()


def _description(error: Exception) -> str:
    if isinstance(error, _Unusable):
        return str(error)
    for kinds, description in _FAULTS:
        if isinstance(error, kinds):
            return description
    return f"the database reports an error ({getattr(error, 'sqlstate', type(error).__name__)})"
