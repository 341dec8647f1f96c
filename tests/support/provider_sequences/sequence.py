"""The form of a sequence: calls of ``UpdateOrderPayment``, their answers, and the end."""

from collections.abc import Mapping
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Final, NamedTuple

BASE: Final = datetime(2025, 1, 1, tzinfo=UTC)
"""What the times of events count from."""

DAY: Final = 86_400
"""Seconds."""

TOTAL: Final = 10_000
"""The total of each order, in cents of EUR, its currency."""

ORDER: Final = "order"
OTHER_ORDER: Final = "other order"
MISSING_ORDER: Final = "missing order"
"""An order that does not exist."""

CURRENT: Final = "current"
"""For an etag: what the order has at the moment."""
STALE: Final = "stale"
"""For an etag: what the order had before the sequence."""

STRIPE: Final = "stripe"
ALLSECURE: Final = "allsecure"
PAYPAL: Final = "paypal"
ADYEN: Final = "adyen"
MOLLIE: Final = "mollie"
KLARNA: Final = "klarna"
BANK_TRANSFER: Final = "bank_transfer"
"""A transfer to the shop's account that somebody enters by hand."""

OK: Final = "ok"
REPLAYED: Final = "replayed"
NOT_FOUND: Final = "NOT_FOUND"
ETAG_MISMATCH: Final = "ETAG_MISMATCH"
KEY_REUSED: Final = "IDEMPOTENCY_KEY_REUSED"
NOT_CURRENT: Final = "PAYMENT_ATTEMPT_NOT_CURRENT"
DUPLICATE: Final = "PAYMENT_DUPLICATE"
LATE: Final = "PAYMENT_EVENT_LATE"
CURRENCY_MISMATCH: Final = "PAYMENT_CURRENCY_MISMATCH"
REFUSED: Final = "PAYMENT_STATUS_REFUSED"
UNKNOWN_WORD: Final = "PAYMENT_STATUS_UNKNOWN"


class Event(NamedTuple):
    """One call, by the names of ``UpdateOrderPaymentRequest``, and its answer."""

    payment_status: str | None = None
    payment_provider: str | None = None
    payment_session_id: str | None = None
    payment_intent_id: str | None = None
    payment_transaction_id: str | None = None
    payment_idempotency_key: str | None = None
    payment_event_time: float | None = None
    """Seconds after ``BASE``."""
    captured_amount: int | None = None
    refunded_amount: int | None = None
    currency: str | None = None
    etag: str | None = None
    """``CURRENT`` or ``STALE``."""
    override_reason: str | None = None
    order: str = ORDER
    answer: str = OK
    """``OK``, ``REPLAYED``, ``NOT_FOUND``, or the reason of ErrorInfo."""

    def at(self, seconds: float) -> "Event":
        """Return the event with the time that the provider gives it."""
        return self._replace(payment_event_time=seconds)

    def keyed(self, key: str) -> "Event":
        """Return the event with an idempotency key."""
        return self._replace(payment_idempotency_key=key)

    def totals(self, captured: int | None = None, refunded: int | None = None) -> "Event":
        """Return the event with amounts."""
        return self._replace(captured_amount=captured, refunded_amount=refunded)

    def in_currency(self, currency: str) -> "Event":
        """Return the event with the currency of its amounts."""
        return self._replace(currency=currency)

    def if_etag(self, etag: str) -> "Event":
        """Return the event with an etag: ``CURRENT`` or ``STALE``."""
        return self._replace(etag=etag)

    def overriding(self, reason: str) -> "Event":
        """Return the event with a reason to override the guard."""
        return self._replace(override_reason=reason)

    def of(self, order: str) -> "Event":
        """Return the event for another order."""
        return self._replace(order=order)

    def answered(self, answer: str) -> "Event":
        """Return the event with another answer than ``OK``."""
        return self._replace(answer=answer)


def event(
    status: str | None = None,
    provider: str | None = None,
    session: str | None = None,
    intent: str | None = None,
    transaction: str | None = None,
) -> Event:
    """Return an event with the fields that nearly all events have."""
    return Event(status, provider, session, intent, transaction)


class Sequence(NamedTuple):
    """What happens to an order, in the order of its arrival."""

    name: str
    source: str
    """The provider's documentation, or a public report."""
    events: tuple[Event, ...]
    state: str
    """The state that is true at the end, without ``PAYMENT_STATE_``."""
    row: Mapping[str, object] = MappingProxyType({})
    """Columns of the order at the end, as far as they matter."""
    amounts_disagree: bool = False
    """Whether the order is found by ``amounts_disagree`` at the end."""
