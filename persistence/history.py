"""The history of payments: ``order_payment_events``, which a trigger in PostgreSQL writes."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, Final, TypeAlias, TypeVar

from persistence import position_queries, queries
from persistence.database import Database
from persistence.diagnostics import Fault
from persistence.diagnostics.epochs import check_history
from persistence.errors import DatabaseFailure, DatabaseUnavailable, HistoryChanged
from persistence.merged_history import START, merged, merged_streams
from persistence.models import (
    HistoryEntry,
    HistoryKey,
    OrderKey,
    OrderPayment,
    PaymentEvent,
    RefusedEvent,
    RefusedFilter,
    Storefronts,
)
from persistence.order_payments import MAX_EVENTS, order_payments
from persistence.position_queries import Row
from persistence.positions import ORIGIN, Mark, Position, Snapshot
from persistence.refused_event_log import RefusedEventLog
from persistence.status_words import StatusWords

_PAGE_SIZE: Final = 500  # events

# Statements at a time of watchers that catch up. After a restart, thousands do: the others wait
# here, and not for a connection, where their time would run out, and that of updates behind them.
_MAX_CATCHING_UP: Final = 2

_Event = TypeVar("_Event", PaymentEvent, RefusedEvent)

_Slot: TypeAlias = AbstractAsyncContextManager[None]
"""Entered for each statement."""

WatchedEvent: TypeAlias = PaymentEvent | RefusedEvent
"""What a watch has: a change of a payment, or an event that was refused."""


@dataclass(frozen=True)
class EventFilter:
    """Which events are wanted: those of some orders and of some storefronts."""

    order_ids: frozenset[int] = frozenset()
    storefront_ids: frozenset[int] = frozenset()
    scope: frozenset[int] | None = None
    """The storefronts whose events exist for the caller; None for all."""
    include_refused: bool = False
    """Whether refused events are wanted as well."""
    all_orders: bool = False
    """Whether events of all orders are wanted, and not only those of some."""

    def matches(self, event: WatchedEvent) -> bool:
        """Return whether ``event`` is wanted, and within the scope."""
        return (
            (
                self.all_orders
                or event.order_id in self.order_ids
                or event.storefront_id in self.storefront_ids
            )
            and (self.scope is None or event.storefront_id in self.scope)
            and (self.include_refused or isinstance(event, PaymentEvent))
        )


class PaymentHistory:
    """Reads the history of payments."""

    def __init__(self, database: Database, words: StatusWords | None = None) -> None:
        """``words`` are what payment statuses mean, those of ``StatusWords.builtin`` by default."""
        self._database = database
        self._refused = RefusedEventLog(database)
        self._words = words or StatusWords.builtin()
        self._catching_up = asyncio.Semaphore(_MAX_CATCHING_UP)

    async def list_events(
        self,
        order_id: int,
        limit: int,
        after_id: int = 0,
        storefronts: Storefronts = None,
    ) -> list[PaymentEvent]:
        """Return up to ``limit`` events of an order with ids above ``after_id``, oldest first.

        Only those of ``storefronts``, unless it is None. Raises a PersistenceError.
        """
        scope = queries.scope_values(storefronts)
        values = {"order_id": order_id, "limit": limit, "after_id": after_id, **scope}
        query = queries.list_events(scoped=bool(scope))
        rows = await self._database.fetch_all(query, values)
        return [self._event(row.values()) for row in rows]

    async def list_with_refused(
        self,
        order_id: int,
        limit: int,
        after: HistoryKey | None = None,
        storefronts: Storefronts = None,
    ) -> list[HistoryEntry]:
        """Return up to ``limit`` taken and ``limit`` refused events of an order, merged by time.

        Those after ``after``, or the first ones, oldest first. Of both together, the first
        ``limit`` are the next ones. Only those of ``storefronts``, unless it is None. Raises a
        PersistenceError.
        """
        key = after or START
        last = OrderKey(key.first_refused_at, key.refused_id) if key.refused_id else None
        events = await self.list_events(order_id, limit, key.event_id, storefronts)
        refused = await self._refused.list_oldest(order_id, limit, last, storefronts)
        return list(merged(events, refused, key))

    async def list_latest_events(
        self, order_id: int, limit: int, storefronts: Storefronts = None
    ) -> list[PaymentEvent]:
        """Return up to ``limit`` events of an order, the newest ones, from the oldest of them.

        Otherwise as ``list_events``.
        """
        scope = queries.scope_values(storefronts)
        values = {"order_id": order_id, "limit": limit, **scope}
        rows = await self._database.fetch_all(
            queries.list_latest_events(scoped=bool(scope)), values
        )
        return [self._event(row.values()) for row in reversed(rows)]

    async def latest_events(
        self, wanted: EventFilter, limit: int, upto: Snapshot
    ) -> list[PaymentEvent]:
        """Return up to ``limit`` events of ``wanted``, the newest ones, by their ids.

        Only those of the present epoch that are visible in ``upto``. Raises a PersistenceError.
        """
        values: dict[str, object] = {"limit": limit, "upto": upto}
        if not wanted.all_orders:
            values["order_ids"] = list(wanted.order_ids)
            values["storefront_ids"] = list(wanted.storefront_ids)
        query = queries.latest_events(all_orders=wanted.all_orders)
        rows = await self._database.fetch_all(query, values)
        return sorted(self._event(row.values()) for row in rows)

    async def list_payments(
        self, order_id: int, storefronts: Storefronts = None
    ) -> list[OrderPayment]:
        """Return the attempts to pay an order, by their first events, oldest first.

        Only by events for orders of ``storefronts``, unless it is None; and by the newest
        ``MAX_EVENTS`` of the history, and as many of those that were refused. Raises a
        PersistenceError.
        """
        events = await self.list_latest_events(order_id, MAX_EVENTS, storefronts)
        wanted = RefusedFilter(order_id=order_id)
        refused = await self._refused.list_events(wanted, MAX_EVENTS, storefronts=storefronts)
        return order_payments(events, refused[::-1], self._words)

    async def visible(self, position: Position) -> Snapshot:
        """Return what is visible now, up to the last event. Some of it may not be durable yet.

        Raises HistoryChanged if it is not what ``position`` has seen and more, DatabaseReadOnly on
        a standby, or another PersistenceError.
        """
        row = await self._row(position_queries.visible(), position)
        _mark_of(position, row)
        return _snapshot(row)

    async def durable(self, position: Position | None) -> Position:
        """Return the position of what is durable, which includes all that was visible before.

        That is what PostgreSQL would acknowledge: what is on disk, and with synchronous replication
        on a standby. It waits for that, as an update does. Raises as ``visible`` does; and
        DatabaseUnavailable without a ``position``, if old events would come as new ones: the URL
        may lead to another database than at the start of the process.
        """
        if position is None:
            try:
                await check_history(self._database)
            except Fault as fault:
                raise DatabaseUnavailable(str(fault)) from fault
        row = await self._row(position_queries.durable(), position or Position(ORIGIN))
        if position is None:
            mark = Mark(row.ledger, ORIGIN, row.next_mark or 0)
        elif row.next_mark is None:
            mark = _mark_of(position, row)
        else:
            _mark_of(position, row)
            mark = Mark(row.ledger, position.end, row.next_mark)
        return Position(_snapshot(row), mark=mark)

    async def checked(self, position: Position) -> Position:
        """Return ``position``, with a mark. Raises as ``visible`` does."""
        async with self._catching_up:
            row = await self._row(position_queries.visible(), position)
        return replace(position, mark=_mark_of(position, row))

    async def _row(self, query: str, position: Position) -> Row:
        since = position.mark.since if position.mark else ORIGIN
        end = position.end
        found = await self._database.fetchrow(query, since, end, end.last)
        if found is None:
            raise DatabaseFailure("payment_history_epochs has no row")
        return Row._make(found[: len(Row._fields)])

    async def events_since(
        self, position: Position, upto: Position, wanted: EventFilter
    ) -> AsyncIterator[tuple[WatchedEvent, Position]]:
        """Yield what was committed after ``position`` and up to ``upto``, each with its position.

        ``upto`` is a result of ``durable``. Only events of ``wanted``. The changes of one order are
        in the order of their commits, and refused events among them by their time. Raises a
        PersistenceError, as when another server answers that lacks some of them; continuing from
        the last position then skips no event.
        """
        async for each in self._events_since(position, upto, wanted, nullcontext()):
            yield each

    async def missed_events(
        self, position: Position, upto: Position, wanted: EventFilter
    ) -> AsyncIterator[tuple[WatchedEvent, Position]]:
        """Yield the same as ``events_since``, for one of possibly very many readers."""
        async for each in self._events_since(position, upto, wanted, self._catching_up):
            yield each

    async def _events_since(
        self, position: Position, upto: Position, wanted: EventFilter, slot: _Slot
    ) -> AsyncIterator[tuple[WatchedEvent, Position]]:
        if position.reaching is not None:
            async for each in self._events_between(position, wanted, slot):
                yield each
        way = Position(position.end, upto.seen, mark=upto.mark)
        async for each in self._events_between(way, wanted, slot):
            yield each

    async def _events_between(
        self, position: Position, wanted: EventFilter, slot: _Slot
    ) -> AsyncIterator[tuple[WatchedEvent, Position]]:
        """Yield what is left on the way of ``position`` to where it leads."""
        events: AsyncIterator[WatchedEvent]
        events = taken = self._read(self._event, position, wanted, slot)
        if wanted.include_refused:
            refused = self._read(RefusedEvent._make, position, wanted, slot, refused=True)
            events = merged_streams(taken, refused)
        async for event in events:
            if isinstance(event, PaymentEvent):
                position = replace(position, last_id=event.id)
            else:
                position = replace(position, last_refused_id=event.id)
            yield event, position

    async def _read(
        self,
        record: Callable[[Iterable[Any]], _Event],
        position: Position,
        wanted: EventFilter,
        slot: _Slot,
        *,
        refused: bool = False,
    ) -> AsyncIterator[_Event]:
        """Yield what is left on the way of ``position`` in one of the tables, sorted by id.

        ``record`` makes an event of its columns.
        """
        values: dict[str, object] = {}
        if not wanted.all_orders:
            ids = {"order_ids": wanted.order_ids, "storefront_ids": wanted.storefront_ids}
            values = {name: list(given) for name, given in ids.items() if given}
        if position.seen == position.end or not (values or wanted.all_orders):
            return
        scope = queries.scope_values(wanted.scope)
        query = queries.events_between(
            refused=refused,
            order_ids="order_ids" in values,
            storefront_ids="storefront_ids" in values,
            scoped=bool(scope),
        )
        values |= {"limit": _PAGE_SIZE, "since": position.seen, "upto": position.end, **scope}
        assert position.mark is not None  # noqa: S101 - it leads to what ``durable`` has returned
        values |= {"mark_since": position.mark.since, "mark": position.mark.events}
        values["last"] = position.end.last
        after_id, more = position.last_refused_id if refused else position.last_id, True
        while more:
            async with slot:
                rows = await self._database.fetch_all(query, {**values, "after_id": after_id})
            if not rows[0]["is_complete"]:
                raise DatabaseUnavailable("this server lacks events that were seen elsewhere")
            for row in rows:
                if row["id"] is not None:
                    _, *fields = row.values()
                    event = record(fields)
                    after_id = event.id
                    yield event
            more = len(rows) == _PAGE_SIZE and rows[-1]["id"] is not None

    def _event(self, columns: Iterable[Any]) -> PaymentEvent:
        """Return the event; its states, where they are null, by their words."""
        event = PaymentEvent._make(columns)
        if event.payment_state_after is None:
            event = event._replace(
                payment_state_after=self._words.state(event.payment_status_after)
            )
        if event.payment_state_before is None and event.payment_status_before is not None:
            state = self._words.state(event.payment_status_before)
            event = event._replace(payment_state_before=state)
        return event


def _snapshot(row: Row) -> Snapshot:
    """Return the current snapshot, up to the last event."""
    return Snapshot(*row.snapshot).before(1 + (row.last_transaction or 0))


def _mark_of(position: Position, row: Row) -> Mark:
    """Return the mark of ``position``; a new one, if it is of the version before and has none.

    Raises HistoryChanged if the history is not the one that it was read in.
    """
    mark = position.mark or Mark(row.ledger, ORIGIN, row.mark or 0)
    if mark.ledger != row.ledger or (position.mark is None and not row.is_original):
        raise HistoryChanged("the database is another one, or has begun a new epoch")
    if mark.events != (row.mark or 0) or _snapshot(row).xmax < position.end.xmax:
        raise HistoryChanged("the database has lost events that were seen")
    return mark
