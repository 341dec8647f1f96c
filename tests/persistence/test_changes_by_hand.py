"""Changes of a payment by plain SQL: what the trigger makes of the state and of the version."""

from datetime import UTC, datetime
from typing import Any, Final

import psycopg
import pytest

from persistence.history import PaymentHistory
from persistence.models import Order, Origin, PaymentUpdate, etag_of
from persistence.orders import OrderRepository
from persistence.payment_states import PaymentState
from persistence.verification import verify
from tests.support.history import events, opened
from tests.support.orders import Orders

pytestmark = pytest.mark.anyio

NOON: Final = datetime(2026, 11, 30, 12, tzinfo=UTC)
DISPUTED: Final = PaymentUpdate(
    payment_provider="stripe",
    payment_session_id="cs_1",
    payment_intent_id="pi_1",
    payment_status="disputed",
    payment_event_time=NOON,
)
DERIVED: Final = {
    *("payment_state", "payment_event_time", "payment_status_since", "payment_version"),
    *("contested_from", "payment_session_stale", "payment_intent_stale"),
}


async def disputed(url: str) -> dict[str, Any]:
    """Add an order, dispute its payment by the service, and return its row."""
    order_id = Orders(url).add()
    async with opened(url) as database:
        await OrderRepository(database).update_payment_info(order_id, DISPUTED, Origin("request"))
    return Orders(url).row(order_id)


async def read(url: str, order_id: int) -> Order:
    async with opened(url) as database:
        return await OrderRepository(database).get(order_id)


@pytest.mark.parametrize(
    ("word", "state"),
    [
        ("failed", PaymentState.FAILED),
        ("Partially-Refunded", PaymentState.PARTIALLY_REFUNDED),
        ("dispute_won", PaymentState.PAID),
        ("piad", PaymentState.UNKNOWN),
    ],
)
async def test_a_change_of_the_word(database_url: str, word: str, state: PaymentState) -> None:
    """The state is null until the service writes: it is derived from the word on reading."""
    orders, before = Orders(database_url), await disputed(database_url)
    read_before = await read(database_url, before["id"])

    orders.change(before["id"], payment_status=word)

    after = orders.row(before["id"])
    assert (after["payment_state"], after["payment_event_time"]) == (None, None)
    assert after["payment_status_since"] > before["payment_status_since"]
    order = await read(database_url, before["id"])
    assert order.payment_state == state
    assert etag_of(order) != etag_of(read_before)
    _, event = events(database_url, before["id"])
    assert event["request_id"] is None
    assert (event["payment_state_before"], event["payment_state_after"]) == (12, None)
    async with opened(database_url) as database:
        _, recorded = await PaymentHistory(database).list_events(before["id"], 10)
    assert recorded.payment_state_before == PaymentState.DISPUTED
    assert recorded.payment_state_after == state


async def test_a_change_of_the_word_and_of_the_state(database_url: str) -> None:
    orders, before = Orders(database_url), await disputed(database_url)

    orders.change(before["id"], payment_status="our own word", payment_state=PaymentState.PAID)

    after = orders.row(before["id"])
    assert after["payment_state"] == PaymentState.PAID
    assert after["payment_version"] != before["payment_version"]
    _, event = events(database_url, before["id"])
    assert (event["payment_state_before"], event["payment_state_after"]) == (12, 9)


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("payment_provider", "allsecure"),
        ("payment_session_id", None),
        ("payment_intent_id", "pi_2"),
        ("payment_transaction_id", "txn_2"),
        ("payment_idempotency_key", "key"),
        ("captured_amount", 11_983),
        ("refunded_amount", 0),
        ("payment_event_time", datetime(2026, 11, 29, tzinfo=UTC)),
    ],
)
async def test_a_change_of_another_column_of_the_payment(
    database_url: str, column: str, value: object
) -> None:
    """The state stays, and the version moves."""
    orders, before = Orders(database_url), await disputed(database_url)

    orders.change(before["id"], **{column: value})

    after = orders.row(before["id"])
    assert after == before | {column: value, "payment_version": after["payment_version"]}
    assert after["payment_version"] > before["payment_version"]
    _, event = events(database_url, before["id"])
    assert (event["payment_state_before"], event["payment_state_after"]) == (12, 12)


async def test_a_state_that_is_to_be_derived_anew(database_url: str) -> None:
    """It is visible that it may have changed, as by a word."""
    orders, before = Orders(database_url), await disputed(database_url)

    orders.change(before["id"], payment_state=None)

    after = orders.row(before["id"])
    assert (after["payment_state"], after["payment_status"]) == (None, "disputed")
    assert after["payment_version"] > before["payment_version"]
    _, event = events(database_url, before["id"])
    assert (event["payment_state_before"], event["payment_state_after"]) == (12, None)


async def test_a_word_has_no_state_to_lead_back_to(database_url: str) -> None:
    orders, before = Orders(database_url), await disputed(database_url)
    assert before["contested_from"] == PaymentState.PAID

    orders.change(before["id"], payment_status="paid")

    assert orders.row(before["id"])["contested_from"] is None


async def test_what_is_set_is_what_the_event_asks_for(database_url: str) -> None:
    orders, before = Orders(database_url), await disputed(database_url)
    values = {"captured_amount": 700, "payment_event_time": NOON.replace(hour=13)}

    orders.change(before["id"], **values)
    orders.change(before["id"], refunded_amount=0)

    names = ("captured_amount", "refunded_amount", "payment_event_time")
    _, *by_hand = events(database_url, before["id"])
    assert [[event[name] for name in names] for event in by_hand] == [
        [700, None, values["payment_event_time"]],
        [None, 0, None],
    ]
    assert [event["named_fields"] for event in by_hand] == [None, None]


async def test_a_change_of_the_columns_of_the_shop(database_url: str) -> None:
    orders, before = Orders(database_url), await disputed(database_url)
    changed = {
        "status": "shipped",
        "discount_amount": 0,
        "total_amount": 12_483,
        "updated_at": NOON,
    }

    orders.change(before["id"], **changed)

    assert orders.row(before["id"]) == before | changed
    assert len(events(database_url, before["id"])) == 1


async def test_the_same_values_again(database_url: str) -> None:
    orders, before = Orders(database_url), await disputed(database_url)

    orders.change(before["id"], payment_status="disputed", payment_intent_id="pi_1")

    assert orders.row(before["id"]) == before
    assert len(events(database_url, before["id"])) == 1


async def test_an_order_that_is_inserted_with_a_payment(database_url: str) -> None:
    orders = Orders(database_url)
    row = orders.row(orders.add(payment_status="paid", payment_provider="cash"))

    assert row["payment_state"] is None
    assert row["payment_status_since"] is not None
    assert row["payment_version"] is not None
    assert (await read(database_url, row["id"])).payment_state == PaymentState.PAID


async def test_an_order_that_is_inserted_without_a_payment(database_url: str) -> None:
    orders = Orders(database_url)
    row = orders.row(orders.add())

    assert {name: row[name] for name in DERIVED} == dict.fromkeys(DERIVED) | {
        "payment_session_stale": False,
        "payment_intent_stale": False,
    }


async def test_several_changes_in_one_transaction(database_url: str) -> None:
    before = await disputed(database_url)
    with psycopg.connect(database_url) as connection:
        for word in ("paid", "refunded", "failed"):
            connection.execute("UPDATE orders SET payment_status = %s", (word,))
    after = Orders(database_url).row(before["id"])
    assert (after["payment_status"], after["payment_state"]) == ("failed", None)
    assert [each["payment_status_after"] for each in events(database_url)] == [
        *("disputed", "paid", "refunded", "failed")
    ]


async def test_an_amount_then_a_word_in_one_transaction(database_url: str) -> None:
    """Each has one event: the state that the word leaves to be derived has none of its own."""
    before = await disputed(database_url)
    with psycopg.connect(database_url) as connection:
        connection.execute("UPDATE orders SET captured_amount = 1")
        connection.execute("UPDATE orders SET payment_status = 'failed'")
    _, *by_hand = events(database_url, before["id"])
    assert [(each["payment_status_before"], each["payment_status_after"]) for each in by_hand] == [
        ("disputed", "disputed"),
        ("disputed", "failed"),
    ]


async def test_a_word_with_its_state_then_a_state_to_be_derived_in_one_transaction(
    database_url: str,
) -> None:
    await disputed(database_url)
    with psycopg.connect(database_url) as connection:
        connection.execute("UPDATE orders SET payment_status = 'our own', payment_state = 9")
        connection.execute("UPDATE orders SET payment_state = NULL")
    _, *by_hand = events(database_url)
    assert [each["payment_state_after"] for each in by_hand] == [9, None]
    assert (await verify(database_url)).faults == []


async def test_a_time_while_the_state_is_to_be_derived(database_url: str) -> None:
    orders, before = Orders(database_url), await disputed(database_url)
    orders.change(before["id"], payment_status="paid")
    version = orders.row(before["id"])["payment_version"]

    orders.change(before["id"], payment_event_time=NOON)

    after = orders.row(before["id"])
    assert (after["payment_event_time"], after["payment_state"]) == (NOON, None)
    assert after["payment_version"] > version
    _, word, time = events(database_url, before["id"])
    assert (word["payment_event_time"], time["payment_event_time"]) == (None, NOON)


@pytest.mark.parametrize(
    "values",
    [
        {"payment_state": 0},
        {"payment_state": 15},
        {"contested_from": 15},
        {"captured_amount": -1},
        {"refunded_amount": -1},
    ],
    ids=str,
)
async def test_values_that_no_payment_has(database_url: str, values: dict[str, int]) -> None:
    orders = Orders(database_url)
    with pytest.raises(psycopg.errors.CheckViolation):
        orders.change(orders.add(), **values)
