"""ListOrderPaymentEvents, over every protocol."""

from typing import Any
from urllib.parse import urlsplit

import psycopg

from persistence.models import PAYMENT_COLUMNS
from persistence.roles import APPLICATION
from server.gen.listings.v1.orders_pb import (
    GetOrderRequest,
    ListOrderPaymentEventsRequest,
    UpdateOrderPaymentRequest,
)
from tests.support.callers import Call, json_client, path
from tests.support.orders import Orders
from tests.support.reading import pages, refused, state
from tests.support.service import Service


def test_events_of_an_update_and_of_a_change_by_sql(
    read: Call, running: Service, orders: Orders, number: int
) -> None:
    """By a request, then by SQL."""
    order_id = orders.add()
    payment: dict[str, Any] = {
        "payment_provider": "stripe",
        "payment_session_id": f"cs_{number}",
        "payment_idempotency_key": f"evt_{number}",
        "payment_status": "processing",
    }
    update = UpdateOrderPaymentRequest(order_id=order_id, **payment)
    with json_client(running.base_url) as client:
        client.post(
            path(update), content=update.to_json(), headers={"x-request-id": f"request-{number}"}
        ).raise_for_status()
    after_request = orders.row(order_id)
    orders.change(order_id, payment_status="paid", payment_session_id=None)

    response = read(ListOrderPaymentEventsRequest(order_id=order_id))

    first, second = response.events
    assert response.next_page_token == ""
    unpaid: dict[str, str | None] = dict.fromkeys(PAYMENT_COLUMNS)
    unpaid["payment_status"] = "pending"
    assert state(first.before) == unpaid
    assert state(first.after) == state(second.before) == unpaid | payment
    assert state(second.after) == unpaid | payment | {
        "payment_status": "paid",
        "payment_session_id": None,
    }
    assert first.payment_idempotency_key == f"evt_{number}"
    assert first.request_id == f"request-{number}"
    assert not any(
        each.has_field("caller") or each.order_id != order_id for each in response.events
    )
    assert not second.has_field("payment_idempotency_key")
    assert not second.has_field("request_id")
    assert first.database_role == APPLICATION
    assert second.database_role == urlsplit(running.database_url).username
    assert first.id < second.id
    assert after_request["created_at"] < first.created_at.to_datetime()
    assert first.created_at.to_datetime() < second.created_at.to_datetime()


def test_an_order_inserted_with_a_payment_has_an_event(read: Call, orders: Orders) -> None:
    order_id = orders.add(payment_status="paid")

    (event,) = read(ListOrderPaymentEventsRequest(order_id=order_id)).events

    assert set(state(event.before).values()) == {None}
    assert event.after.payment_status == "paid"


def test_an_order_without_events(read: Call, orders: Orders) -> None:
    response = read(ListOrderPaymentEventsRequest(order_id=orders.add()))

    assert (list(response.events), response.next_page_token) == ([], "")


def test_history_outlives_its_order(read: Call, orders: Orders) -> None:
    order_id = orders.add(payment_status="paid")
    with psycopg.connect(orders.url) as connection:
        connection.execute("DELETE FROM orders WHERE id = %s", (order_id,))

    assert len(read(ListOrderPaymentEventsRequest(order_id=order_id)).events) == 1
    assert refused(read, GetOrderRequest(order_id=order_id)).code == "not_found"


def test_pages_of_events(read: Call, orders: Orders) -> None:
    order_id, other_id = orders.add(), orders.add()
    for each in range(7):
        orders.change(order_id, payment_status=f"{each}")
        orders.change(other_id, payment_status=f"{each}")
    for sizes in ([1], [3], [7], [2, 4], [0]):
        walk = pages(read, ListOrderPaymentEventsRequest(order_id=order_id), sizes)
        found = [each.after.payment_status for page in walk for each in page.events]
        assert found == list("0123456")
