"""Indexes of the sessions and intents that orders had, instead of all that came.

What an order has now is found by the indexes of ``orders``. So an event needs an entry only where
it replaces a reference or removes it, which few do. References are random: an entry for each that
came took a page in a random place, and after each checkpoint the image of that page in the WAL.

The transaction id has no index in ``orders``, and stays indexed with the event that brought it.

It is the last one that takes something from workers of the version before: they look for sessions
and intents by the indexes that are dropped here.
"""

from psycopg import Connection
from yoyo import step

from persistence.migration_support import create_indexes, drop_indexes

__depends__ = {"20261130000004_index_payment_states"}
__transactional__ = False

_COLUMNS = ("payment_session_id", "payment_intent_id")

# What is null in most events comes first.
_INDEXES = {
    f"idx_order_payment_events_{column}_before": (
        f"INDEX {{}} ON order_payment_events ({column}_before)"
        f" WHERE {column}_before IS NOT NULL AND {column}_after IS DISTINCT FROM {column}_before"
    )
    for column in _COLUMNS
}

_INDEXES_BEFORE = {
    f"idx_order_payment_events_{column}": (
        f"INDEX {{}} ON order_payment_events ({column}_after)"
        f" WHERE {column}_after IS DISTINCT FROM {column}_before"
    )
    for column in _COLUMNS
}


def create(connection: Connection) -> None:
    """Build the indexes that are missing or invalid, then drop those that they replace."""
    create_indexes(connection, _INDEXES)
    drop_indexes(connection, _INDEXES_BEFORE)


def drop(connection: Connection) -> None:
    """Build the indexes before, then drop these."""
    create_indexes(connection, _INDEXES_BEFORE)
    drop_indexes(connection, _INDEXES)


step(create, drop)
