"""What the migrations have made that the service rests on: tables, indexes, triggers, functions.

A test compares these lists with a newly migrated database.
"""

from typing import Final, NamedTuple

TABLES: Final = (
    "orders",
    "order_payment_events",
    "refused_payment_events",
    "payment_history_epochs",
    "status_words",
)


class Index(NamedTuple):
    """An index. Any other one with the same table, columns and predicate takes its place."""

    name: str
    table: str
    columns: str
    """The key columns and expressions, as ``pg_get_indexdef`` has them."""
    predicate: str = ""
    """As ``pg_get_expr`` has it; empty for an index of all rows."""
    risk: str = ""
    """What may be without it, and if it is not unique. Without a risk, it only saves time."""

    def statement(self, name: str) -> str:
        """Return the statement that builds it under that name."""
        unique = "UNIQUE " if self.risk else ""
        where = f" WHERE {self.predicate}" if self.predicate else ""
        return f"CREATE {unique}INDEX CONCURRENTLY {name} ON {self.table} ({self.columns}){where};"


class Trigger(NamedTuple):
    """A trigger, under any name."""

    name: str
    table: str
    when: str
    """Before or after what, as CREATE TRIGGER has it."""
    type: int
    """The same, with ROW or STATEMENT, as ``tgtype`` of pg_trigger has it."""
    function: str
    risk: str
    """What may be without it."""
    condition: str = ""
    """The expression of its WHEN, if it has one, as ``pg_get_triggerdef`` has it."""

    @property
    def statement(self) -> str:
        """The statement that creates it."""
        level = "ROW" if self.type & _ROW else "STATEMENT"
        condition = f" WHEN ({self.condition})" if self.condition else ""
        return (
            f"CREATE OR REPLACE TRIGGER {self.name} {self.when} ON {self.table} FOR EACH {level}"
            f"{condition} EXECUTE FUNCTION {self.function}();"
        )


class Function(NamedTuple):
    """A function."""

    signature: str
    digest: str
    """The MD5 of its body, in which no table is preceded by the schema of the function."""
    is_security_definer: bool = False
    """Whether it runs with the rights of its owner."""


# The bits of tgtype: pg_trigger.h in PostgreSQL's sources.
_ROW, _BEFORE, _INSERT, _DELETE, _UPDATE, _TRUNCATE = (1 << bit for bit in range(6))

_UNIQUE: Final = (
    Index("orders_pkey", "orders", "id", risk="two orders may have the same id"),
    Index(
        "orders_order_number_key",
        "orders",
        "order_number",
        risk="two orders may have the same order number",
    ),
    Index(
        "idx_orders_idempotency_key",
        "orders",
        "payment_idempotency_key",
        risk="two orders may have the same idempotency key",
    ),
    Index(
        "order_payment_events_pkey",
        "order_payment_events",
        "order_id, id",
        risk="two events of an order may have the same id",
    ),
    Index(
        "idx_order_payment_events_idempotency_key",
        "order_payment_events",
        "idempotency_key",
        "idempotency_key IS NOT NULL",
        risk="an idempotency key may take effect for two orders",
    ),
    Index(
        "idx_order_payment_events_further_idempotency_key",
        "order_payment_events",
        "further_idempotency_key, request_digest",
        "further_idempotency_key IS NOT NULL",
        risk="a repeated request may take effect twice",
    ),
    Index(
        "refused_payment_events_pkey",
        "refused_payment_events",
        "id",
        risk="two refused events may have the same id",
    ),
    Index(
        "refused_payment_events_digest_key",
        "refused_payment_events",
        "digest",
        risk="a refused event that is repeated may become a second row",
    ),
    Index(
        "payment_history_epochs_pkey",
        "payment_history_epochs",
        "id",
        risk="two epochs of the history may have the same id",
    ),
    Index("status_words_pkey", "status_words", "word", risk="a word may have two meanings"),
)

_OF_LISTS: Final = {
    "idx_orders_created": ("created_at, id", ""),
    "idx_orders_storefront_created": ("storefront_id, created_at, id", ""),
    "idx_orders_buyer_created": ("buyer_id, created_at, id", ""),
    "idx_orders_payment_status_created": ("payment_status, created_at, id", ""),
    "idx_orders_payment_provider_created": ("payment_provider, created_at, id", ""),
    "idx_orders_payment_state_created": (
        "payment_state, created_at, id",
        "(payment_state IS NULL OR payment_state <> 9)"
        " AND (payment_status::text <> 'pending'::text OR payment_state <> 2)",
    ),
    "idx_orders_stuck_payments": (
        "payment_status_since, id",
        "payment_provider IS NOT NULL AND (payment_state IS NULL OR payment_state < 6)",
    ),
    "idx_orders_amounts_disagree": (
        "created_at, id",
        "payment_amounts_disagree(payment_state, captured_amount, refunded_amount, total_amount)",
    ),
}

_OF_REFERENCES: Final = {
    "idx_orders_payment_session": "payment_session_id",
    "idx_orders_payment_intent": "payment_intent_id",
    "idx_orders_provider_session": "payment_provider, payment_session_id",
}

_OF_REPLACED_REFERENCES: Final = ("payment_session_id", "payment_intent_id")

# An expression is compared as it was written, with its quotes.
_PROVIDER: Final = (
    "translate(payment_provider::text, 'ABCDEFGHIJKLMNOPQRSTUVWXYZ-_ \t\n\r\x0c\x0b'::text,"
    " 'abcdefghijklmnopqrstuvwxyz'::text)"
)

_OF_REFUSED: Final = {
    "order": "order_id",
    "storefront": "storefront_id",
    "reason": "reason",
    "payment_provider": _PROVIDER,
    "payment_session_id": "payment_session_id",
    "payment_intent_id": "payment_intent_id",
    "payment_idempotency_key": "payment_idempotency_key",
    "payment_transaction_id": "payment_transaction_id",
}

_FOR_SPEED: Final = (
    *(Index(name, "orders", *of) for name, of in _OF_LISTS.items()),
    *(Index(name, "orders", columns) for name, columns in _OF_REFERENCES.items()),
    *(
        Index(
            f"idx_order_payment_events_{column}_before",
            "order_payment_events",
            f"{column}_before",
            f"{column}_before IS NOT NULL"
            f" AND {column}_after::text IS DISTINCT FROM {column}_before::text",
        )
        for column in _OF_REPLACED_REFERENCES
    ),
    Index(
        "idx_order_payment_events_payment_transaction_id",
        "order_payment_events",
        "payment_transaction_id_after",
        "payment_transaction_id_after::text IS DISTINCT FROM payment_transaction_id_before::text",
    ),
    *(
        Index(f"idx_{table}_transaction", table, "transaction_id")
        for table in ("order_payment_events", "refused_payment_events")
    ),
    Index("idx_refused_payment_events_first", "refused_payment_events", "first_refused_at, id"),
    *(
        Index(
            f"idx_refused_payment_events_{name}",
            "refused_payment_events",
            f"{columns}, first_refused_at, id",
        )
        for name, columns in _OF_REFUSED.items()
    ),
)

INDEXES: Final = (*_UNIQUE, *_FOR_SPEED)

_HISTORY: Final = "changes of payments may be missing in the history"
_APPEND_ONLY: Final = "events of the history may be changed or deleted"
_REFUSED_APPEND_ONLY: Final = "refused events may be changed or deleted"

_HAS_PAYMENT: Final = (
    "NOT (new.payment_status::text = 'pending'::text AND new.payment_provider IS NULL"
    " AND new.payment_session_id IS NULL AND new.payment_intent_id IS NULL"
    " AND new.payment_idempotency_key IS NULL AND new.payment_transaction_id IS NULL)"
)

TRIGGERS: Final = (
    Trigger(
        "payment_begins",
        "orders",
        "BEFORE INSERT",
        _BEFORE | _INSERT | _ROW,
        "begin_payment",
        "a new payment may have no version and no time",
        f"new.payment_status_since IS NULL AND {_HAS_PAYMENT}",
    ),
    Trigger(
        "payment_inserted",
        "orders",
        "AFTER INSERT",
        _INSERT | _ROW,
        "record_payment_change",
        _HISTORY,
        _HAS_PAYMENT,
    ),
    Trigger(
        "payment_updated",
        "orders",
        "AFTER UPDATE",
        _UPDATE | _ROW,
        "record_payment_change",
        _HISTORY,
    ),
    Trigger(
        "order_payment_events_append_only",
        "order_payment_events",
        "BEFORE UPDATE OR DELETE OR TRUNCATE",
        _BEFORE | _UPDATE | _DELETE | _TRUNCATE,
        "refuse_change_of_order_payment_events",
        _APPEND_ONLY,
    ),
    Trigger(
        "refused_payment_events_append_only",
        "refused_payment_events",
        "BEFORE UPDATE OR DELETE",
        _BEFORE | _UPDATE | _DELETE | _ROW,
        "refuse_change_of_refused_payment_events",
        _REFUSED_APPEND_ONLY,
    ),
    Trigger(
        "refused_payment_events_not_truncated",
        "refused_payment_events",
        "BEFORE TRUNCATE",
        _BEFORE | _TRUNCATE,
        "refuse_change_of_refused_payment_events",
        _REFUSED_APPEND_ONLY,
    ),
    Trigger(
        "payment_history_epochs_append_only",
        "payment_history_epochs",
        "BEFORE UPDATE OR DELETE OR TRUNCATE",
        _BEFORE | _UPDATE | _DELETE | _TRUNCATE,
        "refuse_change_of_payment_history_epochs",
        "epochs of the history may be changed or deleted",
    ),
)

FUNCTIONS: Final = (
    Function("begin_payment()", "3577c8fb0a75eff15afd4ecca5732e22"),
    Function(
        "record_payment_change()", "6624615c66dc94db280d492ae16c6f6c", is_security_definer=True
    ),
    Function("refuse_change_of_order_payment_events()", "f61f5b88297af9ae2675345cffb1876b"),
    Function("refuse_change_of_payment_history_epochs()", "9335e0a366289d8a528826e06eef2103"),
    Function("refuse_change_of_refused_payment_events()", "6eaa0ea26ec329bf47ec0f7205eeb960"),
    Function(
        "is_other_payment_request(bigint,character varying,text)",
        "c85f83690741d8444a3e21822af86a8f",
    ),
    Function(
        "payment_amounts_disagree(smallint,bigint,bigint,bigint)",
        "38187b09c38b3eb886ed3a20c2aaedf3",
    ),
    Function("payment_event_texts_bounded(text,text)", "a797bcce6e844c30f07634a7a0c1ee35"),
)
