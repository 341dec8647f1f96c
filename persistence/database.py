"""The connection pool: who gets a connection, for how long, and what becomes of a lost one.

``databases`` owns the pool, on asyncpg. Statements run on its raw connection: given to
``databases`` as text, each would be parsed and compiled anew by SQLAlchemy, which halves the
updates a second (measured: 0.4 to 0.5 of asyncpg's own rate against 0.93 to 1.0 this way).
"""

import asyncio
import logging
import random
from collections.abc import Callable, Iterable, Sequence
from types import TracebackType
from typing import Any, Self, TypeAlias

import asyncpg
import databases

from persistence import errors
from persistence.dsn import asyncpg_dsn
from persistence.error_mapping import is_refusal, meaning

_PAUSES = (0.01, 0.02, 0.04, 0.08)
"""Seconds, at most, before a statement is tried again that another transaction stood in the way of.

Each pause is a random part of these, so that two that met do not meet again.
"""

_PREPARED = 100  # statements that each connection keeps

_log = logging.getLogger(__name__)

Abandoned: TypeAlias = Callable[[asyncio.Task[None]], object]
"""Is told that a statement has been left, and of the task that ends when it is at rest.

Until then, PostgreSQL may still make it.
"""


def _forget(_release: asyncio.Task[None]) -> None:
    pass


class Database:
    """A pool of connections to one PostgreSQL database. Use it as an async context manager."""

    def __init__(  # noqa: PLR0913 - each of them has a name
        self,
        url: str,
        *,
        max_connections: int,
        connect_timeout: float,
        statement_timeout: float,
        prepared_statements: bool = True,
        eager: bool = True,
    ) -> None:
        """Describe the pool; nothing is opened yet.

        ``url`` is a libpq URL, with all that asyncpg understands of one: several hosts, Unix
        sockets, ``sslmode``, ``target_session_attrs``. Time-outs are in seconds; the one for
        statements includes the wait for a connection, and every repetition. Without
        ``prepared_statements``, none is kept on a connection from one statement to the next, as a
        pooler between us and PostgreSQL may demand; each then takes two round trips. An ``eager``
        pool connects when it is opened, any other with the first statement.

        Raises InvalidDatabaseURL.
        """
        self._statement_timeout = statement_timeout
        self.max_connections = max_connections
        self._running = 0
        self._releases: set[asyncio.Task[None]] = set()
        # The URL goes to asyncpg as its `dsn`: databases' own reading of a URL knows neither Unix
        # sockets nor several hosts, and ignores most options without a word.
        self._databases = databases.Database(
            "postgresql:///",
            dsn=asyncpg_dsn(url),
            database=None,
            # A first connection may show that there is a database. More come when needed: a floor
            # would be restored in the background, with a traceback for each failure.
            init_size=1 if eager else 0,
            min_size=0,
            max_size=max_connections,
            timeout=connect_timeout,
            # Never reached by a statement, which is cancelled before. It is also how long asyncpg
            # waits for PostgreSQL to take note of that, before it gives the connection up.
            command_timeout=statement_timeout,
            statement_cache_size=_PREPARED if prepared_statements else 0,
            reset=_keep_session,
        )

    async def __aenter__(self) -> Self:
        """Open the pool. Raises DatabaseUnavailable, if it is eager."""
        try:
            await self._databases.connect()
        except Exception as error:
            raise errors.DatabaseUnavailable(f"cannot connect to PostgreSQL: {error}") from error
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close the pool, after the connections in use have come back."""
        try:
            async with asyncio.timeout(self._statement_timeout):
                await self._databases.disconnect()
        except (TimeoutError, OSError) as failure:
            # asyncpg has dropped the connections by now. There is nothing left to lose.
            _log.warning("PostgreSQL did not take leave: %s", failure or type(failure).__name__)

    @property
    def in_use(self) -> int:
        """How many connections are in use."""
        return min(self._running, self.max_connections)

    @property
    def waiting(self) -> int:
        """How many statements wait for a connection."""
        return max(self._running - self.max_connections, 0)

    async def fetch_row(
        self, sql: str, *args: object, abandoned: Abandoned = _forget
    ) -> Sequence[Any] | None:
        """Run one statement and return its first row, or None when it returns none.

        The statement is a transaction of its own, and one round trip once it is prepared on the
        connection. One that PostgreSQL gave up for another transaction is tried again some times;
        nothing else is. Raises a PersistenceError, whatever the driver raises. When the task is
        cancelled, so is the statement, in PostgreSQL: nobody waits for that, but ``abandoned``
        tells.
        """
        row: Sequence[Any] | None = await self._run("fetchrow", sql, args, abandoned)
        return row

    async def fetch_rows(self, sql: str, *args: object) -> list[Sequence[Any]]:
        """Run one statement and return its rows. Otherwise as ``fetch_row``."""
        rows: list[Sequence[Any]] = await self._run("fetch", sql, args, _forget)
        return rows

    async def fetch_each(
        self, sql: str, each: Iterable[Sequence[object]], *, abandoned: Abandoned = _forget
    ) -> list[Sequence[Any]]:
        """Run one statement for each of several sets of parameters, and return all their rows.

        They are one transaction, and one round trip. ``each`` is read when there is a connection,
        and again should the statement have to be prepared anew. Raises RolledBack when PostgreSQL
        refuses one of them, which is not tried again; otherwise as ``fetch_row``.
        """
        try:
            async with asyncio.timeout(self._statement_timeout):
                rows: list[Sequence[Any]] = await self._try("fetchmany", sql, (each,), abandoned)
                return rows
        except TimeoutError as error:
            raise errors.DatabaseTimeout("the database did not answer in time") from error
        except errors.PersistenceError as error:
            if is_refusal(error.__cause__):
                raise errors.RolledBack("one of the statements was refused") from error
            raise

    async def _run(self, fetch: str, sql: str, args: Sequence[object], abandoned: Abandoned) -> Any:
        try:
            async with asyncio.timeout(self._statement_timeout):
                for pause in _PAUSES:
                    try:
                        return await self._try(fetch, sql, args, abandoned)
                    except errors.TransactionConflict:
                        await asyncio.sleep(random.uniform(0, pause))  # noqa: S311
                return await self._try(fetch, sql, args, abandoned)
        except TimeoutError as error:
            raise errors.DatabaseTimeout("the database did not answer in time") from error

    async def _try(self, fetch: str, sql: str, args: Sequence[object], abandoned: Abandoned) -> Any:
        self._running += 1
        connection = self._databases.connection()
        try:
            await connection.__aenter__()
        except BaseException as error:
            self._running -= 1
            if isinstance(error, Exception):
                raise errors.DatabaseUnreachable("the database cannot be reached") from error
            raise
        # databases types its raw connection as Any.
        raw: asyncpg.Connection[asyncpg.Record] = connection.raw_connection
        try:
            result = await getattr(raw, fetch)(sql, *args)
        except asyncio.CancelledError:
            # asyncpg asks PostgreSQL to cancel the statement, and until it has, the connection is
            # not free. That may take long; whoever has cancelled us must not wait for it.
            release = asyncio.create_task(self._release(connection))
            self._releases.add(release)
            release.add_done_callback(self._releases.discard)
            abandoned(release)
            raise
        except Exception as error:
            failure = meaning(error, lost=_is_lost(raw))
            if isinstance(failure, errors.DatabaseReadOnly):
                raw.terminate()  # the next connection may find the primary
            await self._release(connection)
            raise failure from error
        await self._release(connection)
        return result

    async def _release(self, connection: databases.core.Connection) -> None:
        """Give the connection back. What was run on it stays done, also when that fails."""
        try:
            await connection.__aexit__()
        except Exception as error:  # asyncpg has dropped the connection
            _log.warning("a connection to PostgreSQL was dropped: %s", error)
        finally:
            self._running -= 1


def _is_lost(connection: "asyncpg.Connection[asyncpg.Record]") -> bool:
    try:
        return bool(connection.is_closed())
    except asyncpg.InterfaceError:  # the pool has taken it back already
        return True


async def _keep_session(_connection: object) -> None:
    """Take the place of asyncpg's reset query, a second round trip at each release.

    Nothing here changes a session's state. asyncpg itself still rolls back a transaction that was
    left open.
    """
