"""What a driver's error means for the statement that ran, in this package's words."""

from collections.abc import Callable
from typing import Final

import asyncpg

from persistence import errors

# By how a SQLSTATE begins: the first that fits.
# https://www.postgresql.org/docs/current/errcodes-appendix.html
_MEANINGS: Final[dict[str, tuple[Callable[[str], errors.PersistenceError], str]]] = {
    "57014": (errors.DatabaseTimeout, "the database did not answer in time"),  # cancelled
    "55P03": (errors.DatabaseTimeout, "the database did not answer in time"),  # lock_timeout
    "53100": (errors.DatabaseFull, "the database's disk is full"),
    # A standby, a primary that was demoted, default_transaction_read_only.
    "25006": (errors.DatabaseReadOnly, "the database takes no writes at present"),
    "40001": (errors.TransactionConflict, "a concurrent transaction stood in the way"),
    "40P01": (errors.TransactionConflict, "a concurrent transaction stood in the way"),
    "22": (errors.InvalidValue, "PostgreSQL cannot store a value of this statement"),
    "08": (errors.DatabaseUnavailable, "the connection to the database was lost"),
    "53": (errors.DatabaseUnavailable, "the database has run out of memory or connections"),
    "57P": (errors.DatabaseUnavailable, "the database is stopping or starting"),
}


# How those begin that would meet any other statement, too, or that cancel one.
_ABOUT_SERVER: Final = ("57", "08", "53", "25")


def is_refusal(error: BaseException | None) -> bool:
    """Return whether PostgreSQL has refused this statement in particular, and so rolled it back."""
    return isinstance(error, asyncpg.PostgresError) and not str(error.sqlstate).startswith(
        _ABOUT_SERVER
    )


def meaning(error: Exception, *, lost: bool) -> errors.PersistenceError:
    """Return what ``error`` means. ``lost`` says that the connection is closed by now."""
    if isinstance(error, asyncpg.UniqueViolationError):
        return errors.UniqueViolation(error.constraint_name)
    state = str(getattr(error, "sqlstate", None) or "")
    for beginning, (kind, text) in _MEANINGS.items():
        if state.startswith(beginning):
            return kind(text)
    # Before OSError, which TimeoutError is one of.
    if isinstance(error, TimeoutError):
        return errors.DatabaseTimeout("the database did not answer in time")
    if lost or isinstance(error, OSError):
        return errors.DatabaseUnavailable("the connection to the database was lost")
    if isinstance(error, UnicodeError):
        return errors.InvalidValue("PostgreSQL cannot store a value of this statement")
    return errors.DatabaseFailure(
        f"PostgreSQL refused a statement ({state or type(error).__name__})"
    )
