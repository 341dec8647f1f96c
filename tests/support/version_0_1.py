"""A worker of the version before the states of payments, 0.1, reduced to its updates.

Its statements are recorded from that version, and do not follow later ones: that one serves beside
the present version while an installation is brought up to date.
"""

from collections.abc import Mapping
from itertools import count
from typing import Any, Final

import asyncpg

MIGRATION: Final = "20261125000001"
"""The last migration of that version."""

COLUMNS: Final = (
    "payment_provider",
    "payment_session_id",
    "payment_intent_id",
    "payment_idempotency_key",
    "payment_status",
    "payment_transaction_id",
)
ORDER: Final = (
    "id",
    "order_number",
    "buyer_id",
    "storefront_id",
    "status",
    "payment_status",
    "currency",
    "subtotal_amount",
    "shipping_amount",
    "tax_amount",
    "discount_amount",
    "total_amount",
    "created_at",
    "updated_at",
    "payment_provider",
    "payment_session_id",
    "payment_intent_id",
    "payment_idempotency_key",
    "payment_transaction_id",
)

_EVENT_BY_KEY: Final = (
    'SELECT "id","order_id","storefront_id","created_at","payment_provider_before",'
    '"payment_session_id_before","payment_intent_id_before","payment_idempotency_key_before",'
    '"payment_status_before","payment_transaction_id_before","payment_provider_after",'
    '"payment_session_id_after","payment_intent_id_after","payment_idempotency_key_after",'
    '"payment_status_after","payment_transaction_id_after","idempotency_key","request_fields",'
    '"request_id","caller","database_role" FROM "order_payment_events" '
    "WHERE \"idempotency_key\"=$1 AND pg_logical_emit_message(true,'listings','') IS NOT NULL"
)

# Of each status, those that it may not follow. Others are not checked.
_UNSETTLED: Final = (
    "pending",
    "processing",
    "requires_action",
    "authorized",
    "failed",
    "cancelled",
    "expired",
)
_DISALLOWED_BEFORE: Final = dict.fromkeys(
    _UNSETTLED, ("paid", "partially_refunded", "disputed", "refunded", "charged_back")
) | {
    "paid": ("partially_refunded", "refunded", "charged_back"),
    "partially_refunded": ("disputed", "refunded", "charged_back"),
    "refunded": ("disputed", "charged_back"),
    "disputed": (*_UNSETTLED, "refunded", "charged_back"),
    "charged_back": (*_UNSETTLED, "paid", "partially_refunded", "refunded"),
}


class StatusRefused(Exception):
    """The order's status may not become the new one."""


class KeyReused(Exception):
    """The key was used for another order, or with other values."""


class OldWorker:
    """Updates payments, on one connection that it keeps, with prepared statements."""

    def __init__(self, connection: "asyncpg.Connection[Any]") -> None:
        self._connection = connection

    async def update(self, order_id: int, **params: str) -> bool:
        """Set payment columns, and return whether the update was made before.

        Raises StatusRefused, KeyReused or PostgresError.
        """
        columns = tuple(name for name in COLUMNS if name in params)
        arguments: list[object] = [params[name] for name in columns]
        if (status := params.get("payment_status")) is not None:
            arguments.append(_DISALLOWED_BEFORE.get(status, ()))
        for _ in range(5):
            try:
                row = await self._connection.fetchrow(
                    update_payment(columns), order_id, "old-worker", "", *arguments
                )
            except asyncpg.UniqueViolationError as error:
                assert error.constraint_name in (
                    "idx_orders_idempotency_key",
                    "idx_order_payment_events_idempotency_key",
                )
                row = None
            if row is not None:
                return False
            if await self._is_replay(order_id, params):
                return True
        raise AssertionError(f"the payment of order {order_id} keeps changing")

    async def _is_replay(self, order_id: int, params: Mapping[str, str]) -> bool:
        key = params.get("payment_idempotency_key")
        event = None if key is None else await self._connection.fetchrow(_EVENT_BY_KEY, key)
        if event is None:
            status = params.get("payment_status")
            current = await self._connection.fetchval(
                "SELECT payment_status FROM orders WHERE id = $1", order_id
            )
            if status is not None and current in _DISALLOWED_BEFORE.get(status, ()):
                raise StatusRefused(f"{current} -> {status}")
            return False
        fields = params.keys() if event["request_fields"] is None else set(event["request_fields"])
        if (
            event["order_id"] == order_id
            and fields == params.keys()
            and all(event[f"{name}_after"] == value for name, value in params.items())
        ):
            return True
        raise KeyReused(key)


def update_payment(columns: tuple[str, ...]) -> str:
    """Return the UPDATE for these columns, as that version has written it."""
    numbers = count(4)
    values = {name: f"${next(numbers)}" for name in columns}
    sets = "".join(f'"{name}"={value},' for name, value in values.items())
    conditions = ""
    if "payment_status" in values:
        conditions += f' AND "payment_status"<>ALL(${next(numbers)})'
    if key := values.get("payment_idempotency_key"):
        conditions += f' AND "payment_idempotency_key" IS DISTINCT FROM {key}'
        conditions += _set("listings.request_fields", f"'{','.join(columns)}'")
    conditions += _set("listings.request_id", "$2") + _set("listings.caller", "$3")
    returned = ",".join(f'"orders"."{name}"' for name in ORDER)
    return (
        f'UPDATE "orders" SET {sets}"updated_at"='
        "greatest(clock_timestamp(),\"updated_at\"+INTERVAL '1 MICROSECOND')"
        f' WHERE "id"=$1{conditions} RETURNING {returned}'
    )


def _set(setting: str, value: str) -> str:
    return f" AND set_config('{setting}',{value},true) IS NOT NULL"
