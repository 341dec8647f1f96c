"""The rows of the ledger: events that a server loses, and epochs that begin."""

import uuid
from typing import Any, NamedTuple

import psycopg
from psycopg import sql

TAKEN, REFUSED = "order_payment_events", "refused_payment_events"


class Entry(NamedTuple):
    """A row of one of the tables of events."""

    table: str
    id: int
    transaction: int


def take(connection: psycopg.Connection[Any], order_id: int, status: str) -> Entry:
    """Change an order in the connection's transaction, and return the event."""
    connection.execute("UPDATE orders SET payment_status = %s WHERE id = %s", (status, order_id))
    return _entry(
        connection,
        TAKEN,
        "SELECT id, transaction_id::text::bigint FROM order_payment_events"
        " WHERE order_id = %s ORDER BY id DESC LIMIT 1",
        order_id,
    )


def refuse(connection: psycopg.Connection[Any], order_id: int = 1) -> Entry:
    """Record a refused event in the connection's transaction."""
    return _entry(
        connection,
        REFUSED,
        "INSERT INTO refused_payment_events"
        " (order_id, digest, written, tells_of_money, reason, request_id)"
        " VALUES (%s, %s, false, false, 'PAYMENT_EVENT_LATE', 'r')"
        " RETURNING id, transaction_id::text::bigint",
        order_id,
        uuid.uuid4(),
    )


def _entry(
    connection: psycopg.Connection[Any], table: str, statement: str, *values: object
) -> Entry:
    row = connection.execute(statement.encode(), values).fetchone()
    assert row is not None
    return Entry(table, *row)


def lose(url: str, *entries: Entry) -> None:
    """Delete events, as a server has lost them that was promoted without the last commits."""
    with _without_triggers(url) as connection:
        for each in entries:
            delete = sql.SQL("DELETE FROM {} WHERE id = %s").format(sql.Identifier(each.table))
            assert connection.execute(delete, (each.id,)).rowcount == 1


def replace(url: str, entry: Entry) -> None:
    """Let another event of an order have the id and the transaction of a taken one."""
    with _without_triggers(url) as connection:
        changed = connection.execute(
            "UPDATE order_payment_events SET created_at = created_at + interval '1 us'"
            " WHERE id = %s",
            (entry.id,),
        )
        assert changed.rowcount == 1


def bring(url: str, order_id: int, status: str, transaction: int) -> None:
    """Insert an event with the transaction of another cluster, as a restore does."""
    with _without_triggers(url) as connection:
        connection.execute(
            "INSERT INTO order_payment_events"
            " (order_id, storefront_id, transaction_id, payment_status_after)"
            " SELECT id, storefront_id, %s::text::xid8, %s FROM orders WHERE id = %s",
            (transaction, status, order_id),
        )


def begin_epoch(url: str) -> None:
    """Open an epoch: the rows that there are belong to the ones before."""
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(
            "INSERT INTO payment_history_epochs (last_event_id, last_refused_event_id) SELECT"
            " coalesce((SELECT max(id) FROM order_payment_events), 0),"
            " coalesce((SELECT max(id) FROM refused_payment_events), 0)"
        )


def _without_triggers(url: str) -> psycopg.Connection[Any]:
    connection = psycopg.connect(url)
    connection.execute("SET session_replication_role = replica")
    return connection
