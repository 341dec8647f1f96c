"""Shared by the peers in Python: the fields, the hand-written checks, the statement."""

from collections.abc import Mapping
from functools import cache
from typing import Final

PAYMENT_FIELDS: Final = {
    "payment_provider": 50,
    "payment_session_id": 255,
    "payment_intent_id": 255,
    "payment_idempotency_key": 255,
    "payment_status": 50,
    "payment_transaction_id": 255,
}
"""Each field with its maximum length in characters."""

KEY_TAKEN: Final = "payment_idempotency_key belongs to another order"

_COLUMNS = (
    "id, order_number, buyer_id, storefront_id, status, payment_status, currency, subtotal_amount, "
    "shipping_amount, tax_amount, discount_amount, total_amount, created_at, updated_at, "
    "payment_provider, payment_session_id, payment_intent_id, payment_idempotency_key, "
    "payment_transaction_id"
)


def problem(order_id: int, params: Mapping[str, str]) -> str | None:
    """Return the error of an invalid request; None if it is valid."""
    if order_id <= 0:
        return "order_id must be greater than 0"
    if not params:
        return f"set at least one of {', '.join(PAYMENT_FIELDS)}"
    for name, value in params.items():
        if not 1 <= len(value) <= PAYMENT_FIELDS[name]:
            return f"{name} must have 1 to {PAYMENT_FIELDS[name]} characters"
        if "\0" in value:
            return f"{name} must not contain U+0000"
    return None


@cache
def update(columns: tuple[str, ...]) -> str:
    """Return the statement that sets ``columns`` to ``$2`` and on, of the order ``$1``."""
    sets = "".join(f"{column} = ${number}, " for number, column in enumerate(columns, start=2))
    return (
        f"UPDATE orders SET {sets}"
        "updated_at = greatest(clock_timestamp(), updated_at + interval '1 microsecond') "
        f"WHERE id = $1 RETURNING {_COLUMNS}"
    )
