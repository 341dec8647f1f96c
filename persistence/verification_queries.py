"""The statements of ``listings verify``: which orders are looked at closely, and what they have.

Two million orders are too many to fetch. So PostgreSQL passes over the orders whose rows and events
certainly fulfil ``history_rules``, and returns the others, of which few break them. A payment is
compared by a hash of its columns: collecting the values themselves takes three times as long.
"""

from collections.abc import Mapping
from typing import Final, NamedTuple

from persistence.models import PAYMENT_COLUMNS
from persistence.payment_states import UNPAID, PaymentState

# What no payment has, in place of null.
_NULL: Final = r"E'\x01'"


def _hash(column: Mapping[str, str]) -> str:
    """Return the hash of a payment; ``column`` has an expression for each name."""
    term = f"coalesce({column['payment_state']}, 0)::bigint"
    for name in PAYMENT_COLUMNS:
        # Before the first event, all columns are null where the order came with its payment.
        null = f"'{UNPAID}'" if name == "payment_status" else _NULL
        term = f"hashtextextended(coalesce({column[name]}, {null}), {term})"
    return term


def _columns(prefix: str = "", suffix: str = "") -> dict[str, str]:
    names = (*PAYMENT_COLUMNS, "payment_state")
    return {name: f"{prefix}{name}{suffix}" for name in names}


_UNPAID: Final = dict.fromkeys(PAYMENT_COLUMNS, "NULL::text")
_UNPAID_HASHES: Final = (
    _hash(_UNPAID | {"payment_state": "NULL::smallint"}),
    _hash(_UNPAID | {"payment_state": str(PaymentState.PENDING.value)}),
)
_ORDER_HASH: Final = _hash(_columns("o."))
_ORDER_HASH_WITHOUT_STATE: Final = _hash(_columns("o.") | {"payment_state": "NULL::smallint"})

# Of an event alone: what breaks a rule, and what only other events can explain.
_ODD_EVENT: Final = f"""
    (payment_status_before IS NULL AND num_nonnulls(
        named_fields, {", ".join(_columns(suffix="_before").values())}) > 0)
    OR (coalesce(idempotency_key, further_idempotency_key)
            IS DISTINCT FROM payment_idempotency_key_after
        AND (coalesce(idempotency_key, further_idempotency_key) IS NOT NULL
            OR payment_idempotency_key_after IS DISTINCT FROM payment_idempotency_key_before))
    OR (further_idempotency_key IS NOT NULL AND (
        idempotency_key IS NOT NULL OR request_digest IS NULL
        OR further_idempotency_key IS DISTINCT FROM payment_idempotency_key_before))
    OR (transaction_id >= (SELECT pg_snapshot_xmax(pg_current_snapshot())) AND id > $3)
    OR (num_nonnulls(captured_amount, refunded_amount) > 0 AND (
        override_reason IS NOT NULL OR (named_fields IS NULL AND request_digest IS NULL)))
"""

_ODD_ORDER: Final = f"""
    (h.last <> {_ORDER_HASH} AND h.last <> {_ORDER_HASH_WITHOUT_STATE})
    OR o.payment_version <> ALL (h.transactions)
    OR (o.payment_version IS NULL AND h.has_requests)
    OR o.captured_amount IS DISTINCT FROM h.captured_amount
    OR o.refunded_amount IS DISTINCT FROM h.refunded_amount
    OR (o.payment_event_time IS NOT NULL
        AND o.payment_event_time IS DISTINCT FROM h.payment_event_time)
"""

SCREEN: Final = f"""
    WITH history AS (
        SELECT order_id,
            count(*) AS events,
            max(id) AS last_id,
            array_agg({_hash(_columns(suffix="_before"))}) AS before,
            array_agg({_hash(_columns(suffix="_after"))}) AS after,
            array_agg(transaction_id) AS transactions,
            max(captured_amount) AS captured_amount,
            max(refunded_amount) AS refunded_amount,
            max(payment_event_time) AS payment_event_time,
            bool_or(named_fields IS NOT NULL) AS has_requests,
            bool_or({_ODD_EVENT}) AS is_odd
        FROM (
            SELECT * FROM order_payment_events WHERE order_id > $1 AND order_id <= $2
            ORDER BY order_id, id
        ) event
        GROUP BY order_id
    ), judged AS (
        SELECT coalesce(o.id, h.order_id) AS order_id, o.id IS NOT NULL AS exists,
            h.events, h.last_id,
            CASE
                WHEN h.order_id IS NULL THEN
                    {_ORDER_HASH} <> ALL (ARRAY[{", ".join(_UNPAID_HASHES)}])
                    OR num_nonnulls(o.captured_amount, o.refunded_amount) > 0
                ELSE h.is_odd
                    OR h.before[1] <> ALL (ARRAY[{", ".join(_UNPAID_HASHES)}])
                    OR h.before[2:] <> h.after[:h.events - 1]
                    OR (o.id IS NOT NULL AND ({_ODD_ORDER}))
            END AS is_odd
        FROM (SELECT *, after[events] AS last FROM history) h
        FULL JOIN (SELECT * FROM orders WHERE id > $1 AND id <= $2) o ON o.id = h.order_id
    )
    SELECT count(*) FILTER (WHERE exists) AS orders,
        coalesce(sum(events), 0)::bigint AS events,
        coalesce(max(last_id), 0) AS last_event_id,
        coalesce(array_agg(order_id ORDER BY order_id) FILTER (WHERE is_odd), '{{}}') AS odd
    FROM judged
"""
"""Of the orders with ids after $1 up to $2: counts, and the ids of those to be looked at.

Events with ids up to $3 may have transaction ids of the future."""

NEXT: Final = """
    SELECT max(id) FROM (SELECT id FROM orders WHERE id > $1 ORDER BY id LIMIT $2) chunk
"""
ORDERS: Final = "SELECT * FROM orders WHERE id = ANY ($1::bigint[]) ORDER BY id"
EVENTS: Final = """
    SELECT * FROM order_payment_events WHERE order_id = ANY ($1::bigint[]) ORDER BY order_id, id
"""
END_OF_TRANSACTIONS: Final = "SELECT pg_snapshot_xmax(pg_current_snapshot())"

_REFUSED_FAULTS: Final = {
    "was not refused any number of times": "r.times <= 0",
    "was last refused before it was first": "r.last_refused_at < r.first_refused_at",
    "has a transaction id of the future": """
        r.transaction_id >= (SELECT pg_snapshot_xmax(pg_current_snapshot())) AND r.id > $3""",
}
REFUSED: Final = """
    SELECT count(*) AS refused, coalesce(max(r.id), 0) AS last_refused_id
    FROM refused_payment_events r WHERE r.order_id > $1 AND r.order_id <= $2
"""
REFUSED_FAULTS: Final = f"""
    SELECT r.order_id, r.id, faults FROM refused_payment_events r
    CROSS JOIN LATERAL (SELECT array_remove(ARRAY[
        {", ".join(f"CASE WHEN {rule} THEN '{text}' END" for text, rule in _REFUSED_FAULTS.items())}
    ], NULL)) rule (faults)
    WHERE r.order_id > $1 AND r.order_id <= $2 AND faults <> '{{}}'
    ORDER BY r.order_id, r.id
"""
"""The refused events for the orders with ids after $1 up to $2 that are not as they should be."""


class Unique(NamedTuple):
    """What must be unique: the columns of a table."""

    kept_by: str
    """The unique index that sees to it, in ``diagnostics.objects``."""
    table: str
    columns: tuple[str, ...]
    fault: str
    """What a repetition is, of the row with the id that follows."""

    @property
    def repetitions(self) -> str:
        """The query of the order, the id, and the id of the first row, of each repetition."""
        order_id = "id" if self.table == "orders" else "order_id"
        return f"""
            SELECT order_id, id, first_id FROM (
                SELECT {order_id} AS order_id, id, first_value(id) OVER (
                    PARTITION BY {", ".join(self.columns)} ORDER BY id
                ) AS first_id
                FROM {self.table}
                WHERE {" AND ".join(f"{column} IS NOT NULL" for column in self.columns)}
            ) used WHERE id <> first_id ORDER BY order_id, id
        """


UNIQUE: Final = (
    Unique(
        "idx_orders_idempotency_key",
        "orders",
        ("payment_idempotency_key",),
        "has the idempotency key of order",
    ),
    Unique(
        "idx_order_payment_events_idempotency_key",
        "order_payment_events",
        ("idempotency_key",),
        "records the first use of an idempotency key, as does event",
    ),
    Unique(
        "idx_order_payment_events_further_idempotency_key",
        "order_payment_events",
        ("further_idempotency_key", "request_digest"),
        "is the same request as event",
    ),
    Unique(
        "refused_payment_events_digest_key",
        "refused_payment_events",
        ("digest",),
        "repeats refused event",
    ),
)

SEQUENCE: Final = """
    SELECT name, CASE WHEN has_sequence_privilege(name, 'SELECT')
        THEN coalesce(pg_sequence_last_value(name::regclass), 0) END AS last
    FROM (SELECT pg_get_serial_sequence($1, 'id') AS name) sequence
"""
"""The sequence of the ids of table $1, and the last id that it gave, 0 for none.

The name is null where there is none, the id where the role may not read it."""

LAST_ORDER: Final = "SELECT coalesce(max(id), 0) FROM orders"
