"""The role of the service in PostgreSQL, and the privileges that it needs.

A migration creates the role, grants it these and no others, and explains why. The user that the
service logs in as is a member of the role, or in the embedded PostgreSQL the role itself.
"""

from typing import Final, NamedTuple

from persistence.models import PAYMENT_COLUMNS

APPLICATION: Final = "listings_app"

OWNER: Final = "listings"
"""The superuser that owns, migrates and seeds the database of the embedded PostgreSQL."""


class Execute(NamedTuple):
    """The privilege to call a function, which is one that the migrations create."""

    function: str
    """The name, with the types of the arguments in brackets."""
    is_for_checks: bool = False
    """Whether it is called for CHECKs alone, which do not exist without it."""

    def __str__(self) -> str:
        """Return the privilege as GRANT takes it."""
        return f"EXECUTE ON FUNCTION {self.function}"


class Privilege(NamedTuple):
    """A privilege on a table or a sequence, or on some columns of a table."""

    name: str
    table: str
    columns: tuple[str, ...] = ()

    def __str__(self) -> str:
        """Return the privilege as GRANT takes it."""
        columns = f" ({', '.join(self.columns)})" if self.columns else ""
        return f"{self.name}{columns} ON {self.table}"


_DERIVED: Final = (
    "captured_amount",
    "refunded_amount",
    "payment_event_time",
    "payment_status_since",
    "payment_version",
    "payment_state",
    "contested_from",
    "payment_session_stale",
    "payment_intent_stale",
)

REQUIRED: Final = (
    Privilege("SELECT", "orders"),
    Privilege("UPDATE", "orders", (*PAYMENT_COLUMNS, *_DERIVED, "updated_at")),
    Privilege("SELECT", "order_payment_events"),
    Privilege("SELECT", "refused_payment_events"),
    Privilege("INSERT", "refused_payment_events"),
    Privilege("UPDATE", "refused_payment_events", ("times", "last_refused_at")),
    Privilege("SELECT", "status_words"),
    Privilege("SELECT", "payment_history_epochs"),
    Privilege("SELECT", "order_payment_events_id_seq"),
    Privilege("SELECT", "refused_payment_events_id_seq"),
    Privilege("SELECT", "_yoyo_migration"),
)

CALLED: Final = (
    Execute("is_other_payment_request(bigint, varchar, text)"),
    # Also called by PostgreSQL for each row that is written, for the condition of an index.
    Execute("payment_amounts_disagree(smallint, bigint, bigint, bigint)"),
    Execute("payment_event_texts_bounded(text, text)", is_for_checks=True),
)
"""The functions that statements of the service call, and CHECKs of what they write.

PUBLIC may call a function unless ALTER DEFAULT PRIVILEGES says otherwise, so they are granted. A
trigger's function needs no privilege when it fires.
"""

SYSTEM: Final = Execute("pg_control_system()")
"""A function of PostgreSQL, which PUBLIC may call by default: it tells which cluster this is."""
