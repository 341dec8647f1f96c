"""Orders by the million: what ``persistence.seeding`` makes, made by PostgreSQL itself.

It takes a tenth of the time, because the indexes are built when all rows are there, and the history
is entered at once and not row by row.
"""

from contextlib import suppress
from typing import Final, LiteralString

import psycopg
from psycopg import sql

_TABLES: Final = ("orders", "order_payment_events")

# Each of a hundred has its status as often as with the demo orders. None of them is refunded: by
# the rules, what was refunded stays so, and each of these is to be paid.
_ORDERS: Final = """
    INSERT INTO orders (
        id, order_number, buyer_id, storefront_id, status, payment_status, currency,
        subtotal_amount, shipping_amount, tax_amount, discount_amount, total_amount,
        created_at, updated_at, payment_provider, payment_session_id, payment_intent_id,
        payment_idempotency_key, payment_transaction_id
    )
    SELECT
        id, 'L-2026-' || lpad(id::text, 9, '0'), 1 + random(0, 49999), 1 + random(0, 39),
        CASE WHEN share < 8 THEN 'pending' WHEN share < 14 THEN 'cancelled' ELSE 'delivered' END,
        CASE WHEN share < 8 THEN 'pending' WHEN share < 14 THEN 'failed' ELSE 'paid' END,
        'EUR', subtotal, 490, (subtotal + 490) * 19 / 100, 0,
        subtotal + 490 + (subtotal + 490) * 19 / 100,
        created_at, created_at + interval '1 minute',
        CASE WHEN share >= 8 THEN CASE WHEN id %% 4 > 0 THEN 'stripe' ELSE 'allsecure' END END,
        CASE WHEN share >= 8 AND id %% 4 > 0 THEN 'cs_test_' || left(token, 28) END,
        CASE WHEN share >= 8 THEN 'pi_' || left(token, 24) END,
        CASE WHEN share >= 8 THEN 'stripe_' || id || '_' || left(token, 8) END,
        CASE WHEN share >= 14 THEN 'txn_' || left(token, 24) END
    FROM (
        SELECT
            id, random(0, 99) AS share, 500 + random(0, 24999) AS subtotal, md5(id::text) AS token,
            now() - (%(orders)s::bigint - id) * interval '180 days' / %(orders)s AS created_at
        FROM generate_series(1, %(orders)s::bigint) AS id
    ) AS made
"""

_EVENTS: Final = """
    INSERT INTO order_payment_events (
        order_id, storefront_id, created_at, payment_provider_after, payment_session_id_after,
        payment_intent_id_after, payment_idempotency_key_after, payment_status_after,
        payment_transaction_id_after, idempotency_key
    )
    SELECT
        id, storefront_id, updated_at, payment_provider, payment_session_id, payment_intent_id,
        payment_idempotency_key, payment_status, payment_transaction_id, payment_idempotency_key
    FROM orders WHERE payment_provider IS NOT NULL ORDER BY id
"""

_TOUCHED: Final = ("orders", "orders_pkey", "order_payment_events_pkey")

_INDEXES: Final = """
    SELECT indexrelid::regclass::text, pg_get_indexdef(indexrelid)
    FROM pg_index
    WHERE indrelid = %s::regclass
        AND NOT EXISTS (SELECT FROM pg_constraint WHERE conindid = indexrelid)
"""


def fill(connection: psycopg.Connection, orders: int) -> None:
    """Fill the tables of a new database with orders numbered from 1, and their history."""
    # Of a table in use, each page has some room, as VACUUM leaves it. Of one that has just been
    # filled, none has, and the first update in each page is dearer than all that come after it.
    connection.execute("ALTER TABLE orders SET (fillfactor = 90)")
    # Between rounds, we do it; in the midst of one, it would be charged to whoever is measured.
    for table in _TABLES:
        _alter(connection, "ALTER TABLE {} SET (autovacuum_enabled = false)", table)
        _alter(connection, "ALTER TABLE {} DISABLE TRIGGER USER", table)
    definitions = [each for table in _TABLES for each in connection.execute(_INDEXES, (table,))]
    for name, _ in definitions:
        connection.execute(sql.SQL("DROP INDEX {}").format(sql.Identifier(name)))
    connection.execute("SET maintenance_work_mem = '512MB'")
    connection.execute("SELECT setseed(0.5)")
    connection.execute(_ORDERS, {"orders": orders})
    connection.execute(_EVENTS)
    for _, definition in definitions:
        connection.execute(definition)
    connection.execute("SELECT setval(pg_get_serial_sequence('orders', 'id'), max(id)) FROM orders")
    for table in _TABLES:
        _alter(connection, "ALTER TABLE {} ENABLE TRIGGER USER", table)
        _alter(connection, "VACUUM ANALYZE {}", table)
    connection.execute("ALTER TABLE orders RESET (fillfactor)")
    # A server that is not ours may not have it, or not for us.
    with suppress(psycopg.errors.FeatureNotSupported, psycopg.errors.InsufficientPrivilege):
        _warm(connection)
    connection.execute("CHECKPOINT")


def _warm(connection: psycopg.Connection) -> None:
    """Load what updates touch, as a server has it in memory that has run for a while."""
    connection.execute("CREATE EXTENSION pg_prewarm")
    for relation in _TOUCHED:
        connection.execute("SELECT pg_prewarm(%s)", (relation,))


def _alter(connection: psycopg.Connection, statement: LiteralString, table: str) -> None:
    connection.execute(sql.SQL(statement).format(sql.Identifier(table)))
