"""The rows of the tables, as plain values."""

from datetime import datetime
from typing import Final, NamedTuple


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
