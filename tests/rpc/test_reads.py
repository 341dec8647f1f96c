"""GetOrder and FindOrderByPayment, over every protocol."""

from typing import Any

import pytest

from persistence.models import PAYMENT_COLUMNS
from server.gen.listings.v1.orders_pb import (
    FindOrderByPaymentRequest,
    GetOrderRequest,
    ListOrderPaymentEventsRequest,
    ListOrderPaymentsRequest,
)
from tests.support.callers import Call, Failure
from tests.support.orders import Orders
from tests.support.reading import (
    MISSING_ORDER_ID,
    REFERENCES,
    broken_rules,
    columns,
    fields,
    find,
    refused,
)


def test_all_fields_of_an_order_are_returned(read: Call, orders: Orders, number: int) -> None:
    payment: dict[str, Any] = {name: f"{name[:20]} {number}" for name in PAYMENT_COLUMNS}
    amounts = {"captured_amount": 5, "refunded_amount": 0, "payment_event_time": "2025-01-01+00"}
    for order_id in (
        orders.add(),
        orders.add(status="shipped", **payment),
        orders.add(
            payment_state=9, **payment | {"payment_idempotency_key": f"another {number}"}, **amounts
        ),
    ):
        order = read(GetOrderRequest(order_id=order_id)).order

        row = orders.row(order_id)
        assert columns(order) == fields(row)


@pytest.mark.parametrize(
    "method", [GetOrderRequest, ListOrderPaymentEventsRequest, ListOrderPaymentsRequest]
)
def test_a_missing_order_is_not_found(read: Call, method: Any) -> None:
    failure = refused(read, method(order_id=MISSING_ORDER_ID))

    assert failure == Failure("not_found", f"there is no order {MISSING_ORDER_ID}")
    assert broken_rules(read, method(order_id=0)) == [("order_id", "INT64_GT")]


@pytest.mark.parametrize("field", REFERENCES)
def test_an_order_is_found_by_current_and_past_references(
    read: Call, orders: Orders, number: int, field: str
) -> None:
    came_with, has = f"old {number}", f"new {number}"
    order_id = orders.add(**{field: came_with}, payment_provider="stripe")
    orders.change(order_id, **{field: f"between {number}"})
    orders.change(order_id, **{field: has})
    row = orders.row(order_id)

    for value in (came_with, f"between {number}", has):
        request = find(field, value)
        assert columns(read(request).order) == fields(row)
        request.payment_provider = "stripe"
        assert columns(read(request).order) == fields(row)


def test_an_unknown_reference_is_not_found(read: Call, number: int) -> None:
    for field in REFERENCES:
        failure = refused(read, find(field, f"unknown {number}"))

        assert failure == Failure("not_found", f"no order has had this {field}")
        of_provider = find(field, f"unknown {number}", payment_provider="stripe")
        text = f"no order has had this {field} from this payment_provider"
        assert refused(read, of_provider) == Failure("not_found", text)
        assert broken_rules(read, find(field, "x" * 256)) == [(field, "STRING_MAX_LEN")]


def test_the_provider_selects_among_orders_with_the_same_reference(
    read: Call, orders: Orders, number: int
) -> None:
    """By the one that the order had when it got the reference."""
    value = f"pi_{number}"
    first = orders.add(payment_intent_id=value, payment_provider="stripe")
    second = orders.add(payment_intent_id=value, payment_provider="allsecure")
    orders.change(second, payment_provider="cash", payment_intent_id="another")

    for provider, order_id in (("stripe", first), ("allsecure", second)):
        found = read(find("payment_intent_id", value, payment_provider=provider)).order
        assert found.id == order_id
    for provider in ("cash", "unknown"):
        failure = refused(read, find("payment_intent_id", value, payment_provider=provider))
        assert failure.code == "not_found"


def test_a_past_provider_set_after_the_reference_matches(
    read: Call, orders: Orders, number: int
) -> None:
    order_id = orders.add(payment_session_id=f"cs_{number}")
    orders.change(order_id, payment_provider="stripe")
    orders.change(order_id, payment_provider="cash")

    found = read(find("payment_session_id", f"cs_{number}", payment_provider="stripe")).order

    assert found.id == order_id


def test_an_order_that_had_a_reference_twice_is_not_ambiguous(
    read: Call, orders: Orders, number: int
) -> None:
    order_id = orders.add(payment_session_id=f"cs_{number}")
    orders.change(order_id, payment_session_id=None)
    orders.change(order_id, payment_session_id=f"cs_{number}")

    assert read(find("payment_session_id", f"cs_{number}")).order.id == order_id


def test_a_reference_is_required(read: Call) -> None:
    for request in (FindOrderByPaymentRequest(), FindOrderByPaymentRequest(payment_provider="x")):
        assert broken_rules(read, request) == [("reference", "REQUIRED")]
