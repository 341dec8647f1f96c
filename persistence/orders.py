"""The orders of the shop, in PostgreSQL."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from datetime import datetime
from functools import cache
from typing import Any, Final

from persistence import queries, statuses
from persistence.batcher import BatchedStatement, Batcher, BatchSpan
from persistence.database import Database
from persistence.errors import (
    OrderNotFound,
    PaymentAmbiguous,
    PaymentNotFound,
    TransactionConflict,
    UniqueViolation,
)
from persistence.models import (
    PAYMENT_COLUMNS,
    Order,
    OrderFilter,
    OrderKey,
    Origin,
    Storefronts,
    Update,
)
from persistence.unwritten_update import UnwrittenUpdate

# Unique for idempotency keys: an order's present key, and each key in the history.
_KEY_INDEXES: Final = ("idx_orders_idempotency_key", "idx_order_payment_events_idempotency_key")

# An update is tried again when the reason for which it was refused is gone by the time it is read.
_MAX_ATTEMPTS: Final = 5


class OrderRepository:
    """Reads and writes orders.

    Where a method takes ``storefronts``, the tenant scope of a caller, orders of other storefronts
    do not exist for it.
    """

    def __init__(
        self,
        database: Database,
        *,
        guard_status: bool = True,
        processes: int = 1,
        committed: Callable[[], object] = lambda: None,
        batch_span: BatchSpan = nullcontext,
    ) -> None:
        """With ``guard_status``, payment statuses change by the moves of ``statuses.MOVES`` only.

        Updates that are in flight at the same time may share a round trip and a commit;
        ``processes`` is how many processes do this side by side, and each batch of updates runs
        within a ``batch_span``. ``committed`` is called after each update that has written
        something.
        """
        self._database = database
        self._batcher = Batcher(database, processes=processes, batch_span=batch_span)
        self._disallowed_before: Callable[[str], Sequence[str]] = (
            statuses.disallowed_before if guard_status else lambda _status: ()
        )
        self._unwritten = UnwrittenUpdate(database, self.get, self._disallowed_before)
        self._committed = committed

    async def update_payment_info(
        self,
        order_id: int,
        params: Mapping[str, str],
        origin: Origin,
        storefronts: Storefronts = None,
    ) -> Update:
        """Set the payment columns named in ``params`` and return the order as it stands then.

        ``params`` maps some of ``PAYMENT_COLUMNS``, at least one, to their new values. All of them
        are written in one atomic step and one round trip, together with the history; other columns
        keep their values, except ``updated_at``, which moves forward.

        A ``payment_idempotency_key`` takes effect once: with the same order and ``params`` as
        before, nothing is written, and the order is returned as it stands by now.

        Raises OrderNotFound, IdempotencyKeyReused, PaymentStatusRefused or another
        PersistenceError. ValueError, when ``params`` is empty or names a column that is not a
        payment column.
        """
        for _ in range(_MAX_ATTEMPTS):
            row = await self._write(order_id, params, origin, storefronts)
            if row is not None:
                self._committed()
                return Update(Order._make(row), replayed=False)
            replay = await self._unwritten.resolve(order_id, params, storefronts)
            if replay is not None:
                return replay
        raise TransactionConflict(f"the payment of order {order_id} keeps changing")

    async def _write(
        self,
        order_id: int,
        params: Mapping[str, str],
        origin: Origin,
        storefronts: Storefronts,
    ) -> Sequence[Any] | None:
        """Run the UPDATE and return its row, or None when it is refused."""
        columns = tuple(column for column in PAYMENT_COLUMNS if column in params)
        if len(columns) != len(params):
            raise ValueError(f"not payment columns: {sorted(params.keys() - set(columns))}")
        scope = queries.scope_args(storefronts)
        values: list[object] = [params[column] for column in columns]
        if (status := params.get("payment_status")) is not None:
            values.append(self._disallowed_before(status))
        try:
            return await self._batcher.fetchrow(
                _update(columns, scoped=bool(scope)),
                order_id,
                origin.request_id,
                origin.caller or "",
                *values,
                *scope,
            )
        except UniqueViolation as violation:
            if violation.constraint in _KEY_INDEXES:
                return None
            raise

    async def get(self, order_id: int, storefronts: Storefronts = None) -> Order:
        """Return the order. Raises OrderNotFound or another PersistenceError."""
        scope = queries.scope_args(storefronts)
        sql = queries.get_order(scoped=bool(scope))
        row = await self._database.fetchrow(sql, order_id, *scope)
        if row is None:
            raise OrderNotFound(order_id)
        return Order._make(row)

    async def find_by_payment(
        self, reference: str, value: str, provider: str | None, storefronts: Storefronts = None
    ) -> Order:
        """Return the order whose ``reference`` is, or ever was, ``value``.

        ``reference`` is one of ``queries.REFERENCES``. With a ``provider``, only an order that has
        it, or ever had it. Raises PaymentNotFound, PaymentAmbiguous or another
        PersistenceError.
        """
        scope = queries.scope_args(storefronts)
        sql = queries.find_order(reference, by_provider=provider is not None, scoped=bool(scope))
        wanted = () if provider is None else (provider,)
        rows = await self._database.fetch(sql, value, *wanted, *scope)
        if not rows:
            raise PaymentNotFound(f"no order has had this {reference}")
        if len(rows) > 1:
            raise PaymentAmbiguous(f"more than one order has had this {reference}")
        return Order._make(rows[0])

    async def list_orders(
        self,
        wanted: OrderFilter,
        limit: int,
        after: OrderKey | None = None,
        storefronts: Storefronts = None,
    ) -> list[Order]:
        """Return up to ``limit`` orders, newest first: those after ``after``, or the first ones."""
        filters = {name: getattr(wanted, name) for name in queries.FILTERS}
        given = {name: value for name, value in filters.items() if value is not None}
        scope = queries.scope_values(storefronts)
        query = queries.list_orders(tuple(given), after_key=after is not None, scoped=bool(scope))
        values = {"limit": limit, **queries.after_values(after), **given, **scope}
        return [Order._make(row.values()) for row in await self._database.fetch_all(query, values)]

    async def list_stuck(
        self,
        unchanged_since: datetime,
        provider: str | None,
        limit: int,
        after: OrderKey | None = None,
        storefronts: Storefronts = None,
    ) -> list[Order]:
        """Return up to ``limit`` orders whose payment a provider has yet to decide, oldest first.

        Only those that have not changed since the aware time ``unchanged_since``.
        """
        scope = queries.scope_values(storefronts)
        query = queries.list_stuck(
            by_provider=provider is not None, after_key=after is not None, scoped=bool(scope)
        )
        values = {"limit": limit, "unchanged_since": unchanged_since}
        values |= queries.after_values(after) | scope
        if provider is not None:
            values["payment_provider"] = provider
        return [Order._make(row.values()) for row in await self._database.fetch_all(query, values)]


@cache
def _update(columns: tuple[str, ...], *, scoped: bool) -> BatchedStatement:
    return BatchedStatement(
        queries.update_payment(columns, scoped=scoped),
        queries.update_payment(columns, scoped=scoped, lock_timeout=True),
    )
