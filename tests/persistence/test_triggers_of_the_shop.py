"""Triggers of the shop that change payments while the trigger of the history is at work.

What they change is recorded as a change by hand: it is no request of the service.
"""

from typing import Any, Final

import pytest

from persistence.errors import PaymentEventRefused
from persistence.models import Origin, PaymentUpdate
from persistence.orders import OrderRepository
from persistence.verification import verify
from tests.support import databases
from tests.support.history import connect, events
from tests.support.orders import Orders

pytestmark = pytest.mark.anyio

PAID: Final = PaymentUpdate("stripe", payment_idempotency_key="evt_1", payment_status="paid")
REFUNDED: Final = PAID._replace(payment_status="refunded")  # a further use of the key
FAILED: Final = PAID._replace(payment_status="failed")
OF_REQUEST: Final = (
    *("request_id", "caller", "named_fields", "request_digest", "override_reason"),
    *("idempotency_key", "further_idempotency_key"),
)

# Triggers run in the order of their names.
FIRST, LAST = "a_first", "z_last"


def trigger(url: str, name: str, when: str, condition: str, update: str) -> None:
    """Have a trigger of each UPDATE of orders run another one.

    It names the schema: the trigger of the history runs it with a search_path of its own.
    """
    with connect(url) as owner:
        owner.execute(
            f"""
            CREATE FUNCTION {name}() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$
            BEGIN
                IF {condition} THEN
                    UPDATE public.orders SET {update};
                END IF;
                RETURN NEW;
            END $$;
            CREATE TRIGGER {name} {when} UPDATE ON orders
            FOR EACH ROW EXECUTE FUNCTION {name}()
            """.encode()
        )


async def write(url: str, order_id: int, *updates: PaymentUpdate) -> list[bool]:
    """Make the updates, and return which of them were replays."""
    async with databases.pool(url) as database:
        repository = OrderRepository(database)
        origin = Origin("request", caller="provider")
        return [
            (await repository.update_payment_info(order_id, update, origin)).replayed
            for update in updates
        ]


def request_of(event: dict[str, Any]) -> list[object]:
    return [event[name] for name in OF_REQUEST if event[name] is not None]


@pytest.mark.parametrize(
    "changed",
    ["payment_transaction_id = 'txn_' || random()", "payment_status = 'word ' || random()"],
)
@pytest.mark.parametrize(("name", "when"), [(FIRST, "BEFORE"), (FIRST, "AFTER"), (LAST, "AFTER")])
async def test_another_order_is_changed(
    database_url: str, name: str, when: str, changed: str
) -> None:
    orders = Orders(database_url)
    order_id, other = orders.add(), orders.add()
    condition = f"NEW.id <> {other}"
    trigger(
        database_url, name, when, condition, f"{changed}, updated_at = now() WHERE id = {other}"
    )

    assert await write(database_url, order_id, PAID, PAID) == [False, True]
    assert await write(database_url, order_id, REFUNDED, REFUNDED) == [False, True]
    assert await write(database_url, order_id, PAID) == [True]
    with pytest.raises(PaymentEventRefused):
        await write(database_url, order_id, FAILED)

    first, further = events(database_url, order_id)
    for event, column in ((first, "idempotency_key"), (further, "further_idempotency_key")):
        assert (event["request_id"], event["caller"]) == ("request", "provider")
        assert event["named_fields"] is not None
        assert event["request_digest"] is not None
        assert event[column] == PAID.payment_idempotency_key
    by_trigger = events(database_url, other)
    assert len(by_trigger) == 2
    assert [request_of(event) for event in by_trigger] == [[], []]
    assert (await verify(database_url)).faults == []


@pytest.mark.parametrize(("name", "when"), [(FIRST, "BEFORE"), (FIRST, "AFTER"), (LAST, "AFTER")])
async def test_another_order_is_touched(database_url: str, name: str, when: str) -> None:
    """Its payment stays as it is: there is no event."""
    orders = Orders(database_url)
    order_id, other = orders.add(), orders.add(payment_status="paid", payment_idempotency_key="key")
    update = f"updated_at = clock_timestamp() WHERE id = {other}"
    trigger(database_url, name, when, f"NEW.id <> {other}", update)

    await write(database_url, order_id, PAID)

    assert len(events(database_url, order_id)) == len(events(database_url, other)) == 1


@pytest.mark.parametrize("by_hand", [False, True])
async def test_the_same_order_is_changed_afterwards(database_url: str, by_hand: bool) -> None:
    orders = Orders(database_url)
    order_id = orders.add()
    condition = "NEW.payment_status = 'paid' AND NEW.payment_transaction_id IS NULL"
    update = "payment_transaction_id = 'txn', updated_at = now() WHERE id = NEW.id"
    trigger(database_url, LAST, "AFTER", condition, update)

    if by_hand:
        orders.change(order_id, payment_status="paid")
    else:
        await write(database_url, order_id, PAID)

    first, second = events(database_url, order_id)
    assert bool(request_of(first)) is not by_hand
    assert request_of(second) == []
    assert [each["payment_transaction_id_after"] for each in (first, second)] == [None, "txn"]
    assert (await verify(database_url)).faults == []


async def test_the_row_is_changed_before_each_update(database_url: str) -> None:
    """By a change by hand too, whose version the trigger of the history adds by an UPDATE."""
    orders = Orders(database_url)
    order_id = orders.add()
    with connect(database_url) as owner:
        owner.execute("""
            CREATE FUNCTION number() RETURNS trigger LANGUAGE plpgsql AS $$
            BEGIN
                IF NEW.payment_version IS DISTINCT FROM OLD.payment_version THEN
                    NEW.payment_transaction_id := 'txn';
                END IF;
                RETURN NEW;
            END $$;
            CREATE TRIGGER number BEFORE UPDATE ON orders
            FOR EACH ROW EXECUTE FUNCTION number()
        """)

    orders.change(order_id, payment_status="paid")

    assert orders.row(order_id)["payment_transaction_id"] == "txn"
    assert [each["payment_transaction_id_after"] for each in events(database_url)] == [None, "txn"]
    assert (await verify(database_url)).faults == []
