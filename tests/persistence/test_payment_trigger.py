"""What the trigger of ``orders`` does that the random lives of orders seldom meet."""

from datetime import UTC, datetime
from typing import Any, Final

import pytest

from persistence.models import RECORDED_FIELDS, Origin, PaymentUpdate
from persistence.orders import OrderRepository
from persistence.payment_states import PaymentState
from tests.support import databases
from tests.support.history import events
from tests.support.orders import Orders

pytestmark = pytest.mark.anyio

ORIGIN = Origin("r")
NOON: Final = datetime(2026, 11, 30, 12, tzinfo=UTC)
PAID = PaymentUpdate("stripe", "cs_1", "pi_1", payment_status="paid")
FAILED_IN_PART = PaymentUpdate(payment_status="refund_failed", refunded_amount=3_000)
FAILED = PaymentUpdate(payment_status="refund_failed")
BY_ANOTHER = PaymentUpdate("paypal", payment_status="processing")


async def made(url: str, order_id: int, *updates: PaymentUpdate) -> None:
    async with databases.pool(url) as database:
        repository = OrderRepository(database)
        for update in updates:
            await repository.update_payment_info(order_id, update, ORIGIN)


async def test_a_change_of_the_state_alone_is_in_the_history(database_url: str) -> None:
    order_id = Orders(database_url).add()
    await made(database_url, order_id, PAID, FAILED_IN_PART, FAILED, FAILED)
    states = [event["payment_state_after"] for event in events(database_url, order_id)]
    assert states == [PaymentState.PAID, PaymentState.PARTIALLY_REFUNDED, PaymentState.PAID]


@pytest.mark.parametrize(
    "again",
    [
        PAID,
        PAID._replace(payment_provider="STRIPE "),
        PaymentUpdate(payment_status="paid"),
        PaymentUpdate(payment_intent_id="pi_1"),
        PaymentUpdate(payment_status="paid", payment_event_time=NOON, currency="EUR"),
        PaymentUpdate(payment_status="paid", captured_amount=4),
        PaymentUpdate(captured_amount=5, refunded_amount=0),
        PaymentUpdate(payment_status="paid", override_reason="it is so"),
    ],
    ids=repr,
)
async def test_an_update_that_changes_nothing(database_url: str, again: PaymentUpdate) -> None:
    """The etag stays. What the history keeps of a request in any case has an event."""
    order_id = Orders(database_url).add()
    first = PAID._replace(captured_amount=5, refunded_amount=0)
    await made(database_url, order_id, first)
    before = Orders(database_url).row(order_id)

    await made(database_url, order_id, again)

    after = Orders(database_url).row(order_id)
    assert after == before | {"updated_at": after["updated_at"]}
    _, *more = events(database_url, order_id)
    kept = ("captured_amount", "refunded_amount", "override_reason")
    expected = {name: getattr(again, name) for name in kept}
    assert [{name: event[name] for name in kept} for event in more] == (
        [expected] if any(value is not None for value in expected.values()) else []
    )


@pytest.mark.parametrize(
    "changing",
    [
        PaymentUpdate(payment_status="Paid"),
        PaymentUpdate("paypal", payment_status="refunded", override_reason="it is so"),
        PaymentUpdate(payment_transaction_id="txn_2"),
        PaymentUpdate(captured_amount=6),
        PaymentUpdate(captured_amount=4, override_reason="it is so"),
        PaymentUpdate(payment_status="chargeback_reversed", payment_event_time=NOON),
    ],
    ids=repr,
)
async def test_an_update_that_changes_something(database_url: str, changing: PaymentUpdate) -> None:
    """Each of these changes the etag, and has an event."""
    order_id = Orders(database_url).add()
    await made(database_url, order_id, PAID._replace(captured_amount=5))
    before = Orders(database_url).row(order_id)

    await made(database_url, order_id, changing)

    assert Orders(database_url).row(order_id)["payment_version"] > before["payment_version"]
    assert len(events(database_url, order_id)) == 2


@pytest.mark.parametrize("name", RECORDED_FIELDS)
async def test_each_field_of_a_request_has_its_bit(database_url: str, name: str) -> None:
    order_id = Orders(database_url).add()
    values: dict[str, Any] = {"payment_event_time": NOON, "currency": "EUR"}
    value = values.get(name, 1 if name.endswith("_amount") else name)
    update = PaymentUpdate(payment_status="paid")._replace(**{name: value})
    await made(database_url, order_id, update)

    (event,) = events(database_url, order_id)

    numbers = {"payment_status": 16}
    bits = sum({**numbers, name: 1 << RECORDED_FIELDS.index(name)}.values())
    assert event["named_fields"] == bits


@pytest.mark.parametrize("name", ["session", "intent"])
async def test_an_id_that_is_set_by_hand_is_not_stale(database_url: str, name: str) -> None:
    orders = Orders(database_url)
    order_id = orders.add(payment_status="pending")
    started = PAID._replace(payment_status="pending")
    await made(database_url, order_id, started, BY_ANOTHER)
    before = orders.row(order_id)
    assert before["payment_session_stale"] and before["payment_intent_stale"]

    orders.change(order_id, **{f"payment_{name}_id": "new"})

    after = orders.row(order_id)
    stale = {each: after[f"payment_{each}_stale"] for each in ("session", "intent")}
    assert stale == {"session": name != "session", "intent": name != "intent"}
    assert after["payment_state"] == before["payment_state"]
    assert after["payment_status_since"] == before["payment_status_since"]
    assert after["payment_version"] != before["payment_version"]


async def test_a_word_that_is_set_by_hand_begins_a_state_that_is_to_be_derived(
    database_url: str,
) -> None:
    orders = Orders(database_url)
    order_id = orders.add()
    await made(database_url, order_id, PAID)
    before = orders.row(order_id)

    orders.change(order_id, payment_status="failed")

    after = orders.row(order_id)
    assert after["payment_state"] is None
    assert after["payment_status_since"] > before["payment_status_since"]
    assert after["payment_version"] != before["payment_version"]
    assert events(database_url, order_id)[-1]["payment_state_after"] is None
