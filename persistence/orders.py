"""The orders of the shop, in PostgreSQL."""

from collections.abc import Callable, Iterable
from contextlib import nullcontext
from datetime import datetime
from typing import Any

from persistence import list_queries, queries
from persistence.batcher import Batcher, BatchSpan
from persistence.database import Database
from persistence.errors import (
    IdempotencyKeyReused,
    OrderNotFound,
    PaymentAmbiguous,
    PaymentEventRefused,
    PaymentNotFound,
)
from persistence.find_order import find_order
from persistence.models import (
    FoundOrder,
    Order,
    OrderFilter,
    OrderKey,
    Origin,
    PaymentUpdate,
    Storefronts,
)
from persistence.payment_states import normalized
from persistence.payment_updates import Guard, PaymentUpdates, Update
from persistence.status_words import StatusWords


class OrderRepository:
    """Reads and writes orders.

    Where a method takes ``storefronts``, the tenant scope of a caller, orders of other storefronts
    do not exist for it.
    """

    def __init__(  # noqa: PLR0913 - its parts
        self,
        database: Database,
        *,
        words: StatusWords | None = None,
        guard: Guard = Guard.ON,
        processes: int = 1,
        committed: Callable[[], object] = lambda: None,
        batch_span: BatchSpan = nullcontext,
    ) -> None:
        """``words`` are what payment statuses mean, those of ``StatusWords.builtin`` by default.

        Updates that are in flight at the same time may share a round trip and a commit;
        ``processes`` is how many processes do this side by side, and each batch of updates runs
        within a ``batch_span``. ``committed`` is called after each update that has written
        something, also if that is the record of a refused event.
        """
        self._database = database
        self._words = words or StatusWords.builtin()
        self._updates = PaymentUpdates(
            database,
            self.get,
            words=self._words,
            guard=guard,
            batcher=Batcher(database, processes=processes, batch_span=batch_span),
        )
        self._committed = committed

    async def update_payment_info(
        self,
        order_id: int,
        params: PaymentUpdate,
        origin: Origin,
        storefronts: Storefronts = None,
    ) -> Update:
        """Set what is set in ``params`` and return the order as it stands then.

        All of it is written in one atomic step and one round trip, together with the history; other
        columns keep their values, except ``updated_at``, which moves forward. An update that loses
        or overwrites a payment is refused, and on record before this raises.

        A ``payment_idempotency_key`` takes effect once: with the same order and ``params`` as
        before, nothing is written, and the order is returned as it stands by now.

        Raises OrderNotFound, IdempotencyKeyReused, EtagMismatch, PaymentEventRefused or another
        PersistenceError. ValueError, when nothing is to be set.
        """
        try:
            update = await self._updates.write(order_id, params, origin, storefronts)
        except (IdempotencyKeyReused, PaymentEventRefused):
            self._committed()
            raise
        if not update.replayed:
            self._committed()
        return update

    async def get(self, order_id: int, storefronts: Storefronts = None) -> Order:
        """Return the order. Raises OrderNotFound or another PersistenceError."""
        scope = queries.scope_args(storefronts)
        sql = queries.get_order(scoped=bool(scope))
        row = await self._database.fetchrow(sql, order_id, *scope)
        if row is None:
            raise OrderNotFound(order_id)
        return self._order(row)

    async def find_by_payment(
        self, reference: str, value: str, provider: str | None, storefronts: Storefronts = None
    ) -> FoundOrder:
        """Return the order whose ``reference`` is ``value``; or was; or that has refused it.

        ``reference`` is one of ``find_order.REFERENCES``. With a ``provider``, in any spelling,
        only an order that got the reference from it. Raises PaymentNotFound, PaymentAmbiguous or
        another PersistenceError.
        """
        scope = queries.scope_args(storefronts)
        sql = find_order(reference, by_provider=provider is not None, scoped=bool(scope))
        wanted = () if provider is None else (normalized(provider),)
        rows = await self._database.fetch(sql, value, *wanted, *scope)
        if not rows:
            searched = f"{reference} from this payment_provider" if provider else reference
            raise PaymentNotFound(f"no order has had this {searched}")
        found = [FoundOrder(self._order(row[:-1]), row[-1]) for row in rows]
        if len(found) > 1:
            raise PaymentAmbiguous(reference, sorted(each.order.id for each in found))
        return found[0]

    async def list_orders(
        self,
        wanted: OrderFilter,
        limit: int,
        after: OrderKey | None = None,
        storefronts: Storefronts = None,
    ) -> list[Order]:
        """Return up to ``limit`` orders, newest first: those after ``after``, or the first ones."""
        scope = queries.scope_values(storefronts)
        query = list_queries.list_orders(
            list_queries.filters_of(wanted),
            states=wanted.payment_states,
            statuses=len(wanted.payment_statuses),
            after_key=after is not None,
            scoped=bool(scope),
        )
        values = {"limit": limit, **queries.after_values(after), **scope}
        values |= list_queries.values_of(wanted, self._words)
        return [self._order(row.values()) for row in await self._database.fetch_all(query, values)]

    async def list_stuck(
        self,
        unchanged_since: datetime,
        provider: str | None,
        limit: int,
        after: OrderKey | None = None,
        storefronts: Storefronts = None,
    ) -> list[Order]:
        """Return up to ``limit`` orders whose payment is open or unknown, longest first.

        Only those whose state has not changed since the aware time ``unchanged_since``, and of the
        ``provider``, in any spelling. The time in ``after`` is the ``payment_status_since`` of an
        order.
        """
        scope = queries.scope_values(storefronts)
        query = list_queries.list_stuck(
            by_provider=provider is not None, after_key=after is not None, scoped=bool(scope)
        )
        values = {"limit": limit, "unchanged_since": unchanged_since}
        values |= list_queries.stuck_values(self._words) | queries.after_values(after) | scope
        if provider is not None:
            values["payment_provider"] = normalized(provider)
        return [self._order(row.values()) for row in await self._database.fetch_all(query, values)]

    def _order(self, row: Iterable[Any]) -> Order:
        """Return the order in ``row``; its state, where that is null, by its word."""
        return self._words.classified(Order._make(row))
