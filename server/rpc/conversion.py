"""Records of the database as protobuf messages."""

from typing import Literal

from protobuf.wkt import Timestamp

from persistence.models import PAYMENT_COLUMNS
from persistence.models import Order as OrderRecord
from persistence.models import PaymentEvent as EventRecord
from server.gen.listings.v1.orders_pb import Order, OrderPaymentEvent, PaymentState


def order_message(order: OrderRecord) -> Order:
    """Return ``order`` as a message."""
    return Order(
        id=order.id,
        order_number=order.order_number,
        buyer_id=order.buyer_id,
        storefront_id=order.storefront_id,
        status=order.status,
        payment_status=order.payment_status,
        currency=order.currency,
        subtotal_amount=order.subtotal_amount,
        shipping_amount=order.shipping_amount,
        tax_amount=order.tax_amount,
        discount_amount=order.discount_amount,
        total_amount=order.total_amount,
        created_at=Timestamp.from_datetime(order.created_at),
        updated_at=Timestamp.from_datetime(order.updated_at),
        payment_provider=order.payment_provider,
        payment_session_id=order.payment_session_id,
        payment_intent_id=order.payment_intent_id,
        payment_idempotency_key=order.payment_idempotency_key,
        payment_transaction_id=order.payment_transaction_id,
    )


def event_message(event: EventRecord) -> OrderPaymentEvent:
    """Return ``event`` as a message."""
    return OrderPaymentEvent(
        id=event.id,
        order_id=event.order_id,
        created_at=Timestamp.from_datetime(event.created_at),
        before=_state(event, "before"),
        after=_state(event, "after"),
        payment_idempotency_key=event.idempotency_key,
        caller=event.caller,
        request_id=event.request_id,
        database_role=event.database_role,
    )


def _state(event: EventRecord, when: Literal["before", "after"]) -> PaymentState:
    return PaymentState(**{name: getattr(event, f"{name}_{when}") for name in PAYMENT_COLUMNS})
