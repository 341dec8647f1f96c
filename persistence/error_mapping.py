"""Maps the errors of asyncpg to those of ``persistence.errors``, by SQLSTATE."""

from collections.abc import Callable
from functools import partial
from typing import Final

import asyncpg

from persistence import errors

# By the beginning of a SQLSTATE; the first match counts.
# https://www.postgresql.org/docs/current/errcodes-appendix.html
_BY_SQLSTATE: Final[dict[str, Callable[[], errors.PersistenceError]]] = {
    "57014": errors.DatabaseTimeout,  # query_canceled
    "55P03": errors.DatabaseTimeout,  # lock_timeout
    "53100": partial(errors.DatabaseFull, "the database's disk is full"),
    # A standby, a primary that was demoted, default_transaction_read_only.
    "25006": partial(errors.DatabaseReadOnly, "the database takes no writes at present"),
    "40001": partial(errors.TransactionConflict, "a concurrent transaction stood in the way"),
    "40P01": partial(errors.TransactionConflict, "a concurrent transaction stood in the way"),
    "22": partial(errors.InvalidValue, "PostgreSQL cannot store a value of this statement"),
    # transaction_resolution_unknown, by persistence.connection: committed, and perhaps there alone.
    "08007": partial(
        errors.DatabaseUnavailable, "the wait for the database's standby was interrupted"
    ),
    "08": partial(errors.DatabaseUnavailable, "the connection to the database was lost"),
    "53": partial(errors.DatabaseUnavailable, "the database has run out of memory or connections"),
    "57P": partial(errors.DatabaseUnavailable, "the database is stopping or starting"),
}

# Classes of errors that any other statement would meet as well, or that cancel a statement:
# operator intervention, connection, insufficient resources, transaction state.
_NOT_OF_STATEMENT: Final = ("57", "08", "53", "25")


def is_rejection(error: BaseException | None) -> bool:
    """Return whether PostgreSQL rejected this statement in particular, and so rolled it back."""
    return isinstance(error, asyncpg.PostgresError) and not str(error.sqlstate).startswith(
        _NOT_OF_STATEMENT
    )


def persistence_error(error: Exception, *, connection_lost: bool) -> errors.PersistenceError:
    """Return the PersistenceError for ``error``, which a driver raised for a statement.

    ``connection_lost`` says whether the connection is closed by now.
    """
    if isinstance(error, asyncpg.UniqueViolationError):
        return errors.UniqueViolation(error.constraint_name)
    sqlstate = str(getattr(error, "sqlstate", None) or "")
    for beginning, make_error in _BY_SQLSTATE.items():
        if sqlstate.startswith(beginning):
            return make_error()
    # Before OSError, the base class of TimeoutError.
    if isinstance(error, TimeoutError):
        return errors.DatabaseTimeout()
    if connection_lost or isinstance(error, OSError):
        return errors.DatabaseUnavailable("the connection to the database was lost")
    if isinstance(error, UnicodeError):
        return errors.InvalidValue("PostgreSQL cannot store a value of this statement")
    return errors.DatabaseFailure(
        f"PostgreSQL refused a statement ({sqlstate or type(error).__name__})"
    )
