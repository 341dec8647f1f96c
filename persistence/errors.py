"""What can go wrong in the database, in words that name no driver.

Callers of this package meet these exceptions and no others.
"""

from collections.abc import Sequence


class PersistenceError(Exception):
    """The base of every error that this package raises on purpose."""


class OrderNotFound(PersistenceError):
    """No order has this id. Nothing was written."""

    def __init__(self, order_id: int) -> None:
        super().__init__(f"there is no order {order_id}")
        self.order_id = order_id


class IdempotencyKeyReused(PersistenceError):
    """The idempotency key was used for another order, or with other values. Nothing was written."""

    def __init__(self, order_id: int, used_for: int) -> None:
        super().__init__(
            f"the idempotency key for order {order_id} was used "
            + (f"for order {used_for}" if used_for != order_id else "with other values")
        )
        self.order_id = order_id
        self.same_order = used_for == order_id


class PaymentStatusRefused(PersistenceError):
    """The order's payment status may not become the new one. Nothing was written."""

    def __init__(self, order_id: int, current: str, new: str, allowed: Sequence[str]) -> None:
        super().__init__(
            f"the payment status of order {order_id} is {current} and may not become {new}"
        )
        self.order_id = order_id
        self.current = current
        self.new = new
        self.allowed = allowed


class PaymentNotFound(PersistenceError):
    """No order has ever had this payment reference."""


class PaymentAmbiguous(PersistenceError):
    """More than one order has had this payment reference."""


class InvalidPosition(PersistenceError):
    """The text does not say a position in the ledger."""


class WatcherTooSlow(PersistenceError):
    """A watcher did not take its events in time, and they had to be dropped."""


class WatchEnded(PersistenceError):
    """The process stops, and sends no more events."""


class InvalidValue(PersistenceError):
    """PostgreSQL cannot store a value as it came: too long, or with a NUL. Nothing was written."""


class InvalidDatabaseURL(PersistenceError):
    """The URL of the database cannot be used. The message says why, without a part of it."""


class DatabaseUnavailable(PersistenceError):
    """The database cannot be reached. What was under way may or may not have been written."""


class DatabaseUnreachable(DatabaseUnavailable):
    """No connection to the database could be had. Nothing was written."""


class DatabaseFull(DatabaseUnavailable):
    """The database has no disk left to write on. Nothing was written."""


class DatabaseReadOnly(DatabaseUnavailable):
    """The database takes no writes, as a standby. Nothing was written."""


class DatabaseTimeout(PersistenceError):
    """A statement took longer than allowed. It may or may not have been written."""


class TransactionConflict(PersistenceError):
    """A concurrent transaction stood in the way. Nothing was written; trying again may succeed."""


class UniqueViolation(PersistenceError):
    """A value that must be unique is there already. Nothing was written."""

    def __init__(self, constraint: str | None) -> None:
        super().__init__(f"unique constraint {constraint} is violated")
        self.constraint = constraint


class RolledBack(PersistenceError):
    """PostgreSQL refused one of several statements. None of them was made."""


class DatabaseFailure(PersistenceError):
    """The database answered with an error that nobody expected. See ``__cause__``."""


class MigrationError(PersistenceError):
    """Migrating failed. The message is for a person, and says what to do."""


class SeedError(PersistenceError):
    """Demo orders could not be added; none was. The message says why."""


class EmbeddedPostgresError(PersistenceError):
    """The embedded PostgreSQL cannot be used: the message says what is wrong and what to do."""


class SchemaOutdated(PersistenceError):
    """The database lacks migrations that this version needs."""

    def __init__(self, missing: list[str]) -> None:
        super().__init__(
            "the database lacks "
            + ", ".join(missing)
            + "; apply them with `listings migrate up`, then start again"
        )
        self.missing = missing
