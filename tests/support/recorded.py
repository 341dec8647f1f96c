"""Valid messages, one or more for each method, to be sent or changed."""

from typing import Any, NamedTuple

from protobuf import DescMethod, Message
from protobuf.wkt import Duration, Timestamp

from server.gen.grpc_health.v1.health_pb import HealthCheckRequest, HealthListRequest
from server.gen.listings.v1.orders_pb import (
    GetOrderRequest,
    ListOrderPaymentEventsRequest,
    ListOrderPaymentsRequest,
    ListOrdersRequest,
    ListRefusedPaymentEventsRequest,
    ListStuckPaymentsRequest,
    UpdateOrderPaymentRequest,
    WatchOrderPaymentsRequest,
)
from tests.support import callers
from tests.support.hostile_requests import METHODS, Known, name
from tests.support.reading import find


class Recorded(NamedTuple):
    """A message, and the method that takes it."""

    method: DescMethod
    binary: bytes
    json: bytes


def recorded(known: Known) -> list[Recorded]:
    """Return messages for every method."""
    order_id = known.order_ids[-1]
    orders, stuck, events, *event_ids = known.tokens
    since = Duration(seconds=60)
    messages: list[Message[Any]] = [
        UpdateOrderPaymentRequest(
            order_id=order_id,
            payment_provider="stripe",
            payment_session_id="cs_test_a",
            payment_intent_id="pi_test_b",
            payment_idempotency_key="evt_1",
            payment_status="paid",
            payment_transaction_id="txn_c",
        ),
        UpdateOrderPaymentRequest(order_id=order_id, payment_status="processing"),
        UpdateOrderPaymentRequest(
            order_id=order_id,
            payment_status="refund_failed",
            payment_event_time=Timestamp(seconds=1_748_779_200, nanos=5_000),
            etag="0",
            override_reason="by phone",
            captured_amount=500,
            refunded_amount=0,
            currency="eur",
        ),
        GetOrderRequest(order_id=order_id),
        find("payment_session_id", "cs_test_a", payment_provider="stripe"),
        ListOrdersRequest(
            payment_status="pending",
            storefront_id=3,
            buyer_id=7,
            created_from=Timestamp(seconds=1, nanos=5),
            created_before=Timestamp(seconds=4_000_000_000),
            page_size=3,
        ),
        ListOrdersRequest(page_size=1, page_token=orders),
        ListStuckPaymentsRequest(older_than=since, payment_provider="stripe", page_size=2),
        ListStuckPaymentsRequest(older_than=Duration(seconds=0), page_token=stuck),
        ListOrderPaymentEventsRequest(order_id=known.order_ids[0], page_token=events),
        ListOrderPaymentEventsRequest(order_id=known.order_ids[0], include_refused=True),
        ListOrderPaymentsRequest(order_id=known.order_ids[0]),
        ListRefusedPaymentEventsRequest(
            order_id=order_id,
            reason="PAYMENT_DUPLICATE",
            payment_provider="stripe",
            storefront_id=3,
            refused_from=Timestamp(seconds=1, nanos=5),
            refused_before=Timestamp(seconds=4_000_000_000),
            page_size=3,
        ),
        *(WatchOrderPaymentsRequest(order_ids=[1, 2], last_event_id=each) for each in event_ids),
        WatchOrderPaymentsRequest(storefront_id=3),
    ]
    of_orders = [(callers.path(each).removeprefix("/"), each) for each in messages]
    of_health: list[tuple[str, Message[Any]]] = [
        ("grpc.health.v1.Health/Check", HealthCheckRequest(service="listings.v1.OrderService")),
        ("grpc.health.v1.Health/List", HealthListRequest()),
        ("grpc.health.v1.Health/Watch", HealthCheckRequest()),
    ]
    methods = {name(method): method for method in METHODS}
    both = [
        Recorded(methods[path], message.to_binary(), message.to_json().encode())
        for path, message in (*of_orders, *of_health)
    ]
    return both + [
        Recorded(methods[path], *question)
        for path in methods
        if "reflection" in path
        for question in _QUESTIONS
    ]


_QUESTIONS = (
    (b"\x3a\x01*", b'{"listServices": "*"}'),
    (b"\x22\x13listings.v1.Order.x", b'{"fileContainingSymbol": "listings.v1.OrderService"}'),
    (b"\x2a\x05\x0a\x01a\x10\x01", b'{"fileContainingExtension": {"containingType": "a"}}'),
)
"""Requests of reflection, whose messages are not generated here."""
