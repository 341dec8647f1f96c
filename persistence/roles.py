"""The role of the service in PostgreSQL, and the rights that it needs there.

A migration makes the role and grants it these and no others; it says why no more. The user that
the service logs in by is a member of the role, or in the embedded PostgreSQL the role itself.
"""

from typing import Final, NamedTuple

from persistence.models import PAYMENT_COLUMNS

APPLICATION: Final = "listings_app"

OWNER: Final = "listings"
"""The superuser who owns, migrates and fills the database of the embedded PostgreSQL."""


class Right(NamedTuple):
    """A privilege on a table, or on some of its columns only."""

    privilege: str
    table: str
    columns: tuple[str, ...] = ()

    def __str__(self) -> str:
        """Return the right as it stands in a GRANT."""
        columns = f" ({', '.join(self.columns)})" if self.columns else ""
        return f"{self.privilege}{columns} ON {self.table}"


NEEDED: Final = (
    Right("SELECT", "orders"),
    Right("UPDATE", "orders", (*PAYMENT_COLUMNS, "updated_at")),
    Right("SELECT", "order_payment_events"),
    Right("SELECT", "_yoyo_migration"),
)
