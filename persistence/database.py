"""The connection pool: limits, retries, cancellation, lost connections.

``databases`` owns the pool, on asyncpg. A statement runs in one of two ways:

- ``fetch_all`` and ``fetch_one`` are those of ``databases``: values are named, as ``:order_id``.
  SQLAlchemy parses and compiles the text anew for each call, which takes 20 to 130 µs of CPU.
- ``fetch``, ``fetchrow`` and ``fetchmany`` are those of asyncpg, on its raw connection: values are
  numbered, as ``$1``. They are for what runs once an RPC. By the other way, the service made 0.4 to
  0.5 of the updates a second that asyncpg alone makes; this way, 0.93 to 1.0.

Deadlines, retries, cancels and errors are the same for both.
"""

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from contextvars import Context
from types import TracebackType
from typing import Any, Final, Self, TypeAlias, TypeGuard

import asyncpg
import databases

from persistence import errors, timestamps
from persistence.connection import Connection
from persistence.dsn import asyncpg_dsn
from persistence.error_mapping import is_rejection, persistence_error
from persistence.pool_slots import PoolSlots
from persistence.time_limit import TimeLimit

_RETRY_DELAYS: Final = (0.01, 0.02, 0.04, 0.08)
"""Seconds, at most, before a statement is repeated after a conflict with another transaction.

Each delay is a random part of these, so that two transactions that conflict do not do so again.
"""

_CANCEL_AGAIN_AFTER: Final = 0.05
"""Seconds until the cancel of a statement that has not ended is sent again; then twice as many."""

_STATEMENT_CACHE_SIZE: Final = 100  # prepared statements on each connection

_log = logging.getLogger(__name__)

OnCancel: TypeAlias = Callable[[asyncio.Task[None]], object]
"""Called when a statement is cancelled that PostgreSQL may have begun.

The task ends when the statement has ended in PostgreSQL. Until then, it may still be committed.
"""

_Row: TypeAlias = Sequence[Any]
_Statement: TypeAlias = Callable[[databases.core.Connection], Awaitable[Any]]


def _ignore(_release: asyncio.Task[None]) -> None:
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
        connection pooler in front of PostgreSQL may demand; each then takes two round trips. An
        ``eager`` pool connects when it is opened, any other with the first statement.

        Raises InvalidDatabaseURL.
        """
        self._statement_timeout = statement_timeout
        self.max_connections = max_connections
        self._slots = PoolSlots(max_connections)
        self.prepared_statements = prepared_statements
        self._releases: set[asyncio.Task[None]] = set()
        # Works around databases' reading of a URL, which takes one host only, and ignores most
        # options silently: the URL goes to asyncpg as its `dsn`.
        self._databases = databases.Database(
            "postgresql:///",
            dsn=asyncpg_dsn(url),
            database=None,
            # The first connection shows whether there is a database. More come when needed.
            init_size=1 if eager else 0,
            # Works around asyncpg's pool, which restores a minimum in the background and logs each
            # failure with its traceback.
            min_size=0,
            max_size=max_connections,
            timeout=connect_timeout,
            # Never reached by a statement, which is cancelled before. It is also how long asyncpg
            # waits for PostgreSQL to confirm a cancel, before it closes the connection.
            command_timeout=statement_timeout,
            statement_cache_size=_STATEMENT_CACHE_SIZE if prepared_statements else 0,
            connection_class=Connection,
            init=_set_up,
            reset=_no_reset,
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
        """Close the pool, after the connections in use have been released."""
        try:
            async with asyncio.timeout(self._statement_timeout):
                await self._databases.disconnect()
        except TimeoutError:  # asyncpg has dropped the connections by now
            _log.warning(
                "PostgreSQL connections not closed after %g s, and dropped", self._statement_timeout
            )
        except OSError as failure:
            _log.warning("PostgreSQL connections dropped while they were closed: %s", failure)

    @property
    def has_connections(self) -> bool:
        """Whether a connection is open, in use or not."""
        pool: asyncpg.Pool[Any] | None = self._databases._backend._pool
        return pool is not None and pool.get_size() > 0

    @property
    def in_use(self) -> int:
        """How many connections are in use."""
        return self._slots.used

    @property
    def waiting(self) -> int:
        """How many statements wait for a connection."""
        return self._slots.waiting

    async def fetch_all(
        self, query: str, values: Mapping[str, object] | None = None
    ) -> list[Mapping[str, Any]]:
        """Run one statement by ``databases`` and return its rows, by column.

        ``:name`` in ``query`` stands for ``values["name"]``. A type is written as
        ``CAST(:name AS bigint[])``: in ``:name::bigint[]``, SQLAlchemy sees no parameter.

        The statement is a transaction of its own. It is repeated, some times, after a conflict with
        another transaction, and after no other error. When the task is cancelled, so is the
        statement, in PostgreSQL; the task does not wait for that. Raises a PersistenceError,
        whatever the driver raises.
        """
        # Works around databases' Record, which yields the names of its columns when it is unpacked
        # as a tuple. The mapping below it is asyncpg's record.
        records = await self._run(lambda connection: connection.fetch_all(query, _dict(values)))
        return [record._mapping for record in records]

    async def fetch_one(
        self, query: str, values: Mapping[str, object] | None = None
    ) -> Mapping[str, Any] | None:
        """Run one statement by ``databases`` and return its first row, or None.

        Otherwise as ``fetch_all``.
        """
        record = await self._run(lambda connection: connection.fetch_one(query, _dict(values)))
        return None if record is None else record._mapping

    async def fetchrow(self, sql: str, *args: object, on_cancel: OnCancel = _ignore) -> _Row | None:
        """Run one statement by asyncpg and return its first row, or None when it returns none.

        ``$1`` in ``sql`` stands for the first of ``args``. The statement takes one round trip once
        it is prepared on the connection. ``on_cancel`` is called when the task is cancelled.
        Otherwise as ``fetch_all``.
        """
        row: _Row | None = await self._run(
            lambda connection: connection.raw_connection.fetchrow(sql, *args), on_cancel
        )
        return row

    async def fetch(self, sql: str, *args: object) -> list[_Row]:
        """Run one statement by asyncpg and return its rows. Otherwise as ``fetchrow``."""
        rows: list[_Row] = await self._run(
            lambda connection: connection.raw_connection.fetch(sql, *args)
        )
        return rows

    async def fetchmany(
        self, sql: str, args: Iterable[Sequence[object]], *, on_cancel: OnCancel = _ignore
    ) -> list[_Row]:
        """Run one statement by asyncpg for each of several sets of ``args``; return all their rows.

        They are one transaction, and one round trip. ``args`` is iterated when there is a
        connection, and again should the statement have to be prepared anew. Raises RolledBack when
        PostgreSQL rejects one of the statements, which is not repeated; otherwise as ``fetchrow``.
        """
        with TimeLimit(self._statement_timeout):
            try:
                rows: list[_Row] = await self._run_once(
                    lambda connection: _fetchmany(connection.raw_connection, sql, args), on_cancel
                )
            except errors.PersistenceError as error:
                if is_rejection(error.__cause__):
                    raise errors.RolledBack("one of the statements was rejected") from error
                raise
            return rows

    async def _run(self, statement: _Statement, on_cancel: OnCancel = _ignore) -> Any:
        with TimeLimit(self._statement_timeout):
            for delay in _RETRY_DELAYS:
                try:
                    return await self._run_once(statement, on_cancel)
                except errors.TransactionConflict:
                    await asyncio.sleep(random.uniform(0, delay))  # noqa: S311
            return await self._run_once(statement, on_cancel)

    async def _run_once(self, statement: _Statement, on_cancel: OnCancel) -> Any:
        # Works around databases: Database.connection() returns the same connection to a task until
        # that is released. A cancelled statement releases it later, and a connection that cannot be
        # acquired is never released: the task's next statement would get it again. To find the task
        # also takes 6 us.
        connection = databases.core.Connection(self._databases, self._databases._backend)
        try:
            await self._slots.acquire(connection.__aenter__, self._has_idle)
        except Exception as error:
            raise errors.DatabaseUnreachable("the database cannot be reached") from error
        # databases types its raw connection as Any.
        raw: asyncpg.Connection[asyncpg.Record] = connection.raw_connection
        try:
            result = await statement(connection)
        except BaseException as error:
            if _is_of_server(error):
                failure = persistence_error(error, connection_lost=_is_lost(raw))
                if isinstance(failure, errors.DatabaseReadOnly):
                    # Works around asyncpg's pool, which keeps a connection to a primary that has
                    # become a standby. The next connection may lead to the new primary.
                    raw.terminate()
                await self._release(connection)
                raise failure from error
            # Works around asyncpg, whose release of a connection waits until PostgreSQL has
            # confirmed that the statement is cancelled: a task of its own does that, because the
            # one that is cancelled must end now.
            release = asyncio.create_task(self._release_interrupted(connection))
            self._releases.add(release)
            release.add_done_callback(self._releases.discard)
            on_cancel(release)
            if isinstance(error, Exception):
                raise persistence_error(error, connection_lost=_is_lost(raw)) from error
            raise
        await self._release(connection)
        return result

    async def _release_interrupted(self, connection: databases.core.Connection) -> None:
        """Release the connection of a statement that did not end, out of any transaction."""
        raw: asyncpg.Connection[asyncpg.Record] = connection.raw_connection
        try:
            await _end_cancelled(raw)
        except Exception:  # PostgreSQL does not answer, or the connection is lost
            with suppress(asyncpg.InterfaceError):  # the pool has taken it back already
                raw.terminate()
        await self._release(connection)

    async def _release(self, connection: databases.core.Connection) -> None:
        """Release the connection. What a statement has committed on it stays so if that fails."""
        try:
            await connection.__aexit__()
        except Exception as error:  # asyncpg has dropped the connection
            _log.warning("a connection to PostgreSQL was dropped: %s", error)
        finally:
            self._slots.release()

    def _has_idle(self) -> bool:
        """Return whether the pool has a connection that is not in use."""
        pool: asyncpg.Pool = self._databases._backend._pool
        return bool(pool.get_idle_size())


async def _fetchmany(
    connection: "asyncpg.Connection[asyncpg.Record]", sql: str, args: Iterable[Sequence[object]]
) -> list[_Row]:
    counted = _Counted(args)
    rows: list[_Row] = await connection.fetchmany(sql, counted)
    if not counted.count:
        await _end_transaction(connection)
    return rows


class _Counted:
    """Sets of arguments, and how many of them have been iterated."""

    def __init__(self, args: Iterable[Sequence[object]]) -> None:
        self._args = args
        self.count = 0

    def __iter__(self) -> Iterator[Sequence[object]]:
        for each in self._args:
            self.count += 1
            yield each


async def _end_transaction(connection: "asyncpg.Connection[asyncpg.Record]") -> None:
    """End a transaction in which a statement has been prepared and not executed.

    Works around asyncpg, which prepares a statement with Flush in place of Sync. When the task is
    cancelled just after that, when asyncpg cannot encode an argument, or when there are no
    arguments to execute it with, the session stays in a transaction until the next statement.
    """
    await connection.execute("SELECT")  # a simple query, which ends with what Sync does


async def _end_cancelled(connection: "asyncpg.Connection[asyncpg.Record]") -> None:
    """Wait until a statement that is being cancelled has ended, and end its transaction.

    Works around asyncpg, which sends a cancel once. PostgreSQL ignores one that arrives before the
    statement, as it may when its process has to wait for a processor: the statement would run, and
    wait for a lock as long as that is held.
    """
    # asyncpg first waits until PostgreSQL confirms the cancel.
    ending = asyncio.create_task(_end_transaction(connection))
    ending.add_done_callback(_retrieve)
    delay = _CANCEL_AGAIN_AFTER
    while not (await asyncio.wait([ending], timeout=delay))[0]:
        await _cancel_again(connection)
        delay *= 2
    with suppress(asyncpg.QueryCanceledError):  # a cancel has met the one that ends the transaction
        await ending


async def _cancel_again(connection: "asyncpg.Connection[asyncpg.Record]") -> None:
    """Send a cancel once more. Returns when PostgreSQL has signalled the session's process.

    Hence it does not meet a statement that is sent later. If it is not sent within
    ``command_timeout``, asyncpg terminates the connection. The wait is for the task and not for the
    future, which asyncpg may leave as it is when it has lost the connection.
    """
    sent = asyncio.get_running_loop().create_future()
    await asyncio.wait([asyncio.create_task(connection._cancel(sent))])


def _retrieve(task: "asyncio.Task[None]") -> None:
    """Retrieve the exception of ``task``, which asyncio would log otherwise."""
    if not task.cancelled():
        task.exception()


def _dict(values: Mapping[str, object] | None) -> dict[str, object] | None:
    return None if values is None else dict(values)


def _is_of_server(error: BaseException) -> TypeGuard[Exception]:
    """Return whether PostgreSQL has sent ``error``, after which asyncpg sends Sync."""
    return isinstance(error, asyncpg.PostgresError) and error.severity is not None


def _is_lost(connection: "asyncpg.Connection[asyncpg.Record]") -> bool:
    try:
        return bool(connection.is_closed())
    except asyncpg.InterfaceError:  # the pool has taken it back already
        return True


async def _set_up(connection: "asyncpg.Connection[Any]") -> None:
    """Prepare a new connection for the pool."""
    await timestamps.set_codec(connection)
    await _prepare_session(connection)


# PostgreSQL says by a warning that a commit's wait for a standby was interrupted, see
# ``persistence.connection``; with "error", set for the role or the database, it would not.
_SEE_WARNINGS: Final = (
    "SELECT set_config('client_min_messages', 'warning', false)"
    " WHERE current_setting('client_min_messages') = 'error'"
)


async def _prepare_session(connection: "asyncpg.Connection[Any]") -> None:
    """Have the session of a new connection send warnings, and keep memory.

    Namely the memory that a statement has needed.

    glibc returns what is free at the top of a process's heap to the kernel, above 128 kB, and an
    update needs more for its statement: 30 us of the 200 that PostgreSQL takes for it are there to
    return memory, and to fault it in again. The limit is twice the largest block that was
    allocated by mmap, and freed: here 1 MB, for a moment.
    """
    prepared = connection.execute(f"SELECT length(repeat(' ', 1000000)); {_SEE_WARNINGS}")
    try:
        # In a context of its own: it is neither of the call that needs the connection, nor in its
        # trace.
        await asyncio.create_task(prepared, context=Context())
    except asyncio.CancelledError:
        # Works around asyncpg's pool, which closes the connection then, and waits until PostgreSQL
        # has confirmed that the statement is cancelled: the call that is cancelled must end now.
        connection.terminate()
        raise


async def _no_reset(_connection: object) -> None:
    """Do nothing in the place of asyncpg's reset query, a second round trip for each release.

    Works around asyncpg's pool, which has no option that leaves the query out. No statement here
    changes the state of a session. A transaction that was left open is rolled back by asyncpg
    before this.
    """
