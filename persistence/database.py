"""The connection pool, and the translation of a driver's errors into our own.

``databases`` owns the pool, on asyncpg. Statements run on its raw connection: given to
``databases`` as text, each would be parsed and compiled anew by SQLAlchemy, which halves the
updates a second (measured: 0.4 to 0.5 of asyncpg's own rate against 0.93 to 1.0 this way).
"""

import asyncio
import logging
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self

import asyncpg
import databases

from persistence import errors
from persistence.url import asyncpg_dsn

_UNAVAILABLE = (
    "08",  # connection exceptions
    "53",  # insufficient resources: disk, memory, connections
    "57P",  # the server is shutting down, crashed or starting
    "25006",  # read-only: a standby, or a primary that was demoted
)
_TIMEOUT = (
    "57014",  # cancelled: statement_timeout
    "55P03",  # lock_timeout
)
_CONFLICT = (
    "40001",  # serialization failure
    "40P01",  # deadlock
)

_log = logging.getLogger(__name__)


class Database:
    """A pool of connections to one PostgreSQL database. Use it as an async context manager."""

    def __init__(
        self,
        url: str,
        *,
        max_connections: int,
        connect_timeout: float,
        statement_timeout: float,
        eager: bool = True,
    ) -> None:
        """Describe the pool; nothing is opened yet.

        ``url`` is a libpq URL, with all that asyncpg understands of one: several hosts, Unix
        sockets, ``sslmode``, ``target_session_attrs``. Time-outs are in seconds; the one for
        statements is also how long one waits for a connection of the pool to come free. An
        ``eager`` pool connects when it is opened, any other with the first statement.

        Raises InvalidDatabaseURL.
        """
        self._statement_timeout = statement_timeout
        # The URL goes to asyncpg as its `dsn`: databases' own reading of a URL knows neither Unix
        # sockets nor several hosts, and ignores most options without a word.
        self._databases = databases.Database(
            "postgresql:///",
            dsn=asyncpg_dsn(url),
            database=None,
            min_size=1 if eager else 0,
            max_size=max_connections,
            timeout=connect_timeout,
            command_timeout=statement_timeout,
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
            await self._databases.disconnect()
        except (TimeoutError, OSError) as failure:
            # asyncpg has dropped the connections by now. There is nothing left to lose.
            _log.warning("PostgreSQL did not take leave: %s", failure or type(failure).__name__)

    async def fetch_row(self, sql: str, *args: object) -> Sequence[Any] | None:
        """Run one statement and return its first row, or None when it returns none.

        The statement is a transaction of its own, and one round trip once it is prepared on the
        connection. Raises a PersistenceError, whatever the driver raises.
        """
        row: Sequence[Any] | None = await self._run("fetchrow", sql, args)
        return row

    async def fetch_rows(self, sql: str, *args: object) -> list[Sequence[Any]]:
        """Run one statement and return its rows. Otherwise as ``fetch_row``."""
        rows: list[Sequence[Any]] = await self._run("fetch", sql, args)
        return rows

    async def _run(self, fetch: str, sql: str, args: Sequence[object]) -> Any:
        waiting = asyncio.timeout(self._statement_timeout)
        try:
            async with waiting, self._databases.connection() as connection:
                waiting.reschedule(None)  # from here on, asyncpg keeps the time
                # databases types its raw connection as Any.
                raw: asyncpg.Connection[asyncpg.Record] = connection.raw_connection
                try:
                    return await getattr(raw, fetch)(sql, *args)
                except Exception as error:
                    raise _translated(error, lost=raw.is_closed()) from error
        except errors.PersistenceError:
            raise
        except Exception as error:  # while a connection was being had: nothing has run
            if waiting.expired():
                raise errors.DatabaseTimeout("no connection came free in time") from error
            raise errors.DatabaseUnavailable("no connection to PostgreSQL could be had") from error


async def _keep_session(_connection: object) -> None:
    """Take the place of asyncpg's reset query, a second round trip at each release.

    Nothing here changes a session's state. asyncpg itself still rolls back a transaction that was
    left open.
    """


def _translated(error: Exception, *, lost: bool) -> errors.PersistenceError:
    """Say in this package's words what a driver's ``error`` means for the statement that ran."""
    state = str(getattr(error, "sqlstate", None) or "")
    # Before OSError, which TimeoutError is one of.
    if isinstance(error, TimeoutError) or state in _TIMEOUT:
        return errors.DatabaseTimeout("PostgreSQL did not answer in time")
    if lost or state.startswith(_UNAVAILABLE) or isinstance(error, OSError):
        return errors.DatabaseUnavailable("the connection to PostgreSQL was lost")
    if state in _CONFLICT:
        return errors.TransactionConflict("a concurrent transaction stood in the way")
    if isinstance(error, asyncpg.UniqueViolationError):
        return errors.UniqueViolation(error.constraint_name)
    if state.startswith("22") or isinstance(error, asyncpg.DataError | UnicodeError):
        return errors.InvalidValue("PostgreSQL cannot store a value of this statement")
    return errors.DatabaseFailure(
        f"PostgreSQL refused a statement ({state or type(error).__name__})"
    )
