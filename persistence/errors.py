"""The exceptions that this package raises, whichever driver is below it."""

from collections.abc import Sequence
from typing import Final

from persistence.decision import Reason
from persistence.models import Order, PaymentUpdate
from persistence.payment_states import PaymentState


class PersistenceError(Exception):
    """The base class of all errors that this package raises."""


class OrderNotFound(PersistenceError):
    """No order has this id, or none that exists for the caller. Nothing was written."""

    def __init__(self, order_id: int) -> None:
        super().__init__(f"there is no order {order_id}")
        self.order_id = order_id


class IdempotencyKeyReused(PersistenceError):
    """The idempotency key was used for another order. The order was not changed."""

    reason: Final = Reason.KEY_REUSED

    def __init__(self, order_id: int, used_for: int) -> None:
        super().__init__(f"the idempotency key for order {order_id} was used for order {used_for}")
        self.order_id = order_id


class PaymentEventRefused(PersistenceError):
    """The rules of payments refuse the event. The order was not changed; the event is on record."""

    def __init__(
        self, reason: Reason, order: Order, update: PaymentUpdate, new: PaymentState | None
    ) -> None:
        """``new`` is the state that the update would lead to, None if it has no status."""
        now = PaymentState(order.payment_state)
        change = f" -> {new.name}" if new else ""
        super().__init__(f"order {order.id} refuses the event: {reason.value}, {now.name}{change}")
        self.reason = reason
        self.order = order
        self.update = update
        self.now = now
        self.new = new


class EtagMismatch(PersistenceError):
    """The order is not the one that the caller has read. Nothing was written or recorded."""

    def __init__(self, order_id: int) -> None:
        super().__init__(f"the payment of order {order_id} has changed since it was read")
        self.order_id = order_id


class InvalidStatusWords(PersistenceError):
    """A file of words and states cannot be used. The message names the file, the line and why."""


class PaymentNotFound(PersistenceError):
    """No order has, or ever had, this payment reference."""


class PaymentAmbiguous(PersistenceError):
    """More than one order has this payment reference; or had it; or has refused it."""

    def __init__(self, reference: str, order_ids: Sequence[int]) -> None:
        """``order_ids`` are some of the orders, in ascending order; all exist for the caller."""
        super().__init__(f"more than one order has had this {reference}")
        self.order_ids = order_ids


class InvalidPosition(PersistenceError):
    """The text is not a position in the history of payments."""


class HistoryChanged(PersistenceError):
    """The history is not the one that a watcher has read. The message says what is missing.

    An event that it has seen is gone, as after a fail-over to a standby that lacked the last
    commits; or the database is another one, as after a restore.
    """


class WatcherTooSlow(PersistenceError):
    """A watcher read its events too slowly, and they were dropped."""


class WatchEnded(PersistenceError):
    """The process stops. It sends no more events."""


class InvalidValue(PersistenceError):
    """PostgreSQL cannot store a value: it is too long, or has a NUL. Nothing was written."""


class InvalidDatabaseURL(PersistenceError):
    """The URL of the database cannot be used. The message says why, without its password."""


class DatabaseUnavailable(PersistenceError):
    """The database cannot be reached. The update may or may not have been written."""


class DatabaseUnreachable(DatabaseUnavailable):
    """No connection to the database was made. Nothing was written."""


class DatabaseFull(DatabaseUnavailable):
    """The database's disk is full. Nothing was written."""


class DatabaseReadOnly(DatabaseUnavailable):
    """The database takes no writes, for example as a standby. Nothing was written."""


class RefusalNotRecorded(DatabaseUnavailable):
    """An event is refused, and the record of it cannot be written. Nothing was written."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"the event is refused ({reason}), which cannot be recorded at present")


class DatabaseTimeout(PersistenceError):
    """A statement took longer than its time-out. It may or may not have been written."""

    def __init__(self, message: str = "the database did not answer in time") -> None:
        super().__init__(message)


class TransactionConflict(PersistenceError):
    """A concurrent transaction conflicts. Nothing was written; trying again may succeed."""


class UniqueViolation(PersistenceError):
    """A value that must be unique exists already. Nothing was written."""

    def __init__(self, constraint: str | None) -> None:
        super().__init__(f"unique constraint {constraint} is violated")


class RolledBack(PersistenceError):
    """PostgreSQL rejected one statement of a batch. None of the batch was written."""


class DatabaseFailure(PersistenceError):
    """PostgreSQL, or its driver, reported any other error, which is the ``__cause__``."""


class MigrationError(PersistenceError):
    """A migration failed. The message is for operators, and says what to do."""


class SeedError(PersistenceError):
    """Demo orders could not be added, and none was. The message says why."""


class MaintenanceError(PersistenceError):
    """An operator's command could not finish. The message says why, and what to do."""


class EmbeddedPostgresError(PersistenceError):
    """The embedded PostgreSQL cannot be used. The message says why, and what to do."""


class SchemaOutdated(PersistenceError):
    """The database lacks migrations that this version of the service needs."""

    def __init__(self, missing: list[str]) -> None:
        super().__init__(
            "the database lacks "
            + ", ".join(missing)
            + "; apply them with `listings migrate up`, then start again"
        )
        self.missing = missing
