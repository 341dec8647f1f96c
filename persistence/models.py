"""The rows of the tables, as plain values."""

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime
from typing import Final, NamedTuple, TypeAlias


class Order(NamedTuple):
    """One row of ``orders``. The fields are its columns, in the order in which queries return them.

    Amounts are in minor units of ``currency`` (ISO 4217); times are aware, in UTC.
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


PAYMENT_COLUMNS: Final = (
    "payment_provider",
    "payment_session_id",
    "payment_intent_id",
    "payment_idempotency_key",
    "payment_status",
    "payment_transaction_id",
)
"""The columns that ``OrderRepository.update_payment_info`` may set."""


Storefronts: TypeAlias = Collection[int] | None
"""The tenant scope of a caller: the storefronts whose orders exist for it; None for all."""


class Origin(NamedTuple):
    """The request that makes an update, and its authenticated caller, for the history."""

    request_id: str
    caller: str | None = None


class Update(NamedTuple):
    """The result of an update: the order as it stands, and whether the update was made before."""

    order: Order
    replayed: bool


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
    request_fields: list[str] | None
    request_id: str | None
    caller: str | None
    database_role: str


@dataclass(frozen=True)
class OrderFilter:
    """Which orders to list: those that match all fields that are not None.

    ``created_from`` is inclusive, ``created_before`` is not; both are aware.
    """

    payment_status: str | None = None
    payment_provider: str | None = None
    storefront_id: int | None = None
    buyer_id: int | None = None
    created_from: datetime | None = None
    created_before: datetime | None = None


class OrderKey(NamedTuple):
    """The place of an order in a list by age, after which the next page begins."""

    created_at: datetime
    id: int
