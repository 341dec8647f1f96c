"""Indexes for the lists by the state of a payment and by its amounts.

Each is partial, and leaves out what most orders are, so that the usual way of a payment, from
pending to paid, costs an update nothing but the look at the condition. A further full index would
take an update 4 to 6 us of PostgreSQL's time.

The index of open payments before this one went by the word, and by the age of the order.
"""

from psycopg import Connection
from yoyo import step

from persistence.migration_support import create_indexes, drop_indexes

__depends__ = {"20261130000003_create_refused_payment_events"}
__transactional__ = False

_INDEXES = {
    # Open, unknown and not classified, by how long.
    "idx_orders_stuck_payments": (
        "INDEX {} ON orders (payment_status_since, id)"
        " WHERE payment_provider IS NOT NULL AND (payment_state IS NULL OR payment_state < 6)"
    ),
    # Neither paid, as most are, nor pending in the usual word, whose index is that of the words.
    # A null state is that of an order changed by hand since, or by a worker of the version before.
    "idx_orders_payment_state_created": (
        "INDEX {} ON orders (payment_state, created_at, id)"
        " WHERE (payment_state IS NULL OR payment_state <> 9)"
        " AND (payment_status <> 'pending' OR payment_state <> 2)"
    ),
    "idx_orders_amounts_disagree": (
        "INDEX {} ON orders (created_at, id)"
        " WHERE payment_amounts_disagree("
        "payment_state, captured_amount, refunded_amount, total_amount)"
    ),
}

# PostgreSQL prepares the condition of an index for each update: this one would take 8 us of its
# time if it were spelled out. A function is prepared when it is called, and most orders have no
# amounts.
_AMOUNTS_DISAGREE = """
    CREATE OR REPLACE FUNCTION payment_amounts_disagree(
        state smallint, captured bigint, refunded bigint, total bigint
    ) RETURNS boolean LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE AS $$
    BEGIN
        IF captured IS NULL AND refunded IS NULL THEN
            RETURN false;
        END IF;
        RETURN refunded > captured OR captured > total
            OR (state = 9 AND (captured <> total OR refunded > 0))
            OR (state = 11 AND refunded <> captured)
            OR (state = 10 AND (refunded <= 0 OR refunded >= captured));
    END
    $$
"""
# Each role that writes an order calls it, for the condition of the index.
_GRANT = "GRANT EXECUTE ON FUNCTION payment_amounts_disagree TO PUBLIC"

_INDEXES_BEFORE = {
    "idx_orders_open_payments": (
        "INDEX {} ON orders (created_at, id) WHERE payment_provider IS NOT NULL"
        " AND payment_status IN ('pending', 'processing', 'requires_action', 'authorized')"
    ),
}


def create(connection: Connection) -> None:
    """Build the indexes that are missing or invalid, then drop the one that they replace."""
    connection.execute(_AMOUNTS_DISAGREE)
    connection.execute(_GRANT)
    create_indexes(connection, _INDEXES)
    drop_indexes(connection, _INDEXES_BEFORE)


def drop(connection: Connection) -> None:
    """Build the index before, then drop these."""
    create_indexes(connection, _INDEXES_BEFORE)
    drop_indexes(connection, _INDEXES)
    connection.execute("DROP FUNCTION IF EXISTS payment_amounts_disagree")


step(create, drop)
