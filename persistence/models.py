"""The rows of the tables, as plain values."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final, NamedTuple, TypeAlias
from uuid import UUID

from persistence.payment_states import PaymentState


class Order(NamedTuple):
    """One row of ``orders``. The fields are its columns, in the order in which queries return them.

    Amounts are in minor units of ``currency`` (ISO 4217); times are aware, in UTC. States
    are numbers of ``PaymentState``; where the column is null, the field has the state that the word
    stands for.
    """

    id: int
    order_number: str
    buyer_id: int
    storefront_id: int
    status: str
    payment_status: str
    currency: str
    subtotal_amount: int
    shipping_amount: int
    tax_amount: int
    discount_amount: int
    total_amount: int
    created_at: datetime
    updated_at: datetime
    payment_provider: str | None
    payment_session_id: str | None
    payment_intent_id: str | None
    payment_idempotency_key: str | None
    payment_transaction_id: str | None
    payment_state: int
    payment_event_time: datetime | None
    payment_status_since: datetime | None
    captured_amount: int | None
    refunded_amount: int | None
    payment_version: int | None
    """The transaction that last changed the payment; None if none has since the order was added."""
    contested_from: int | None
    """While the payment is disputed or charged back: the state before."""
    payment_session_stale: bool
    """Whether the session is one of an earlier attempt than the present one."""
    payment_intent_stale: bool


PAYMENT_COLUMNS: Final = (
    "payment_provider",
    "payment_session_id",
    "payment_intent_id",
    "payment_idempotency_key",
    "payment_status",
    "payment_transaction_id",
)
"""The columns of a payment that are texts, and that an update sets to what it has."""


AMOUNT_COLUMNS: Final = ("captured_amount", "refunded_amount")
"""The columns of a payment that are amounts."""


class PaymentUpdate(NamedTuple):
    """What ``OrderRepository.update_payment_info`` sets, by columns; None for what is not set.

    Amounts are totals so far, in minor units.
    """

    payment_provider: str | None = None
    payment_session_id: str | None = None
    payment_intent_id: str | None = None
    payment_idempotency_key: str | None = None
    payment_status: str | None = None
    payment_transaction_id: str | None = None
    captured_amount: int | None = None
    refunded_amount: int | None = None
    payment_event_time: datetime | None = None
    """When the event happened, aware."""
    currency: str | None = None
    """An ISO 4217 code in capitals; the update is refused if it is not the order's."""
    etag: str | None = None
    """The update is made only if this is ``etag_of`` the order."""
    override_reason: str | None = None
    """Why the update is made although the rules refuse it."""


RECORDED_FIELDS: Final = (
    *PAYMENT_COLUMNS,
    *AMOUNT_COLUMNS,
    "payment_event_time",
    "currency",
    "override_reason",
)
"""The fields of an update whose bits are set, from the lowest, in ``PaymentEvent.named_fields``."""

_NO_VERSION: Final = 2**64 - 1
"""The greatest transaction id, which no transaction has."""


def etag_of(order: Order) -> str:
    """Return a text that changes with each change of the payment, its state and its amounts.

    It does not change with the rest of the order.
    """
    return f"{order.payment_version or 0:x}"


def version_of(etag: str) -> int:
    """Return the ``payment_version`` that ``etag_of`` has made ``etag`` of; 0 stands for None.

    For other texts, return one that no order has.
    """
    try:
        version = int(etag, 16)
    except ValueError:
        return _NO_VERSION
    return version if f"{version:x}" == etag and 0 <= version < _NO_VERSION else _NO_VERSION


Storefronts: TypeAlias = Collection[int] | None
"""The tenant scope of a caller: the storefronts whose orders exist for it; None for all."""


class Origin(NamedTuple):
    """The request that makes an update, and its authenticated caller, for the history."""

    request_id: str
    caller: str | None = None


class FoundOrder(NamedTuple):
    """The order of a payment."""

    order: Order
    is_refused: bool
    """Whether the order never had the reference, but has refused an event with it."""


class PaymentEvent(NamedTuple):
    """One row of ``order_payment_events``: a change of an order's payment.

    The fields are its columns, in the order in which queries return them.
    """

    id: int
    order_id: int
    storefront_id: int
    created_at: datetime
    payment_provider_before: str | None
    payment_session_id_before: str | None
    payment_intent_id_before: str | None
    payment_idempotency_key_before: str | None
    payment_status_before: str | None
    payment_transaction_id_before: str | None
    payment_provider_after: str | None
    payment_session_id_after: str | None
    payment_intent_id_after: str | None
    payment_idempotency_key_after: str | None
    payment_status_after: str
    payment_transaction_id_after: str | None
    idempotency_key: str | None
    """The key under which the change was made, where it was the first use of the key."""
    request_fields: list[str] | None
    """The fields that the request set, where it has a key and no digest: one of version 0.1."""
    request_id: str | None
    caller: str | None
    database_role: str
    payment_event_time: datetime | None
    """As the request has it; of a change by hand, the new value where it differs. So are the
    amounts; currency and reason of an override are those of a request."""
    captured_amount: int | None
    refunded_amount: int | None
    currency: str | None
    override_reason: str | None
    payment_state_before: int | None
    """None where there was no payment before."""
    payment_state_after: int
    further_idempotency_key: str | None
    """The key under which the change was made, where an earlier event of the order had it."""
    request_digest: UUID | None
    """Of a request with a key: what distinguishes it from others with the same key."""
    named_fields: int | None
    """A bit for each of ``RECORDED_FIELDS`` that the request set; None for a change by something
    else than this version of the service."""


class RefusedEvent(NamedTuple):
    """One row of ``refused_payment_events``: an event that an order has refused.

    The fields are its columns, in the order in which queries return them. What the request set has
    the names of ``PaymentUpdate``; the order's payment at that time has the prefix ``order_``.
    """

    id: int
    order_id: int
    storefront_id: int | None
    """None where there was no such order."""
    reason: str
    """The value of a ``decision.Reason``."""
    first_refused_at: datetime
    last_refused_at: datetime
    times: int
    payment_provider: str | None
    payment_session_id: str | None
    payment_intent_id: str | None
    payment_idempotency_key: str | None
    payment_status: str | None
    payment_transaction_id: str | None
    requested_state: int | None
    """What ``payment_status`` means for the order; None without one."""
    payment_event_time: datetime | None
    captured_amount: int | None
    refunded_amount: int | None
    currency: str | None
    order_payment_provider: str | None
    order_payment_session_id: str | None
    order_payment_intent_id: str | None
    order_payment_idempotency_key: str | None
    order_payment_status: str | None
    order_payment_transaction_id: str | None
    order_payment_state: int | None
    order_payment_event_time: datetime | None
    request_id: str
    caller: str | None
    written: bool
    """Whether the update was made all the same, because the rules are only tried out."""
    override_reason: str | None


class OrderPayment(NamedTuple):
    """An attempt to pay an order: what its events say together, taken and refused."""

    payment_provider: str | None
    payment_session_ids: Sequence[str]
    """Oldest first, as are the other ids."""
    payment_intent_ids: Sequence[str]
    payment_transaction_ids: Sequence[str]
    payment_status: str | None
    payment_state: int | None
    """None where no event has a status."""
    first_event_at: datetime
    last_event_at: datetime
    captured_amount: int | None
    refunded_amount: int | None
    is_current: bool
    """Whether it is the attempt that the order is at."""
    taken_events: int
    refused_events: int


@dataclass(frozen=True)
class RefusedFilter:
    """Which refused events to list: those that match all fields that are not None.

    ``refused_from`` is inclusive, ``refused_before`` is not; both are aware.
    """

    order_id: int | None = None
    reason: str | None = None
    payment_provider: str | None = None
    storefront_id: int | None = None
    refused_from: datetime | None = None
    refused_before: datetime | None = None


@dataclass(frozen=True)
class OrderFilter:
    """Which orders to list: those that match all fields that are set.

    ``created_from`` is inclusive, ``created_before`` is not; both are aware. Of the states and of
    the statuses, an order matches any one.
    """

    payment_status: str | None = None
    payment_provider: str | None = None
    storefront_id: int | None = None
    buyer_id: int | None = None
    created_from: datetime | None = None
    created_before: datetime | None = None
    order_number: str | None = None
    order_status: str | None = None
    payment_states: frozenset[PaymentState] = frozenset()
    payment_statuses: Sequence[str] = ()
    """Each once."""
    amounts_disagree: bool = False
    """Whether only orders are listed whose amounts do not fit each other or the state."""


class OrderKey(NamedTuple):
    """The place of an entry in a list by time, after which the next page begins."""

    created_at: datetime
    """The time by which the list is sorted; of stuck payments, ``payment_status_since``."""
    id: int


class HistoryKey(NamedTuple):
    """The place of an entry in an order's history with refused events, as that of an ``OrderKey``.

    The first two are of the last refused event up to there, ``refused_id`` is 0 if there is none.
    ``event_id`` is that of the last event that was taken, or 0.
    """

    first_refused_at: datetime
    refused_id: int
    event_id: int


class HistoryEntry(NamedTuple):
    """An event in an order's history, taken or refused, and its place."""

    event: PaymentEvent | RefusedEvent
    key: HistoryKey
