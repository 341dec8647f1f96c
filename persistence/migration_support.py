"""What migrations import besides psycopg and yoyo.

A released migration has run on other machines and is not edited. So what this module defines keeps
its name and its behaviour: it is added to, never changed. It imports nothing of the application.

Index builds are for migrations outside a transaction (``__transactional__ = False``), on a
connection in autocommit mode. They do not block writers, and can be run again after an
interruption.
"""

import time
from collections.abc import Callable, Iterable, Mapping
from typing import TypeVar

from psycopg import Connection, errors

_T = TypeVar("_T")

_CHANGE_SECONDS = 30.0
_PAUSE_SECONDS = 0.4

# Longer than for a table: what waits behind a try is what changes the same rows.
_ROWS_SECONDS = 300.0
_ROW_LOCK_TIMEOUT = "200ms"

_IS_INVALID = "SELECT FROM pg_index WHERE indexrelid = to_regclass(%s) AND NOT indisvalid"


class MigrationAborted(Exception):
    """Ends a migration. The message is for the user and says what to do.

    ``persistence.migrations`` raises it as MigrationError, with the same message.
    """


def create_indexes(connection: Connection, indexes: Mapping[str, str]) -> None:
    """Build, one after the other, those of ``indexes`` that are missing or invalid.

    Maps the name of each index to its definition, with ``{}`` for the name, as in
    ``"UNIQUE INDEX {} ON orders (order_number)"``. Sets ``lock_timeout`` to 15 minutes for the
    session. Raises psycopg.Error.
    """
    # CONCURRENTLY waits for older transactions, and blocks no other statement meanwhile.
    connection.execute("SET lock_timeout = '15min'")
    for name, definition in indexes.items():
        if connection.execute(_IS_INVALID, (name,)).fetchone() is not None:
            connection.execute(f"DROP INDEX CONCURRENTLY {name}")
        connection.execute("CREATE " + definition.format(f"CONCURRENTLY IF NOT EXISTS {name}"))


def drop_indexes(connection: Connection, indexes: Mapping[str, str]) -> None:
    """Drop those of ``indexes`` that exist. Otherwise as ``create_indexes``."""
    connection.execute("SET lock_timeout = '15min'")
    for name in indexes:
        connection.execute(f"DROP INDEX CONCURRENTLY IF EXISTS {name}")


def set_lock_timeout(connection: Connection) -> None:
    """Set ``lock_timeout`` to 5 seconds for the session, before a change of a table.

    While ALTER TABLE waits for its lock, every statement on the table waits behind it.
    """
    connection.execute("SET lock_timeout = '5s'")


def change_table(connection: Connection, table: str, *statements: str) -> None:
    """Run ``statements`` in one transaction, which has ``table`` for itself; on a table in use.

    While a statement waits for ACCESS EXCLUSIVE, every other statement on the table waits behind
    it. So it waits for 100 ms, and tries again after a pause, for half a minute. It takes SHARE
    UPDATE EXCLUSIVE first: autovacuum then releases its lock, and readers and writers do not wait.
    It takes ACCESS EXCLUSIVE before the statements, so that none of them upgrades a weaker lock,
    which can deadlock. The commit does not wait for the disk: ``commit_without_wait``.

    Raises psycopg.errors.LockNotAvailable when other transactions never left a gap, or another
    psycopg.Error; then nothing has been changed.
    """

    def change() -> None:
        with connection.transaction():
            commit_without_wait(connection)
            connection.execute("SET LOCAL lock_timeout = '5s'")
            connection.execute(f"LOCK TABLE {table} IN SHARE UPDATE EXCLUSIVE MODE")
            connection.execute("SET LOCAL lock_timeout = '100ms'")
            connection.execute(f"LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE")
            for statement in statements:
                connection.execute(statement)

    _repeated(change, _CHANGE_SECONDS)


def add_checks(connection: Connection, table: str, checks: Mapping[str, str]) -> None:
    """Add CHECKs to a table in use, by their names. They hold for what is written from now on.

    ``validate_check`` then checks the rows that there are. Raises as ``change_table``.
    """
    changes = ", ".join(
        f"DROP CONSTRAINT IF EXISTS {name}, ADD CONSTRAINT {name} CHECK ({condition}) NOT VALID"
        for name, condition in checks.items()
    )
    change_table(connection, table, f"ALTER TABLE {table} {changes}")


def validate_check(connection: Connection, table: str, name: str) -> None:
    """Check all rows of a table in use. Readers and writers do not wait for it.

    Sets ``lock_timeout`` to 15 minutes for the session. Raises psycopg.errors.CheckViolation when
    a row does not comply, or another psycopg.Error; the rows then remain as unchecked as before.
    """
    # SHARE UPDATE EXCLUSIVE, as of an autovacuum: no reader or writer waits behind it.
    connection.execute("SET lock_timeout = '15min'")
    connection.execute(f"ALTER TABLE {table} VALIDATE CONSTRAINT {name}")


def drop_checks(connection: Connection, table: str, names: Iterable[str]) -> None:
    """Drop those CHECKs of a table in use that exist. Raises as ``change_table``."""
    changes = ", ".join(f"DROP CONSTRAINT IF EXISTS {name}" for name in names)
    change_table(connection, table, f"ALTER TABLE {table} {changes}")


def change_rows(connection: Connection, change: Callable[[], _T]) -> _T:
    """Run ``change``, which reads or locks rows of a table in use, in one transaction.

    While it waits for a row, others wait for the rows that it has locked. So it waits for 200 ms,
    and ``change`` is called again after a pause, for five minutes; also after a deadlock. After the
    commit, which does not wait for the disk, it sleeps for as long as that took: half of the time
    is for others, the processor, the disk, and who follows the WAL.

    Raises psycopg.errors.LockNotAvailable when other transactions held a lock for too long, or
    another psycopg.Error; then this call has changed nothing.
    """

    def attempt() -> tuple[_T, float]:
        began = time.monotonic()
        with connection.transaction():
            commit_without_wait(connection)
            connection.execute(f"SET LOCAL lock_timeout = '{_ROW_LOCK_TIMEOUT}'")
            result = change()
        return result, time.monotonic() - began

    result, seconds = _repeated(attempt, _ROWS_SECONDS)
    time.sleep(seconds)
    return result


def _repeated(change: Callable[[], _T], seconds: float) -> _T:
    """Return what ``change`` returns. It is called again while a lock or a deadlock stops it."""
    end = time.monotonic() + seconds
    while True:
        try:
            return change()
        except (errors.LockNotAvailable, errors.DeadlockDetected):
            if time.monotonic() > end:
                raise
        time.sleep(_PAUSE_SECONDS)


def commit_without_wait(connection: Connection) -> None:
    """Let the current transaction release its locks before its commit is on disk or on a standby.

    Nothing that depends on it can be kept while it is lost: what commits later is later in the WAL.
    So the mark of yoyo, that the migration was applied, waits for it.
    """
    connection.execute("SET LOCAL synchronous_commit = off")
