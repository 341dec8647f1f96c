"""Demo orders: their payments are what the service would have made of the same events."""

import asyncio
from collections import Counter
from datetime import datetime

import psycopg
import pytest
from psycopg.rows import dict_row

from persistence import seeding
from persistence.demo_payments import LIVES
from persistence.errors import PaymentEventRefused
from persistence.models import PAYMENT_COLUMNS, Order, Origin, PaymentUpdate
from persistence.orders import OrderRepository
from persistence.payment_states import PaymentState
from tests.support import databases
from tests.support.orders import Orders

# What the service derives from the events, and what does not depend on when it does.
DERIVED = (
    *PAYMENT_COLUMNS,
    "payment_state",
    "payment_event_time",
    "captured_amount",
    "refunded_amount",
    "contested_from",
    "payment_session_stale",
    "payment_intent_stale",
)


def seed(url: str, orders: int) -> None:
    asyncio.run(seeding.seed(url, orders, lambda _size: None))


def rows(url: str, statement: str) -> list[dict[str, object]]:
    with psycopg.connect(url, row_factory=dict_row) as connection:
        connection.execute("SET timezone = 'UTC'")
        return connection.execute(statement.encode()).fetchall()


def test_every_life_is_one_that_the_service_would_have_led(database_url: str) -> None:
    """Each order's events, sent to the service for a new order, have the same end."""
    seed(database_url, 400)
    seeded = rows(database_url, "SELECT * FROM orders WHERE id <= 400 ORDER BY id")
    sent = Orders(database_url)
    requests = _requests(database_url)
    assert {len(each) for each in requests.values()} >= {1, 2, 3, 4}

    async def replayed() -> dict[int, Order]:
        async with databases.pool(database_url) as database:
            repository = OrderRepository(database)
            ends = {}
            for order in seeded:
                copy = sent.add(
                    currency=order["currency"],
                    **{name: order[name] for name in order if name.endswith("_amount")}
                    | {"captured_amount": None, "refunded_amount": None},
                )
                for update, reason in requests.get(int(str(order["id"])), []):
                    try:
                        await repository.update_payment_info(copy, update, Origin("test"))
                    except PaymentEventRefused as refused:
                        assert refused.reason.value == reason, order
                    else:
                        assert reason is None, order
                ends[int(str(order["id"]))] = await repository.get(copy)
            return ends

    ends = asyncio.run(replayed())
    for order in seeded:
        end = ends[int(str(order["id"]))]._asdict()
        expected = {name: order[name] for name in DERIVED}
        if order["payment_idempotency_key"] is not None:
            expected["payment_idempotency_key"] = f"copy {order['payment_idempotency_key']}"
        assert {name: end[name] for name in DERIVED} == expected


def _requests(url: str) -> dict[int, list[tuple[PaymentUpdate, str | None]]]:
    """Return the events of each order, as they were sent, with the reason of a refusal."""
    found: dict[int, list[tuple[datetime, PaymentUpdate, str | None]]] = {}
    names = ("payment_event_time", "captured_amount", "refunded_amount", "currency")
    for event in rows(url, "SELECT * FROM order_payment_events"):
        given = {
            name: event[f"{name}_after"]
            for name in PAYMENT_COLUMNS
            if event[f"{name}_after"] != event[f"{name}_before"] or name == "payment_status"
        }
        update = {**given, **{name: event[name] for name in names}}
        found.setdefault(int(str(event["order_id"])), []).append(
            (_time(event["created_at"]), _copy(update), None)
        )
    for event in rows(url, "SELECT * FROM refused_payment_events"):
        update = {name: event[name] for name in (*PAYMENT_COLUMNS, *names)}
        found.setdefault(int(str(event["order_id"])), []).append(
            (_time(event["first_refused_at"]), _copy(update), str(event["reason"]))
        )
    return {
        order_id: [(update, reason) for _, update, reason in sorted(each, key=lambda e: e[0])]
        for order_id, each in found.items()
    }


def _copy(update: dict[str, object]) -> PaymentUpdate:
    key = update["payment_idempotency_key"]
    return PaymentUpdate(**(update | {"payment_idempotency_key": f"copy {key}"}))  # type: ignore[arg-type]


def _time(value: object) -> datetime:
    assert isinstance(value, datetime)
    return value


def test_the_orders_are_the_same_each_time_but_for_their_dates(database_url: str) -> None:
    seed(database_url, 300)
    with databases.clone() as other:
        seed(other, 300)
        for table in ("orders", "order_payment_events", "refused_payment_events"):
            found = [_undated(rows(url, f"SELECT * FROM {table}")) for url in (database_url, other)]
            assert found[0] == found[1], table


def _undated(found: list[dict[str, object]]) -> Counter[str]:
    kept = [
        {
            name: value
            for name, value in row.items()
            if not isinstance(value, datetime)
            and not name.endswith("digest")
            and name not in ("transaction_id", "id", "order_number")
        }
        for row in found
    ]
    return Counter(map(repr, kept))


def test_a_hundred_orders_have_every_kind_of_life(database_url: str) -> None:
    seed(database_url, 100)
    states = {
        row["payment_state"] for row in rows(database_url, "SELECT payment_state FROM orders")
    }
    assert states >= set(PaymentState) - {PaymentState.UNKNOWN, PaymentState.REQUIRES_ACTION}
    reasons = {r["reason"] for r in rows(database_url, "SELECT reason FROM refused_payment_events")}
    assert reasons == {
        "PAYMENT_ATTEMPT_NOT_CURRENT",
        "PAYMENT_DUPLICATE",
        "PAYMENT_STATUS_UNKNOWN",
    }
    (first,) = rows(database_url, "SELECT * FROM orders WHERE id = 1")
    assert (first["payment_status"], first["payment_provider"]) == ("pending", None)
    late = "SELECT FROM orders WHERE updated_at > now()"
    late += " UNION ALL SELECT FROM order_payment_events WHERE created_at > now()"
    assert rows(database_url, late) == []
    assert len(LIVES) == 100


def test_a_change_after_seeding_is_recorded(database_url: str) -> None:
    seed(database_url, 10)
    Orders(database_url).change(1, payment_status="paid")
    found = "SELECT count(*) FROM order_payment_events WHERE order_id = 1"
    assert Orders(database_url).value(found) == 1


@pytest.mark.parametrize(("orders", "total"), [(100, 101), (12_345, 12_345)])
def test_the_first_start_adds_an_order_whose_payment_has_not_begun(
    database_url: str, orders: int, total: int
) -> None:
    for _ in range(2):
        asyncio.run(seeding.seed_if_empty(database_url, orders))
    table = Orders(database_url)
    assert table.value("SELECT count(*) FROM orders") == total
    if total > orders:
        untouched = table.row(12_345)
        assert (untouched["payment_status"], untouched["payment_provider"]) == ("pending", None)
        assert untouched["payment_status_since"] is None
    assert table.add() == 12_346
