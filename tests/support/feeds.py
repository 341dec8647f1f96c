"""Change feeds of payments on a database of a test, and watches of them."""

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from typing import TypeAlias, TypeVar

from persistence.database import Database
from persistence.history import EventFilter, PaymentHistory, WatchedEvent
from persistence.positions import Position, Snapshot
from persistence.subscriptions import Delivery
from persistence.watch import ChangeFeed
from tests.support import databases

Stream: TypeAlias = AsyncGenerator[Delivery]

History = TypeVar("History", bound=PaymentHistory)


@asynccontextmanager
async def feed_of(
    kind: type[History], url: str, heartbeat: float = 0
) -> AsyncIterator[tuple[ChangeFeed, History]]:
    async with databases.pool(url, max_connections=4) as database:
        history = kind(database)
        service_url = databases.for_service(url)
        async with ChangeFeed(
            history, service_url, connect_timeout=5, heartbeat=heartbeat
        ) as opened:
            yield opened, history


@asynccontextmanager
async def feed(url: str, heartbeat: float = 0) -> AsyncIterator[ChangeFeed]:
    async with feed_of(PaymentHistory, url, heartbeat) as (opened, _):
        yield opened


@asynccontextmanager
async def watching(opened: ChangeFeed, wanted: EventFilter) -> AsyncIterator[Stream]:
    """Watch from now on: the first message has been read."""
    async with aclosing(opened.watch(wanted, None)) as stream:
        event, _ = await anext(stream)
        assert event is None
        yield stream


ONE = EventFilter(storefront_ids=frozenset([1]))


class CountedHistory(PaymentHistory):
    """A history that counts its statements."""

    def __init__(self, database: Database) -> None:
        super().__init__(database)
        self.looks = self.waits = self.readings = 0

    async def visible(self, position: Position) -> Snapshot:
        self.looks += 1
        return await super().visible(position)

    async def durable(self, position: Position | None) -> Position:
        self.waits += 1
        return await super().durable(position)

    async def events_since(
        self, position: Position, upto: Position, wanted: EventFilter
    ) -> AsyncIterator[tuple[WatchedEvent, Position]]:
        self.readings += 1
        async for each in super().events_since(position, upto, wanted):
            yield each
