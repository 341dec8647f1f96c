"""The SQL, assembled by PyPika. Values travel as parameters only and never stand in the text."""

from functools import cache
from typing import Any

from pypika import CustomFunction, Parameter, PostgreSQLQuery, Table
from pypika.terms import Interval

from persistence.records import PAYMENT_COLUMNS, Order

_orders = Table("orders")
_greatest = CustomFunction("greatest", ["first", "second"])
_clock_timestamp = CustomFunction("clock_timestamp")


@cache
def update_payment(columns: tuple[str, ...]) -> str:
    """Return ``UPDATE orders SET … WHERE id = $1 RETURNING …`` for these payment columns.

    ``$2``, ``$3``, … are the values of ``columns``, in their order. The row comes back as the
    fields of ``Order``. Kept for each set of columns (63 of them): PyPika takes longer to write a
    statement than PostgreSQL to run it.

    Raises ValueError when ``columns`` is empty or names something that is not a payment column.
    """
    if not columns or not set(columns) <= set(PAYMENT_COLUMNS):
        raise ValueError(f"expected some of {PAYMENT_COLUMNS}, got {columns}")
    # Any, because PyPika's builders are typed as the one without RETURNING.
    query: Any = PostgreSQLQuery.update(_orders)
    for number, column in enumerate(columns, start=2):
        query = query.set(_orders[column], Parameter(f"${number}"))
    # clock_timestamp(), because now() is when the transaction began: one that waited for a row
    # lock would put an earlier time over a later one. greatest(), because clocks step back.
    moved = _greatest(_clock_timestamp(), _orders.updated_at + Interval(microseconds=1))
    query = query.set(_orders.updated_at, moved)
    query = query.where(_orders.id == Parameter("$1"))
    query = query.returning(*(_orders[column] for column in Order._fields))
    return str(query)
