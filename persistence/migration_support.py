"""Building indexes on a table that is in use. For migrations outside a transaction."""

from collections.abc import Mapping

from psycopg import Connection

_IS_INVALID = "SELECT FROM pg_index WHERE indexrelid = to_regclass(%s) AND NOT indisvalid"


def build(connection: Connection, indexes: Mapping[str, str]) -> None:
    """Build, one after the other, those of ``indexes`` that are missing or half-made (invalid).

    Each is mapped from its name to its definition, with ``{}`` for the name, as in
    ``"UNIQUE INDEX {} ON orders (order_number)"``. Writers go on meanwhile. When it is
    interrupted, it can be run again.
    """
    # CONCURRENTLY waits for the transactions that are older than it, and nobody waits behind it.
    connection.execute("SET lock_timeout = '15min'")
    for name, definition in indexes.items():
        if connection.execute(_IS_INVALID, (name,)).fetchone() is not None:
            connection.execute(f"DROP INDEX CONCURRENTLY {name}")
        connection.execute("CREATE " + definition.format(f"CONCURRENTLY IF NOT EXISTS {name}"))


def drop(connection: Connection, indexes: Mapping[str, str]) -> None:
    """Drop those of ``indexes`` that are there, without keeping writers waiting."""
    connection.execute("SET lock_timeout = '15min'")
    for name in indexes:
        connection.execute(f"DROP INDEX CONCURRENTLY IF EXISTS {name}")


def limit_lock_waits(connection: Connection) -> None:
    """Make a change of a table give up after five seconds.

    While it waits for its lock, every reader and writer of the table waits behind it.
    """
    connection.execute("SET lock_timeout = '5s'")
