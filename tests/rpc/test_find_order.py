"""FindOrderByPayment: orders that have a reference, had it, or have refused it."""

import psycopg
import pytest

from server.gen.google.rpc.error_details_pb import ErrorInfo
from server.gen.listings.v1.orders_pb import UpdateOrderPaymentRequest
from tests.support.callers import Call, grpcio
from tests.support.orders import Orders
from tests.support.reading import REFERENCES, find, refused
from tests.support.service import Service


def ambiguous(*order_ids: int) -> tuple[ErrorInfo]:
    metadata = {"order_ids": ",".join(map(str, order_ids))}
    reason = "PAYMENT_REFERENCE_AMBIGUOUS"
    return (ErrorInfo(reason=reason, domain="listings.v1", metadata=metadata),)


def refuse(running: Service, order_id: int, **payment: str) -> None:
    """Have a paid order refuse an event."""
    with grpcio(running.base_url) as call:
        request = UpdateOrderPaymentRequest(order_id=order_id)
        for name, value in ({"payment_status": "pending"} | payment).items():
            setattr(request, name, value)
        assert refused(call, request).code == "failed_precondition"


@pytest.mark.parametrize("field", REFERENCES[:3])
def test_an_order_that_has_the_reference_comes_first(
    read: Call, orders: Orders, number: int, field: str
) -> None:
    had, has = orders.add(**{field: f"x_{number}"}), orders.add(**{field: f"x_{number}"})
    orders.change(had, **{field: f"y_{number}"})

    found = read(find(field, f"x_{number}"))

    assert (found.order.id, found.refused) == (has, False)


@pytest.mark.parametrize("field", REFERENCES)
def test_an_order_that_has_refused_the_reference_comes_last(
    read: Call, running: Service, orders: Orders, number: int, field: str
) -> None:
    first, second = (orders.add(payment_status="paid", payment_state=9) for _ in range(2))
    value = f"x_{number}"
    refuse(running, first, **{field: value})

    found = read(find(field, value))
    assert (found.order.id, found.refused) == (first, True)

    orders.change(second, **{field: value})
    orders.change(second, **{field: f"y_{number}"})
    found = read(find(field, value))
    assert (found.order.id, found.refused) == (second, False)


def test_the_provider_of_a_refused_event(
    read: Call, running: Service, orders: Orders, number: int
) -> None:
    """The request's, or where that had none, the order's then."""
    named, unnamed = f"named_{number}", f"unnamed_{number}"
    order_id = orders.add(
        payment_status="paid", payment_state=9, payment_provider="Stripe", payment_intent_id="pi"
    )
    refuse(running, order_id, payment_intent_id=named, payment_provider="All-Secure")
    refuse(running, order_id, payment_intent_id=unnamed)
    orders.change(order_id, payment_provider="cash")

    for value, provider, other in (
        (named, "all secure", "stripe"),
        (unnamed, "STRIPE", "allsecure"),
    ):
        found = read(find("payment_intent_id", value, payment_provider=provider))
        assert (found.order.id, found.refused) == (order_id, True)
        for absent in (other, "cash"):
            request = find("payment_intent_id", value, payment_provider=absent)
            assert refused(read, request).code == "not_found"


def test_the_provider_of_the_event_that_brought_the_reference(
    read: Call, orders: Orders, number: int
) -> None:
    value = f"cs_{number}"
    order_id = orders.add(payment_session_id=value, payment_provider="Stripe")
    orders.change(order_id, payment_provider="cash")

    assert read(find("payment_session_id", value, payment_provider="stripe ")).order.id == order_id
    request = find("payment_session_id", value, payment_provider="cash")
    assert refused(read, request).code == "not_found"


def test_a_provider_that_came_after_the_reference(read: Call, orders: Orders, number: int) -> None:
    """It counts while the order has the reference, and not afterwards."""
    value = f"cs_{number}"
    order_id = orders.add(payment_session_id=value)
    orders.change(order_id, payment_provider="stripe")
    orders.change(order_id, payment_session_id="another", payment_provider="cash")

    assert read(find("payment_session_id", value, payment_provider="stripe")).order.id == order_id
    request = find("payment_session_id", value, payment_provider="cash")
    assert refused(read, request).code == "not_found"


def test_candidates_of_an_ambiguous_reference(
    read: Call, running: Service, orders: Orders, number: int
) -> None:
    """Those of the first place that has any, in ascending order."""
    value = f"pi_{number}"
    paid = {"payment_status": "paid", "payment_state": 9}
    has_refused = sorted(orders.add(**paid) for _ in range(2))
    for order_id in has_refused:
        refuse(running, order_id, payment_intent_id=value)
    request = find("payment_intent_id", value)
    assert refused(read, request).details == ambiguous(*has_refused)

    had = [orders.add(payment_intent_id=value) for _ in range(2)]
    for order_id in had:
        orders.change(order_id, payment_intent_id="another")
    assert refused(read, request).details == ambiguous(*had)

    has = [orders.add(payment_intent_id=value) for _ in range(2)]
    assert refused(read, request).details == ambiguous(*has)


def test_twenty_candidates_at_most(running: Service, orders: Orders, number: int) -> None:
    made = [orders.add(payment_intent_id=f"pi_{number}") for _ in range(22)]
    with grpcio(running.base_url) as read:
        failure = refused(read, find("payment_intent_id", f"pi_{number}"))
    (info,) = failure.details
    assert isinstance(info, ErrorInfo)
    found = [int(each) for each in info.metadata["order_ids"].split(",")]
    assert len(found) == 20
    assert set(found) <= set(made)


def test_what_was_refused_for_an_order_that_is_gone(
    running: Service, orders: Orders, number: int
) -> None:
    order_id = orders.add(payment_status="paid", payment_state=9)
    refuse(running, order_id, payment_intent_id=f"pi_{number}")
    with psycopg.connect(orders.url) as connection:
        connection.execute("DELETE FROM orders WHERE id = %s", (order_id,))
    with grpcio(running.base_url) as read:
        assert refused(read, find("payment_intent_id", f"pi_{number}")).code == "not_found"
