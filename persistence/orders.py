"""The orders of the shop, in PostgreSQL."""

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from functools import cache

from persistence import queries, statuses
from persistence.batcher import BatchedStatement, Batcher
from persistence.database import Database
from persistence.errors import (
    IdempotencyKeyReused,
    OrderNotFound,
    PaymentAmbiguous,
    PaymentNotFound,
    PaymentStatusRefused,
    TransactionConflict,
    UniqueViolation,
)
from persistence.models import (
    PAYMENT_COLUMNS,
    Order,
    OrderFilter,
    OrderKey,
    Origin,
    PaymentEvent,
    Storefronts,
    Update,
)

# Where a key is entered when it is used: the order that has it now, and the ledger for good.
_KEY_INDEXES = ("idx_orders_idempotency_key", "idx_order_payment_events_idempotency_key")

# An update that is not made has a reason that can be read. If not, the reason has gone meanwhile.
_MOST_ATTEMPTS = 5


class OrderRepository:
    """Reads and writes orders.

    Where a method takes ``storefronts``, orders of others are not there for it.
    """

    def __init__(
        self,
        database: Database,
        *,
        guard_status: bool = True,
        processes: int = 1,
        committed: Callable[[], object] = lambda: None,
    ) -> None:
        """With ``guard_status``, payment statuses follow the moves of ``statuses.MOVES`` only.

        Updates that are in flight at the same time may share a round trip and a commit;
        ``processes`` is how many processes do this side by side.
        ``committed`` is called after each update that has written something.
        """
        self._database = database
        self._batcher = Batcher(database, processes=processes)
        self._guard_status = guard_status
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
        before, nothing is written, and the order comes back as it stands by now.

        Raises OrderNotFound, IdempotencyKeyReused, PaymentStatusRefused or another
        PersistenceError. ValueError, when ``params`` is empty or names a column that is not a
        payment column.
        """
        columns = tuple(column for column in PAYMENT_COLUMNS if column in params)
        if len(columns) != len(params):
            raise ValueError(f"not payment columns: {sorted(params.keys() - set(columns))}")
        within = queries.limiting(storefronts)
        statement = _update(columns, limited=bool(within))
        values: list[object] = [params[column] for column in columns]
        if (status := params.get("payment_status")) is not None:
            values.append(self._refusing(status))
        for _ in range(_MOST_ATTEMPTS):
            try:
                row = await self._batcher.fetchrow(
                    statement, order_id, origin.request_id, origin.caller or "", *values, *within
                )
            except UniqueViolation as violation:
                if violation.constraint not in _KEY_INDEXES:
                    raise
                row = None
            if row is not None:
                self._committed()
                return Update(Order._make(row), replayed=False)
            if storefronts is not None:  # an order of others is not there, whatever its keys
                await self.get(order_id, storefronts)
            try:
                replay = await self._replay(order_id, params)
            except IdempotencyKeyReused:
                if storefronts is not None:  # what is refused in any case tells of no key
                    self._check_status(await self.get(order_id), status)
                raise
            if replay is not None:
                return replay
            self._check_status(await self.get(order_id), status)
        raise TransactionConflict(f"the payment of order {order_id} keeps changing")

    async def get(self, order_id: int, storefronts: Storefronts = None) -> Order:
        """Return the order. Raises OrderNotFound or another PersistenceError."""
        within = queries.limiting(storefronts)
        sql = queries.get_order(limited=bool(within))
        row = await self._database.fetchrow(sql, order_id, *within)
        if row is None:
            raise OrderNotFound(order_id)
        return Order._make(row)

    async def find_by_payment(
        self, reference: str, value: str, provider: str | None, storefronts: Storefronts = None
    ) -> Order:
        """Return the order that has ever had ``value`` as ``reference``.

        ``reference`` is one of ``queries.REFERENCES``. With a ``provider``, only an order that has
        ever had this provider. Raises PaymentNotFound, PaymentAmbiguous or another
        PersistenceError.
        """
        within = queries.limiting(storefronts)
        sql = queries.find_order(reference, by_provider=provider is not None, limited=bool(within))
        wanted = () if provider is None else (provider,)
        rows = await self._database.fetch(sql, value, *wanted, *within)
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
        within = queries.limiting(storefronts)
        sql = queries.list_orders(tuple(given), after_key=after is not None, limited=bool(within))
        rows = await self._database.fetch(sql, limit, *(after or ()), *given.values(), *within)
        return list(map(Order._make, rows))

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
        within = queries.limiting(storefronts)
        sql = queries.list_stuck(
            by_provider=provider is not None, after_key=after is not None, limited=bool(within)
        )
        wanted = () if provider is None else (provider,)
        rows = await self._database.fetch(
            sql, limit, unchanged_since, *(after or ()), *wanted, *within
        )
        return list(map(Order._make, rows))

    def _refusing(self, status: str) -> Sequence[str]:
        return statuses.refusing(status) if self._guard_status else ()

    async def _replay(self, order_id: int, params: Mapping[str, str]) -> Update | None:
        """Return the answer when the key in ``params`` was used for the same request before."""
        key = params.get("payment_idempotency_key")
        if key is None:
            return None
        row = await self._database.fetchrow(queries.get_event_by_key(), key)
        if row is None:
            return None
        event = PaymentEvent._make(row)
        if event.order_id != order_id or not _is_same_request(event, params):
            raise IdempotencyKeyReused(order_id, used_for=event.order_id)
        return Update(await self.get(order_id), replayed=True)

    def _check_status(self, order: Order, status: str | None) -> None:
        if status is not None and order.payment_status in self._refusing(status):
            allowed = statuses.allowed_from(order.payment_status)
            raise PaymentStatusRefused(order.id, order.payment_status, status, allowed)


@cache
def _update(columns: tuple[str, ...], *, limited: bool) -> BatchedStatement:
    return BatchedStatement(
        queries.update_payment(columns, limited=limited),
        queries.update_payment(columns, limited=limited, lock_timeout=True),
    )


def _is_same_request(event: PaymentEvent, params: Mapping[str, str]) -> bool:
    # Of an event that entered a payment from before the history, nobody knows the fields.
    fields = params.keys() if event.request_fields is None else set(event.request_fields)
    return fields == params.keys() and all(
        getattr(event, f"{name}_after") == value for name, value in params.items()
    )
