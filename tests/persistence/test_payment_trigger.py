"""What the trigger of ``orders`` does that the random lives of orders seldom meet."""

import pytest

from persistence.models import Origin, PaymentUpdate
from persistence.orders import OrderRepository
from persistence.payment_states import PaymentState
from tests.support import databases
from tests.support.history import events
from tests.support.orders import Orders

pytestmark = pytest.mark.anyio

ORIGIN = Origin("r")
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
