"""The payment fields of an order, and the indexes that find an order by them.

For a table in use. Writers wait only while the columns are added, without a rewrite, and no longer
than lock_timeout. The indexes are built CONCURRENTLY, so each statement is a transaction of its
own. After an interruption it can be run again: what exists is kept, and an invalid index is dropped
and built again.

It is one step, because when a step fails outside a transaction, yoyo rolls back the steps before
it: a time-out at an index would drop the columns, with the payments in them.
"""

from psycopg import Connection
from yoyo import step

from persistence.migration_support import create_indexes, set_lock_timeout

__depends__ = {"20251220000001_create_orders"}
__transactional__ = False

_INDEXES = {
    "idx_orders_payment_session": "INDEX {} ON orders (payment_session_id)",
    "idx_orders_idempotency_key": "UNIQUE INDEX {} ON orders (payment_idempotency_key)",
    "idx_orders_provider_session": "INDEX {} ON orders (payment_provider, payment_session_id)",
    "idx_orders_payment_intent": "INDEX {} ON orders (payment_intent_id)",
}


def add(connection: Connection) -> None:
    """Add the columns, then build the indexes that are missing or invalid."""
    set_lock_timeout(connection)
    connection.execute(
        """
        ALTER TABLE orders
            ADD COLUMN IF NOT EXISTS payment_provider        VARCHAR(50),
            ADD COLUMN IF NOT EXISTS payment_session_id      VARCHAR(255),
            ADD COLUMN IF NOT EXISTS payment_intent_id       VARCHAR(255),
            ADD COLUMN IF NOT EXISTS payment_idempotency_key VARCHAR(255)
        """
    )
    create_indexes(connection, _INDEXES)


def remove(connection: Connection) -> None:
    """Drop the columns with their data, and with them the indexes, in one statement.

    Without the unique index, one idempotency key would be accepted for two orders.
    """
    set_lock_timeout(connection)
    connection.execute(
        """
        ALTER TABLE orders
            DROP COLUMN IF EXISTS payment_provider,
            DROP COLUMN IF EXISTS payment_session_id,
            DROP COLUMN IF EXISTS payment_intent_id,
            DROP COLUMN IF EXISTS payment_idempotency_key
        """
    )


step(add, remove)
