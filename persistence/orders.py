"""The orders of the shop, in PostgreSQL."""

from collections.abc import Mapping

from persistence import queries
from persistence.database import Database
from persistence.errors import IdempotencyKeyReused, OrderNotFound, UniqueViolation
from persistence.records import PAYMENT_COLUMNS, Order


class OrderRepository:
    """Reads and writes orders, one statement a call."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def update_payment_info(self, order_id: int, params: Mapping[str, str]) -> Order:
        """Set the payment columns named in ``params`` and return the order as it stands then.

        ``params`` maps some of ``PAYMENT_COLUMNS``, at least one, to their new values. All of them
        are written in one atomic step and one round trip; other columns keep their values, except
        ``updated_at``, which moves forward.

        Raises OrderNotFound, IdempotencyKeyReused or another PersistenceError. ValueError, when
        ``params`` is empty or names a column that is not a payment column.
        """
        columns = tuple(column for column in PAYMENT_COLUMNS if column in params)
        if len(columns) != len(params):
            raise ValueError(f"not payment columns: {sorted(params.keys() - set(columns))}")
        sql = queries.update_payment(columns)
        try:
            row = await self._database.fetch_row(sql, order_id, *map(params.__getitem__, columns))
        except UniqueViolation as violation:
            if violation.constraint == "idx_orders_idempotency_key":
                raise IdempotencyKeyReused(order_id) from violation
            raise
        if row is None:
            raise OrderNotFound(order_id)
        return Order._make(row)
