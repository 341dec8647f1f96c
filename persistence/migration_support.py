"""What migrations import besides psycopg and yoyo.

A released migration has run on other machines and is not edited. So what this module defines keeps
its name and its behaviour: it is added to, never changed. It imports nothing of the application.

Index builds are for migrations outside a transaction (``__transactional__ = False``), on a
connection in autocommit mode. They do not block writers, and can be run again after an
interruption.
"""

from collections.abc import Mapping

from psycopg import Connection

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
