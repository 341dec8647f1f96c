"""The payment fields of an order, and the indexes that find an order by them.

Made for a live table. Writers wait only while the columns are added, without a rewrite, and no
longer than the lock time-out. The indexes are built CONCURRENTLY, so each statement is a
transaction of its own. A run that was interrupted can be run again: what is there is kept, and an
index that was left half-made (invalid) is dropped and made anew.

All of it is one step on purpose. When a step fails outside a transaction, yoyo runs the rollbacks
of the steps before it: a time-out at an index would drop the columns, with the payments in them.
"""

from psycopg import Connection
from yoyo import step

__depends__ = {"20251220000001_create_orders"}
__transactional__ = False

_INDEXES = {
    "idx_orders_payment_session": "INDEX {} ON orders (payment_session_id)",
    "idx_orders_idempotency_key": "UNIQUE INDEX {} ON orders (payment_idempotency_key)",
    "idx_orders_provider_session": "INDEX {} ON orders (payment_provider, payment_session_id)",
    "idx_orders_payment_intent": "INDEX {} ON orders (payment_intent_id)",
}

_IS_INVALID = "SELECT FROM pg_index WHERE indexrelid = to_regclass(%s) AND NOT indisvalid"


def add(connection: Connection) -> None:
    """Add the columns, then build the indexes that are missing or half-made."""
    _limit_lock_waits_for_table(connection)
    connection.execute(
        """
        ALTER TABLE orders
            ADD COLUMN IF NOT EXISTS payment_provider        VARCHAR(50),
            ADD COLUMN IF NOT EXISTS payment_session_id      VARCHAR(255),
            ADD COLUMN IF NOT EXISTS payment_intent_id       VARCHAR(255),
            ADD COLUMN IF NOT EXISTS payment_idempotency_key VARCHAR(255)
        """
    )
    _limit_lock_waits_for_indexes(connection)
    for name, definition in _INDEXES.items():
        if connection.execute(_IS_INVALID, (name,)).fetchone() is not None:
            connection.execute(f"DROP INDEX CONCURRENTLY {name}")
        connection.execute("CREATE " + definition.format(f"CONCURRENTLY IF NOT EXISTS {name}"))


def remove(connection: Connection) -> None:
    """Drop the columns with what they hold, and with them the indexes: all at once or not at all.

    Without the unique index, one idempotency key would be taken for two orders.
    """
    _limit_lock_waits_for_table(connection)
    connection.execute(
        """
        ALTER TABLE orders
            DROP COLUMN IF EXISTS payment_provider,
            DROP COLUMN IF EXISTS payment_session_id,
            DROP COLUMN IF EXISTS payment_intent_id,
            DROP COLUMN IF EXISTS payment_idempotency_key
        """
    )


def _limit_lock_waits_for_table(connection: Connection) -> None:
    # While ALTER TABLE waits for its lock, every reader and writer waits behind it.
    connection.execute("SET lock_timeout = '5s'")


def _limit_lock_waits_for_indexes(connection: Connection) -> None:
    # CONCURRENTLY waits for the transactions that are older than it, and nobody waits behind it.
    connection.execute("SET lock_timeout = '15min'")


step(add, remove)
