"""The history of payments, read by plain SQL."""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any, Final

import psycopg
from psycopg import sql
from psycopg.rows import dict_row

from persistence.database import Database
from persistence.models import PAYMENT_COLUMNS, PaymentUpdate
from tests.support import databases

PAYMENT: Final = {
    "payment_provider": "stripe",
    "payment_session_id": "cs_1",
    "payment_intent_id": "pi_1",
    "payment_idempotency_key": "evt_1",
    "payment_status": "paid",
    "payment_transaction_id": "txn_1",
}
NOTHING: Final = dict.fromkeys(PAYMENT_COLUMNS)
UNPAID: Final = NOTHING | {"payment_status": "pending"}


def update(params: Mapping[str, Any]) -> PaymentUpdate:
    """Return the update that sets ``params``, by column."""
    return PaymentUpdate(**params)


def connect(url: str) -> psycopg.Connection[Any]:
    return psycopg.connect(url, autocommit=True, row_factory=dict_row)


def events(url: str, order_id: int | None = None) -> list[dict[str, Any]]:
    with connect(url) as connection:
        return connection.execute(
            "SELECT * FROM order_payment_events WHERE order_id = %(id)s OR %(id)s IS NULL"
            " ORDER BY id",
            {"id": order_id},
        ).fetchall()


def only_event(url: str, order_id: int) -> dict[str, Any]:
    (event,) = events(url, order_id)
    return event


def before(event: dict[str, Any]) -> dict[str, str | None]:
    return {name: event[f"{name}_before"] for name in PAYMENT_COLUMNS}


def after(event: dict[str, Any]) -> dict[str, str | None]:
    return {name: event[f"{name}_after"] for name in PAYMENT_COLUMNS}


def payment_of(row: dict[str, Any]) -> dict[str, str | None]:
    return {name: row[name] for name in PAYMENT_COLUMNS}


def check_first_event(event: dict[str, Any], row: dict[str, Any]) -> None:
    """Check that the event enters the payment that ``row`` had before the history existed."""
    assert before(event) == NOTHING
    assert after(event) == payment_of(row)
    assert event["created_at"] == row["updated_at"]
    assert event["idempotency_key"] == row["payment_idempotency_key"]
    assert event["storefront_id"] == row["storefront_id"]
    assert (event["request_fields"], event["request_id"], event["caller"]) == (None, None, None)


def log_in(connection: psycopg.Connection[Any], role: str) -> None:
    """Set the session user to ``role``, as if it had opened the connection."""
    connection.execute(sql.SQL("SET SESSION AUTHORIZATION {}").format(sql.Identifier(role)))


@asynccontextmanager
async def opened(url: str) -> AsyncIterator[Database]:
    async with databases.pool(url, max_connections=1) as database:
        yield database
