"""Subscriptions to the change feed, and a look-up of those that want an event.

To match an event takes as long with a thousand subscriptions to other orders as with none.
"""

import asyncio
from collections import deque
from collections.abc import Collection, Iterator
from types import TracebackType
from typing import Final, TypeAlias

from persistence.errors import WatcherTooSlow
from persistence.history import EventFilter, WatchedEvent
from persistence.positions import Position

_MAX_QUEUED: Final = 1_000  # events, for each subscription

# Ids of orders and storefronts that the history is asked for. With more, reading the events of all
# orders costs less: of 300,000 ids, encoding them and making a hash table takes 40 ms each time.
_MAX_FILTER_IDS: Final = 1_000

Delivery: TypeAlias = tuple[WatchedEvent | None, Position]
"""An event or None, and a position: with the event, the watcher has everything up to there."""


class Subscription:
    """The queue of events for one watcher. It begins with a position, without an event."""

    def __init__(self, wanted: EventFilter) -> None:
        self.wanted = wanted
        self._queue: deque[Delivery] = deque()
        self._failure: Exception | None = None
        self._traceback: TracebackType | None = None
        self._changed = asyncio.Event()

    def put(self, event: WatchedEvent | None, position: Position) -> bool:
        """Queue ``event``. Return False when the subscription has failed: the queue is too long."""
        self._queue.append((event, position))
        self._changed.set()
        if len(self._queue) > _MAX_QUEUED:
            self.fail(WatcherTooSlow(f"more than {_MAX_QUEUED} events are waiting"))
        return self._failure is None

    def fail(self, failure: Exception) -> None:
        """Make ``take`` raise ``failure``, or an earlier one, and drop the queue."""
        if self._failure is None:
            self._failure, self._traceback = failure, failure.__traceback__
        self._queue.clear()
        self._changed.set()

    async def changed(self) -> None:
        """Wait until ``take`` has something to return, or to raise."""
        while not self._queue and self._failure is None:
            self._changed.clear()
            await self._changed.wait()

    def take(self) -> Delivery | None:
        """Return the oldest entry of the queue, None when there is none. Raises its failure."""
        if self._failure is not None:
            # Many subscriptions may share it: each raise would lengthen its traceback.
            raise self._failure.with_traceback(self._traceback)
        return self._queue.popleft() if self._queue else None


class Subscriptions:
    """A set of subscriptions, by the orders and the storefronts that they want."""

    def __init__(self) -> None:
        self._all: set[Subscription] = set()
        self._of_all_orders: set[Subscription] = set()
        self._by_order = _Index()
        self._by_storefront = _Index()
        self._with_refused = 0

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self._all)

    def __iter__(self) -> Iterator[Subscription]:
        """Iterate over all of them, in no order."""
        return iter(self._all)

    def add(self, subscription: Subscription) -> None:
        """Add ``subscription``."""
        self._all.add(subscription)
        self._with_refused += subscription.wanted.include_refused
        if subscription.wanted.all_orders:
            self._of_all_orders.add(subscription)
        self._by_order.add(subscription.wanted.order_ids, subscription)
        self._by_storefront.add(subscription.wanted.storefront_ids, subscription)

    def discard(self, subscription: Subscription) -> None:
        """Remove ``subscription``, if it is there."""
        if subscription in self._all:
            self._all.remove(subscription)
            self._with_refused -= subscription.wanted.include_refused
            self._of_all_orders.discard(subscription)
            self._by_order.remove(subscription.wanted.order_ids, subscription)
            self._by_storefront.remove(subscription.wanted.storefront_ids, subscription)

    def matching(self, event: WatchedEvent) -> list[Subscription]:
        """Return those that want ``event``, each once."""
        by_order = self._by_order[event.order_id]
        by_storefront = self._by_storefront[event.storefront_id]
        of_any = self._of_all_orders
        return [each for each in {*of_any, *by_order, *by_storefront} if each.wanted.matches(event)]

    @property
    def wanted(self) -> EventFilter:
        """A filter that matches at least what they want."""
        order_ids, storefront_ids = self._by_order.ids, self._by_storefront.ids
        include_refused = self._with_refused > 0
        if self._of_all_orders or len(order_ids) + len(storefront_ids) > _MAX_FILTER_IDS:
            return EventFilter(include_refused=include_refused, all_orders=True)
        return EventFilter(
            frozenset(order_ids), frozenset(storefront_ids), include_refused=include_refused
        )


class _Index:
    """Subscriptions by the ids that they want."""

    def __init__(self) -> None:
        # One alone stands there without a set, as for most ids: a million sets take 216 MB.
        self._by_id: dict[int, Subscription | set[Subscription]] = {}

    @property
    def ids(self) -> Collection[int]:
        return self._by_id.keys()

    def __getitem__(self, id_: int | None) -> Collection[Subscription]:
        found = () if id_ is None else self._by_id.get(id_, ())
        return (found,) if isinstance(found, Subscription) else found

    def add(self, ids: Collection[int], subscription: Subscription) -> None:
        for each in ids:
            found = self._by_id.setdefault(each, subscription)
            if isinstance(found, set):
                found.add(subscription)
            elif found is not subscription:
                self._by_id[each] = {found, subscription}

    def remove(self, ids: Collection[int], subscription: Subscription) -> None:
        for each in ids:
            found = self._by_id[each]
            if isinstance(found, set) and len(found) > 1:
                found.remove(subscription)
            else:
                del self._by_id[each]
