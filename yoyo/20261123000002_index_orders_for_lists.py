"""Indexes for the lists of orders: one for each filter, in the order of the lists.

An update of an indexed column costs more: it is no HOT update, and adds the row to each index of
the table, which takes 110 us of PostgreSQL's time. Storefront, buyer and time never change. The
status of an order changes a few times, the provider once. What changes more often is indexed in
order_payment_events instead.
"""

from psycopg import Connection
from yoyo import step

from persistence.migration_support import create_indexes, drop_indexes

__depends__ = {"20261123000001_create_order_payment_events"}
__transactional__ = False

_INDEXES = {
    "idx_orders_created": "INDEX {} ON orders (created_at, id)",
    "idx_orders_storefront_created": "INDEX {} ON orders (storefront_id, created_at, id)",
    "idx_orders_buyer_created": "INDEX {} ON orders (buyer_id, created_at, id)",
    "idx_orders_payment_status_created": "INDEX {} ON orders (payment_status, created_at, id)",
    "idx_orders_payment_provider_created": "INDEX {} ON orders (payment_provider, created_at, id)",
    # Payments without a decision of the provider. Most pending orders have no provider: their
    # buyers did not start to pay.
    "idx_orders_open_payments": (
        "INDEX {} ON orders (created_at, id) WHERE payment_provider IS NOT NULL"
        " AND payment_status IN ('pending', 'processing', 'requires_action', 'authorized')"
    ),
}


def create(connection: Connection) -> None:
    """Build the indexes that are missing or invalid."""
    create_indexes(connection, _INDEXES)


def drop(connection: Connection) -> None:
    """Drop the indexes."""
    drop_indexes(connection, _INDEXES)


step(create, drop)
