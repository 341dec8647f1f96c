"""What the trigger of ``orders`` makes of the settings of a session; and that it does not notify.

The service sets ``listings.payment_event`` for one transaction. Others may set anything, and for
longer.
"""

from typing import Any, Final

import psycopg
import pytest
from psycopg import errors

from persistence.models import Origin, PaymentUpdate
from persistence.orders import OrderRepository
from persistence.roles import APPLICATION
from tests.support import cluster, databases
from tests.support.history import events
from tests.support.orders import Orders

DIGEST: Final = "0190a1b2-c3d4-7e5f-8a9b-0c1d2e3f4a5b"
WITH_A_KEY: Final = f"r\x1fc\x1f24\x1f{DIGEST}\x1f"
SETTINGS: Final = [
    "no fields",
    "r\x1fc\x1fno number\x1f\x1f",
    "r\x1fc\x1f99999999999999999999\x1f\x1f",
    "r\x1fc\x1f24\x1fno uuid\x1f",
    "r\x1fc\x1f24\x1f\x1f{",
    'r\x1fc\x1f24\x1f\x1f{"captured_amount": "many"}',
    "r\x1fc\x1f24\x1f\x1f",
    "r\x1fc\x1f64\x1f\x1f",
    WITH_A_KEY,
]
BROKEN: Final = SETTINGS[1:6]


async def paid(url: str) -> int:
    """Add an order that is paid by the service, with a key, and return its id."""
    order_id = Orders(url).add()
    update = PaymentUpdate("stripe", payment_idempotency_key="evt", payment_status="paid")
    async with databases.pool(url) as database:
        await OrderRepository(database).update_payment_info(order_id, update, Origin("r"))
    return order_id


def set_for_session(connection: psycopg.Connection[Any], value: str) -> None:
    connection.execute("SELECT set_config('listings.payment_event', %s, false)", (value,))


@pytest.mark.anyio
@pytest.mark.parametrize("setting", SETTINGS)
async def test_a_change_by_hand_where_the_session_has_kept_a_setting(
    database_url: str, setting: str
) -> None:
    """It is made and recorded as any other one by hand."""
    order_id = await paid(database_url)
    service = databases.with_role(database_url, APPLICATION)
    with psycopg.connect(service, autocommit=True) as connection:
        set_for_session(connection, setting)
        for change in ("payment_status = 'refunded'", "captured_amount = 5"):
            connection.execute(f"UPDATE orders SET {change}".encode())
    _, refunded, captured = events(database_url, order_id)
    for event in (refunded, captured):
        assert (event["request_id"], event["caller"], event["named_fields"]) == (None, None, None)
        assert event["idempotency_key"] is event["further_idempotency_key"] is None
    assert refunded["payment_state_after"] is None
    assert captured["captured_amount"] == 5
    versions = Orders(database_url).value(
        "SELECT payment_version = (SELECT max(transaction_id) FROM order_payment_events)"
        " FROM orders"
    )
    assert versions is True


@pytest.mark.anyio
@pytest.mark.parametrize("setting", SETTINGS)
async def test_a_change_of_the_shop_where_the_session_has_kept_a_setting(
    database_url: str, setting: str
) -> None:
    order_id = await paid(database_url)
    with psycopg.connect(database_url, autocommit=True) as connection:
        set_for_session(connection, setting)
        connection.execute("UPDATE orders SET status = 'shipped'")
        connection.execute(
            "INSERT INTO orders (order_number, buyer_id, storefront_id, currency, subtotal_amount,"
            " total_amount, payment_status) VALUES ('1', 1, 1, 'EUR', 1, 1, 'paid')"
        )
    first, inserted = events(database_url)
    assert first["order_id"] == order_id
    assert (inserted["request_id"], inserted["named_fields"]) == (None, None)


@pytest.mark.anyio
@pytest.mark.parametrize("setting", BROKEN)
async def test_a_broken_setting_of_a_change_that_is_made_as_the_service_makes_it(
    database_url: str, setting: str
) -> None:
    order_id = await paid(database_url)
    before = Orders(database_url).row(order_id)
    with psycopg.connect(database_url, autocommit=True) as connection:
        set_for_session(connection, setting)
        with pytest.raises(errors.DataError, match=r"invalid input syntax|out of range"):
            connection.execute(
                "UPDATE orders SET payment_status = 'refunded',"
                " payment_version = pg_current_xact_id()"
            )
    assert Orders(database_url).row(order_id) == before


@pytest.mark.anyio
@pytest.mark.parametrize("is_of_service", [False, True])
async def test_what_the_history_is_told_is_cut(database_url: str, is_of_service: bool) -> None:
    """Characters, not bytes; and a payment is not refused for it."""
    order_id = await paid(database_url)
    long = "\u00e9" * 1_000
    with psycopg.connect(database_url) as connection:
        if is_of_service:
            version = ", payment_version = pg_current_xact_id()"
            set_for_session(connection, f"{long}\x1f{long}\x1f16\x1f\x1f")
        else:
            version = ""
            for name in ("request_id", "caller", "request_fields"):
                connection.execute("SELECT set_config(%s, %s, true)", (f"listings.{name}", long))
        connection.execute(f"UPDATE orders SET payment_status = 'refunded'{version}".encode())
    event = events(database_url, order_id)[-1]
    assert (event["request_id"], event["caller"]) == (long[:128], long[:255])
    assert event["request_fields"] == (None if is_of_service else [long[:255]])
    assert (event["named_fields"] is None) is not is_of_service


def test_a_prepared_transaction_and_a_full_queue_of_notifications() -> None:
    """PostgreSQL prepares no transaction that notifies, and has no room for its notifications."""
    with cluster.running() as server:
        server.execute("ALTER SYSTEM SET max_prepared_transactions = 1")
        server.execute("ALTER SYSTEM SET max_notify_queue_pages = 64")
        server.kill()
        server.start()
        order_id = Orders(server.url).add()
        with (
            psycopg.connect(server.url, autocommit=True) as listening,
            psycopg.connect(server.url, autocommit=True) as notifying,
        ):
            listening.execute("LISTEN elsewhere")
            listening.execute("BEGIN")
            listening.execute("SELECT pg_current_xact_id()")
            with pytest.raises(errors.ProgramLimitExceeded, match="NOTIFY queue"):
                while True:
                    notifying.execute(
                        "SELECT pg_notify('elsewhere', n || repeat('x', 7000))"
                        " FROM generate_series(1, 20) n"
                    )
            for word in ("processing", "paid"):
                notifying.execute("BEGIN")
                notifying.execute("UPDATE orders SET payment_status = %s", (word,))
                notifying.execute("PREPARE TRANSACTION 'by hand'")
                notifying.execute("COMMIT PREPARED 'by hand'")
        found = events(server.url, order_id)
    assert [event["payment_status_after"] for event in found] == ["processing", "paid"]
