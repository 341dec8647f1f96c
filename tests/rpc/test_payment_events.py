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
from tests.support.callers import Call, grpcio, json_client, path
from tests.support.orders import Orders
from tests.support.reading import broken_rules, pages, refused, state
from tests.support.service import Service
from tests.support.updates import refusal, update


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


def events_of(page: Any) -> list[str]:
    """Return the words of a page's events, merged as the proto says; of refused ones with a "!"."""
    left = [
        (each.first_refused_at.to_datetime(), f"{each.requested.payment_status}!")
        for each in page.refused
    ]
    found = []
    for each in page.events:
        while left and left[0][0] < each.created_at.to_datetime():
            found.append(left.pop(0)[1])
        found.append(each.after.payment_status)
    return found + [word for _, word in left]


def test_refused_events_among_those_that_were_taken(
    read: Call, running: Service, orders: Orders
) -> None:
    """Page by page, each in its place; a repeated one once; and none unless they are asked for."""
    order_id, other_id = orders.add(), orders.add()
    words = ["paid", "pending!", "failed!", "refunded", "paid!", "disputed", "expired!"]
    with grpcio(running.base_url) as write:
        for each in (order_id, other_id):
            for word in words:
                sent = update(each, payment_status=word.rstrip("!"))
                if word.endswith("!"):
                    for _ in range(2):
                        refusal(write, sent)
                else:
                    write(sent)

    for sizes in ([1], [2], [3, 1], [7], [0]):
        request = ListOrderPaymentEventsRequest(order_id=order_id, include_refused=True)
        walk = list(pages(read, request, sizes))
        assert [each for page in walk for each in events_of(page)] == words
        assert all(each.times == 2 for page in walk for each in page.refused)
        if sizes == [2]:
            assert [len(events_of(page)) for page in walk] == [2, 2, 2, 1]
    without = pages(read, ListOrderPaymentEventsRequest(order_id=order_id), [2])
    taken = [word for word in words if not word.endswith("!")]
    assert [each for page in without for each in events_of(page)] == taken


def test_a_page_token_of_a_list_with_or_without_refused_events(
    read: Call, running: Service, orders: Orders
) -> None:
    order_id = orders.add(payment_status="paid", payment_state=9)
    orders.change(order_id, payment_status="refunded", payment_state=11)
    with grpcio(running.base_url) as write:
        refusal(write, update(order_id, payment_status="pending"))
    for flag in (True, False):
        request = ListOrderPaymentEventsRequest(
            order_id=order_id, include_refused=flag, page_size=1
        )
        request.page_token = read(request).next_page_token
        assert len(read(request).events) == 1
        request.include_refused = not flag
        failure = refused(read, request)
        assert "other filters" in failure.message
        assert broken_rules(read, request) == [("page_token", "PAGE_TOKEN_INVALID")]


def test_refused_events_of_an_order_that_has_no_others(
    read: Call, running: Service, orders: Orders, number: int
) -> None:
    """And of one that there never was."""
    orders.add(payment_idempotency_key=f"evt_{number}")
    order_id, missing = orders.add(), 10**15 + number
    with grpcio(running.base_url) as write:
        for each in (order_id, missing):
            request = update(each, payment_idempotency_key=f"evt_{number}")
            refusal(write, request, "already_exists")

    page = read(ListOrderPaymentEventsRequest(order_id=order_id, include_refused=True))
    assert not page.events
    assert [each.reason for each in page.refused] == ["IDEMPOTENCY_KEY_REUSED"]
    failure = refused(read, ListOrderPaymentEventsRequest(order_id=missing, include_refused=True))
    assert failure.code == "not_found"
    order_id = orders.add()
    page = read(ListOrderPaymentEventsRequest(order_id=order_id, include_refused=True))
    assert not (page.events or page.refused or page.next_page_token)


def test_refused_events_outlive_their_order(read: Call, running: Service, orders: Orders) -> None:
    """Also on a page that has no event that was taken."""
    order_id = orders.add()
    words = ["paid!", "paid", "pending!", "failed!"]
    with grpcio(running.base_url) as write:
        refusal(write, update(order_id, payment_status="paid", currency="USD"))
        write(update(order_id, payment_status="paid"))
        for word in ("pending", "failed"):
            refusal(write, update(order_id, payment_status=word))
    with psycopg.connect(orders.url) as connection:
        connection.execute("DELETE FROM orders WHERE id = %s", (order_id,))

    for size in (1, 2, 4):
        request = ListOrderPaymentEventsRequest(order_id=order_id, include_refused=True)
        walk = pages(read, request, [size])
        assert [each for page in walk for each in events_of(page)] == words
