"""The payment history: which events its trigger records, and that rows cannot be changed."""

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Final

import psycopg
import pytest
from psycopg import sql

from persistence.models import PAYMENT_COLUMNS, Origin, PaymentUpdate
from persistence.orders import OrderRepository
from tests.support.history import (
    NOTHING,
    PAYMENT,
    UNPAID,
    after,
    before,
    connect,
    events,
    log_in,
    only_event,
    opened,
    update,
)
from tests.support.orders import Orders

CHANGES: Final = {
    "update": "UPDATE order_payment_events SET caller = 'somebody'",
    "update-of-nothing": "UPDATE order_payment_events SET caller = 'somebody' WHERE false",
    "delete": "DELETE FROM order_payment_events",
    "truncate": "TRUNCATE order_payment_events",
    "upsert": (
        "INSERT INTO order_payment_events OVERRIDING SYSTEM VALUE"
        " SELECT * FROM order_payment_events"
        " ON CONFLICT (order_id, id) DO UPDATE SET caller = 'somebody'"
    ),
    "merge": (
        "MERGE INTO order_payment_events USING orders ON order_id = orders.id"
        " WHEN MATCHED THEN DELETE"
    ),
}


@contextmanager
def plain_role(url: str) -> Iterator[str]:
    """A role with all privileges that can be granted, which owns nothing."""
    name = sql.Identifier(f"clerk_{uuid.uuid4().hex[:12]}")
    with connect(url) as connection:
        if connection.info.parameter_status("is_superuser") != "on":
            pytest.skip("only a superuser may take the place of others")
        connection.execute(sql.SQL("CREATE ROLE {}").format(name))
        connection.execute(sql.SQL("GRANT ALL ON orders, order_payment_events TO {}").format(name))
        try:
            yield name.as_string().strip('"')
        finally:
            connection.execute(sql.SQL("DROP OWNED BY {}").format(name))
            connection.execute(sql.SQL("DROP ROLE {}").format(name))


@pytest.mark.parametrize("field", PAYMENT_COLUMNS)
def test_inserting_an_order_with_a_payment_records_an_event(database_url: str, field: str) -> None:
    order_id = Orders(database_url).add(storefront_id=42, **{field: PAYMENT[field]})

    event = only_event(database_url, order_id)

    assert before(event) == NOTHING
    assert after(event) == UNPAID | {field: PAYMENT[field]}
    assert event["storefront_id"] == 42
    key = PAYMENT[field] if field == "payment_idempotency_key" else None
    assert event["idempotency_key"] == key


def test_inserting_an_order_without_a_payment_records_no_event(database_url: str) -> None:
    Orders(database_url).add(status="confirmed", payment_status="pending")

    assert events(database_url) == []


def test_a_change_of_other_columns_records_no_event(database_url: str) -> None:
    orders = Orders(database_url)
    order_id = orders.add(**PAYMENT)

    orders.change(order_id, status="shipped", updated_at=datetime(2030, 1, 1, tzinfo=UTC))
    orders.change(order_id, **PAYMENT)

    assert len(events(database_url)) == 1


def test_a_change_of_several_fields_records_one_event(database_url: str) -> None:
    orders = Orders(database_url)
    order_id = orders.add(payment_provider="cash")

    orders.change(order_id, **PAYMENT)

    _, event = events(database_url, order_id)
    assert before(event) == UNPAID | {"payment_provider": "cash"}
    assert after(event) == PAYMENT
    assert event["idempotency_key"] == "evt_1"


@pytest.mark.parametrize("field", sorted(set(PAYMENT_COLUMNS) - {"payment_status"}))
def test_setting_a_field_to_null_records_an_event(database_url: str, field: str) -> None:
    orders = Orders(database_url)
    order_id = orders.add(**PAYMENT)

    orders.change(order_id, **{field: None})

    _, event = events(database_url, order_id)
    assert before(event) == PAYMENT
    assert after(event) == PAYMENT | {field: None}
    assert event["idempotency_key"] is None


def test_a_statement_records_an_event_for_each_row(database_url: str) -> None:
    orders = Orders(database_url)
    order_ids = [orders.add() for _ in range(3)]
    with connect(database_url) as connection:
        connection.execute("UPDATE orders SET payment_status = 'paid'")

    assert sorted(each["order_id"] for each in events(database_url)) == order_ids


@pytest.mark.anyio
async def test_an_update_is_recorded_with_its_request(database_url: str) -> None:
    order_id = Orders(database_url).add()
    async with opened(database_url) as database:
        repo = OrderRepository(database)
        for params, origin in (
            (update(PAYMENT), Origin("request-1", "webhooks")),
            (PaymentUpdate(payment_status="refunded"), Origin("request-2")),
        ):
            await repo.update_payment_info(order_id, params, origin)
        # The settings with the request's origin end with the transaction.
        await database.fetchrow("UPDATE orders SET payment_provider = 'cash'")

    recorded = [
        (each["request_id"], each["caller"], each["idempotency_key"], bool(each["request_digest"]))
        for each in events(database_url, order_id)
    ]

    assert recorded == [
        ("request-1", "webhooks", "evt_1", True),
        ("request-2", None, None, False),
        (None, None, None, False),
    ]


def test_a_change_by_plain_sql_is_recorded_with_the_session_user(database_url: str) -> None:
    order_id = Orders(database_url).add()
    with connect(database_url) as connection, plain_role(database_url) as role:
        owner = connection.info.user
        log_in(connection, role)
        connection.execute("UPDATE orders SET payment_status = 'paid'")
        log_in(connection, owner)
        connection.execute(sql.SQL("SET ROLE {}").format(sql.Identifier(role)))
        connection.execute("UPDATE orders SET payment_status = 'refunded'")

    recorded = [
        (each["database_role"], each["request_id"], each["caller"], each["request_fields"])
        for each in events(database_url, order_id)
    ]

    assert recorded == [(role, None, None, None), (owner, None, None, None)]


def test_an_event_is_rolled_back_with_its_change(database_url: str) -> None:
    orders = Orders(database_url)
    order_id = orders.add()
    with psycopg.connect(database_url) as connection:
        connection.execute("UPDATE orders SET payment_status = 'paid'")
        connection.rollback()
        connection.execute("UPDATE orders SET payment_status = 'failed'")
        with connection.transaction(force_rollback=True):
            connection.execute("UPDATE orders SET payment_status = 'expired'")

    assert after(only_event(database_url, order_id))["payment_status"] == "failed"


@pytest.mark.parametrize("statement", CHANGES.values(), ids=CHANGES)
def test_rows_of_the_history_cannot_be_changed(database_url: str, statement: str) -> None:
    """Neither by the owner, a superuser here, nor by a role with all privileges."""
    Orders(database_url).add(**PAYMENT)
    kept = events(database_url)
    with connect(database_url) as connection, plain_role(database_url) as role:
        for _ in range(2):
            with pytest.raises(psycopg.errors.InsufficientPrivilege, match="can be added to"):
                connection.execute(statement.encode())
            log_in(connection, role)

    assert events(database_url) == kept


def test_an_idempotency_key_in_the_history_cannot_be_reused(database_url: str) -> None:
    """Not by plain SQL either, and not by the order that had the key before another one."""
    orders = Orders(database_url)
    order_id, other_id = orders.add(**PAYMENT), orders.add()
    orders.change(order_id, payment_idempotency_key="evt_2")
    kept = events(database_url)

    for each in (order_id, other_id):
        with pytest.raises(psycopg.errors.UniqueViolation) as caught:
            orders.change(each, payment_idempotency_key="evt_1")
        assert caught.value.diag.constraint_name == "idx_order_payment_events_idempotency_key"

    assert events(database_url) == kept
    assert orders.row(order_id)["payment_idempotency_key"] == "evt_2"
    assert orders.row(other_id)["payment_idempotency_key"] is None


def test_the_trigger_does_not_depend_on_search_path_or_temporary_tables(database_url: str) -> None:
    order_id = Orders(database_url).add()
    with connect(database_url) as connection:
        connection.execute(
            "CREATE TEMPORARY TABLE order_payment_events (LIKE public.order_payment_events)"
        )
        connection.execute("UPDATE orders SET payment_status = 'paid'")
        connection.execute("DROP TABLE pg_temp.order_payment_events")
        connection.execute("SET search_path = ''")
        connection.execute("UPDATE public.orders SET payment_status = 'refunded'")
    found = [each["payment_status_after"] for each in events(database_url, order_id)]
    assert found == ["paid", "refunded"]
