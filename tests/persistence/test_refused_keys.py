"""Refused idempotency keys: whose a key is, and what is on record of those who reuse it."""

from typing import Final

import pytest

from persistence.models import Origin, PaymentUpdate
from persistence.orders import OrderRepository
from tests.support.history import connect, events
from tests.support.orders import Orders
from tests.support.refused_updates import LATE_FAILURE, PAID, SECOND, refuse, refused

pytestmark = pytest.mark.anyio


async def test_a_key_of_another_order_is_on_record(
    repository: OrderRepository, database_url: str
) -> None:
    order_id = Orders(database_url).add()
    keyed = PAID._replace(payment_idempotency_key="evt_1")
    await repository.update_payment_info(order_id, keyed, Origin("first"))
    other_id = Orders(database_url).add(storefront_id=5)

    for each in (other_id, 10**15):
        assert await refuse(repository, each, keyed) == "IDEMPOTENCY_KEY_REUSED"

    assert [(row["order_id"], row["storefront_id"]) for row in refused(database_url)] == [
        (other_id, 5),
        (10**15, None),
    ]


async def test_a_key_with_ids_that_no_order_has_is_two_rows_at_most(
    repository: OrderRepository, database_url: str
) -> None:
    """One of them for what tells of money, whichever comes first."""
    for key in ("evt_1", "evt_2"):
        await repository.update_payment_info(
            Orders(database_url).add(), PAID._replace(payment_idempotency_key=key), Origin("first")
        )
        for number in range(3):
            for update in (LATE_FAILURE, SECOND):
                keyed = update._replace(payment_idempotency_key=key)
                reason = await refuse(repository, 10**15 + number, keyed)
                assert reason == "IDEMPOTENCY_KEY_REUSED"

    found = [
        (row["order_id"], row["payment_idempotency_key"], row["payment_status"], row["times"])
        for row in refused(database_url)
    ]
    assert found == [
        (10**15, key, status, 3) for key in ("evt_1", "evt_2") for status in ("failed", "succeeded")
    ]


def delete_history(url: str) -> None:
    """Delete all events, as an owner can who disables the trigger that refuses it."""
    with connect(url) as connection:
        connection.execute("ALTER TABLE order_payment_events DISABLE TRIGGER USER")
        connection.execute("DELETE FROM order_payment_events")
        connection.execute("ALTER TABLE order_payment_events ENABLE TRIGGER USER")


KEYED: Final = PAID._replace(payment_idempotency_key="evt_1")


@pytest.mark.parametrize("status", ["pending", "paid"])
async def test_a_key_that_only_the_column_of_another_order_has(
    repository: OrderRepository, database_url: str, status: str
) -> None:
    """It belongs to that order, whatever the rules say of the event."""
    await repository.update_payment_info(Orders(database_url).add(), KEYED, Origin("first"))
    order_id = Orders(database_url).add(payment_status="paid", payment_state=9)
    delete_history(database_url)

    keyed = KEYED._replace(payment_status=status)
    for each in (order_id, 10**15):
        assert await refuse(repository, each, keyed) == "IDEMPOTENCY_KEY_REUSED"

    assert [row["order_id"] for row in refused(database_url)] == [order_id, 10**15]
    assert Orders(database_url).row(order_id)["payment_idempotency_key"] is None


async def test_a_key_of_the_order_that_is_in_the_column_of_another_one(
    repository: OrderRepository, database_url: str
) -> None:
    """As after a change by hand without the trigger of the history."""
    order_id, other_id = (Orders(database_url).add() for _ in range(2))
    await repository.update_payment_info(order_id, KEYED, Origin("first"))
    later = PaymentUpdate(payment_status="refunded", payment_idempotency_key="evt_2")
    await repository.update_payment_info(order_id, later, Origin("second"))
    with connect(database_url) as connection:
        connection.execute("ALTER TABLE orders DISABLE TRIGGER USER")
        connection.execute(
            "UPDATE orders SET payment_idempotency_key = 'evt_1' WHERE id = %s", [other_id]
        )
        connection.execute("ALTER TABLE orders ENABLE TRIGGER USER")

    further = PaymentUpdate(payment_status="disputed", payment_idempotency_key="evt_1")
    assert await refuse(repository, order_id, further) == "IDEMPOTENCY_KEY_REUSED"
    repeated = await repository.update_payment_info(order_id, KEYED, Origin("again"))
    assert repeated.replayed


@pytest.mark.parametrize("status", ["paid", "refunded"])
async def test_a_key_that_only_the_column_of_the_order_has_is_used_for_the_first_time(
    repository: OrderRepository, database_url: str, status: str
) -> None:
    order_id = Orders(database_url).add()
    await repository.update_payment_info(order_id, KEYED, Origin("first"))
    delete_history(database_url)

    keyed = KEYED._replace(payment_status=status)
    for replayed in (False, True):
        update = await repository.update_payment_info(order_id, keyed, Origin(f"{replayed}"))
        assert (update.replayed, update.order.payment_status) == (replayed, status)
    other = KEYED._replace(payment_status="charged_back")
    assert not (await repository.update_payment_info(order_id, other, Origin("other"))).replayed

    found = [(each["request_id"], each["payment_status_after"]) for each in events(database_url)]
    assert found == [("False", status), ("other", "charged_back")]
    # Another order does not get it.
    assert await refuse(repository, Orders(database_url).add(), keyed) == "IDEMPOTENCY_KEY_REUSED"
