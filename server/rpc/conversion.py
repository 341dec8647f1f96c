"""Records of the database as protobuf messages."""

from datetime import UTC, datetime
from functools import cache
from typing import Final

from protobuf.wkt import Timestamp

from persistence.models import PAYMENT_COLUMNS, PaymentUpdate, etag_of
from persistence.models import Order as OrderRecord
from persistence.models import OrderPayment as PaymentRecord
from persistence.models import PaymentEvent as EventRecord
from persistence.models import RefusedEvent as RefusedRecord
from persistence.timestamps import SINCE_1970, time_at
from server.gen.listings.v1.orders_pb import (
    Order,
    OrderPayment,
    OrderPaymentEvent,
    PaymentState,
    RefusedPaymentEvent,
    UpdateOrderPaymentRequest,
)

# Kept, because an Enum takes six times as long to find its member.
_state: Final = cache(Order.PaymentState)

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


def payment_update(request: UpdateOrderPaymentRequest) -> PaymentUpdate:
    """Return what ``request`` sets. Fields have the same names here as there."""
    time, has = request.payment_event_time, request.has_field
    # A field of a text that is not set reads as empty; the rules in the proto refuse one that is
    # set to an empty value. Zero is an amount.
    return PaymentUpdate(
        payment_provider=request.payment_provider or None,
        payment_session_id=request.payment_session_id or None,
        payment_intent_id=request.payment_intent_id or None,
        payment_idempotency_key=request.payment_idempotency_key or None,
        payment_status=request.payment_status or None,
        payment_transaction_id=request.payment_transaction_id or None,
        captured_amount=request.captured_amount if has("captured_amount") else None,
        refunded_amount=request.refunded_amount if has("refunded_amount") else None,
        payment_event_time=None if time is None else datetime_from(time),
        currency=request.currency.upper() or None,
        etag=request.etag or None,
        override_reason=request.override_reason or None,
    )


def datetime_from(timestamp: Timestamp, *, round_up: bool = False) -> datetime:
    """Return ``timestamp`` in microseconds, the resolution of PostgreSQL's times: rounded down."""
    microseconds = -(-timestamp.nanos // 1_000) if round_up else timestamp.nanos // 1_000
    return time_at(timestamp.seconds * 1_000_000 + microseconds - SINCE_1970)


def _timestamp(time: datetime) -> Timestamp:
    # By protobuf-py's own from_datetime, a message takes 60 % longer, and an order has three.
    since = time - _EPOCH
    return Timestamp(seconds=since.days * 86_400 + since.seconds, nanos=since.microseconds * 1_000)


def _optional(time: datetime | None) -> Timestamp | None:
    return None if time is None else _timestamp(time)


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
        created_at=_timestamp(order.created_at),
        updated_at=_timestamp(order.updated_at),
        payment_provider=order.payment_provider,
        payment_session_id=order.payment_session_id,
        payment_intent_id=order.payment_intent_id,
        payment_idempotency_key=order.payment_idempotency_key,
        payment_transaction_id=order.payment_transaction_id,
        payment_state=_state(order.payment_state),
        payment_event_time=_optional(order.payment_event_time),
        payment_status_since=_optional(order.payment_status_since),
        captured_amount=order.captured_amount,
        refunded_amount=order.refunded_amount,
        etag=etag_of(order),
    )


def event_message(event: EventRecord) -> OrderPaymentEvent:
    """Return ``event`` as a message."""
    return OrderPaymentEvent(
        id=event.id,
        order_id=event.order_id,
        created_at=_timestamp(event.created_at),
        before=_payment_state(event, "{}_before"),
        after=_payment_state(event, "{}_after"),
        payment_idempotency_key=event.idempotency_key or event.further_idempotency_key,
        caller=event.caller,
        request_id=event.request_id,
        database_role=event.database_role,
        payment_event_time=_optional(event.payment_event_time),
        override_reason=event.override_reason,
        captured_amount=event.captured_amount,
        refunded_amount=event.refunded_amount,
        state_before=Order.PaymentState(event.payment_state_before or 0),
        state_after=Order.PaymentState(event.payment_state_after),
        storefront_id=event.storefront_id,
        currency=event.currency,
    )


def payment_message(payment: PaymentRecord) -> OrderPayment:
    """Return ``payment`` as a message."""
    return OrderPayment(
        payment_provider=payment.payment_provider,
        payment_session_ids=list(payment.payment_session_ids),
        payment_intent_ids=list(payment.payment_intent_ids),
        payment_transaction_ids=list(payment.payment_transaction_ids),
        payment_status=payment.payment_status,
        payment_state=Order.PaymentState(payment.payment_state or 0),
        first_event_at=_timestamp(payment.first_event_at),
        last_event_at=_timestamp(payment.last_event_at),
        captured_amount=payment.captured_amount,
        refunded_amount=payment.refunded_amount,
        current=payment.is_current,
        taken_events=payment.taken_events,
        refused_events=payment.refused_events,
    )


def refused_event_message(event: RefusedRecord) -> RefusedPaymentEvent:
    """Return ``event`` as a message."""
    return RefusedPaymentEvent(
        id=event.id,
        order_id=event.order_id,
        storefront_id=event.storefront_id,
        reason=event.reason,
        first_refused_at=_timestamp(event.first_refused_at),
        last_refused_at=_timestamp(event.last_refused_at),
        times=event.times,
        requested=_payment_state(event, "{}"),
        requested_state=Order.PaymentState(event.requested_state or 0),
        payment_event_time=_optional(event.payment_event_time),
        captured_amount=event.captured_amount,
        refunded_amount=event.refunded_amount,
        currency=event.currency,
        order_payment=_payment_state(event, "order_{}"),
        order_payment_state=Order.PaymentState(event.order_payment_state or 0),
        order_payment_event_time=_optional(event.order_payment_event_time),
        request_id=event.request_id,
        caller=event.caller,
        written=event.written,
        override_reason=event.override_reason,
    )


def _payment_state(record: EventRecord | RefusedRecord, naming: str) -> PaymentState:
    """Return the payment in those fields of ``record`` that are named as ``naming`` has it."""
    return PaymentState(**{name: getattr(record, naming.format(name)) for name in PAYMENT_COLUMNS})
