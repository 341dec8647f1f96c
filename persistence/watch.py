"""What is committed to payments, as it happens: for those who watch.

One connection of the process listens for NOTIFY and sends it. A notification only says that there
is something new, so none of them can be missed: what is new is then read from the ledger. Those of
our own updates are sent after their commits, at most one for all that were made in some
milliseconds. (Sent within each update, by the trigger, they would make PostgreSQL commit updates
one after the other: 2,300 a second instead of 5,700.) Should a process die between the two, others
find what it wrote a little later, by looking without being told.
"""

import asyncio
import logging
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from functools import reduce
from operator import or_
from types import TracebackType
from typing import Final, Self, TypeAlias

import asyncpg

from persistence.dsn import asyncpg_dsn
from persistence.errors import PersistenceError, WatchEnded, WatcherTooSlow
from persistence.history import PaymentLedger, Position, Watched
from persistence.models import PaymentEvent
from persistence.state_log import StateLog

CHANNEL: Final = "order_payment_events"

# Seconds.
_PAUSE = 0.02  # between two looks at the ledger, and between two notifications
_UNTOLD = 0.5  # until the next look at the ledger without being told
_RECONNECT = 0.5

_MOST_WAITING = 1_000  # events that a watcher has not taken yet

Seen: TypeAlias = tuple[PaymentEvent | None, Position]
"""An event, and how far its watcher has come with it. No event, when it has just begun."""

_log = logging.getLogger(__name__)


class PaymentFeed:
    """Hands each committed event to those who watch. Use it as an async context manager."""

    def __init__(self, ledger: PaymentLedger, url: str, *, connect_timeout: float) -> None:
        """Describe the feed; nothing is opened yet. ``url`` is a libpq URL, times are seconds."""
        self._ledger = ledger
        self._dsn = asyncpg_dsn(url)
        self._connect_timeout = connect_timeout
        self._subscriptions: set[_Subscription] = set()
        self._position: Position | None = None  # of all subscriptions
        self._advancing = asyncio.Lock()
        self._committed = asyncio.Event()
        self._news = asyncio.Event()
        self._ended = False
        self._listening = StateLog(_log, "not listening for changes of payments")
        self._reading = StateLog(_log, "cannot read the changes of payments")
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        """Begin to listen, in the background: a connection that is lost is replaced."""
        self._tasks = [asyncio.create_task(each) for each in (self._connect(), self._deliver())]
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Stop listening."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    @property
    def watchers(self) -> int:
        """How many are watching now."""
        return len(self._subscriptions)

    def committed(self) -> None:
        """Tell all processes, soon, that this one has committed something."""
        self._committed.set()

    def end(self) -> None:
        """End everybody's watching with WatchEnded, now and from now on."""
        self._ended = True
        for subscription in self._subscriptions:
            subscription.fail(WatchEnded("the process stops"))

    async def watch(self, watched: Watched, position: Position | None) -> AsyncGenerator[Seen]:
        """Yield a beginning without an event, then each event of ``watched`` once, without end.

        They begin after ``position``, or now. Raises WatcherTooSlow, WatchEnded, or another
        PersistenceError; going on from the last position leaves nothing out.
        """
        async with self._subscribed(watched) as (subscription, joined):
            yield None, position or joined
            if position is not None:
                async for seen in self._ledger.events_since(position, joined.seen, watched):
                    yield seen
            while True:
                yield await subscription.next()

    @asynccontextmanager
    async def _subscribed(
        self, watched: Watched
    ) -> AsyncIterator[tuple["_Subscription", Position]]:
        subscription = _Subscription(watched)
        try:
            async with self._advancing:
                joined = await self._advance()
                self._subscriptions.add(subscription)
                if self._ended:
                    raise WatchEnded("the process stops")
            yield subscription, joined
        finally:
            self._subscriptions.discard(subscription)

    async def _deliver(self) -> None:
        """Hand out what is new, whenever there may be something."""
        while True:
            try:
                async with asyncio.timeout(_UNTOLD):
                    await self._news.wait()
            except TimeoutError:
                pass
            self._news.clear()
            if self._subscriptions:
                try:
                    async with self._advancing:
                        await self._advance()
                    self._reading.succeeded()
                except Exception as error:  # it is tried again, and nobody misses anything
                    self._reading.failed(error)
            await asyncio.sleep(_PAUSE)

    async def _advance(self) -> Position:
        """Hand out what was committed up to now, and return where that is."""
        now = await self._ledger.snapshot()
        if self._position is not None and self._subscriptions:
            # Of a million changes at once, only those that somebody watches.
            watched = reduce(or_, (each.watched for each in self._subscriptions))
            async for event, position in self._ledger.events_since(self._position, now, watched):
                for subscription in [each for each in self._subscriptions if event in each.watched]:
                    if not subscription.take(event, position):
                        self._subscriptions.discard(subscription)
                # Kept step by step: after an error in between, nothing is handed out twice.
                self._position = position
                if not self._subscriptions:
                    break  # all of them were too slow
        self._position = Position(now)
        return self._position

    async def _connect(self) -> None:
        while True:
            try:
                async with self._connection() as connection:
                    self._listening.succeeded()
                    await self._announce(connection)
            except Exception as error:  # whatever it is, listening must go on
                self._listening.failed(error)
            await asyncio.sleep(_RECONNECT)

    @asynccontextmanager
    async def _connection(self) -> AsyncIterator["asyncpg.Connection[asyncpg.Record]"]:
        connection = await asyncpg.connect(
            dsn=self._dsn,
            timeout=self._connect_timeout,
            command_timeout=self._connect_timeout,
            statement_cache_size=0,  # it prepares none
        )
        try:
            yield connection
        finally:
            connection.terminate()

    async def _announce(self, connection: "asyncpg.Connection[asyncpg.Record]") -> None:
        """Listen, and announce our own commits, until the connection is lost."""
        await connection.add_listener(CHANNEL, lambda *_: self._news.set())
        connection.add_termination_listener(lambda _: self._committed.set())
        while True:
            await self._committed.wait()
            self._committed.clear()
            await connection.execute(f"NOTIFY {CHANNEL}")
            await asyncio.sleep(_PAUSE)


class _Subscription:
    """The events that wait for one watcher."""

    def __init__(self, watched: Watched) -> None:
        self.watched = watched
        self._waiting: deque[Seen] = deque()
        self._failure: PersistenceError | None = None
        self._changed = asyncio.Event()

    def take(self, event: PaymentEvent, position: Position) -> bool:
        """Keep ``event`` for the watcher. Return False, and fail, when too many are waiting."""
        self._waiting.append((event, position))
        self._changed.set()
        if len(self._waiting) > _MOST_WAITING:
            self.fail(WatcherTooSlow(f"more than {_MOST_WAITING} events are waiting"))
        return self._failure is None

    def fail(self, failure: PersistenceError) -> None:
        """End the watching with ``failure``, and let go of what waits."""
        self._failure = self._failure or failure
        self._waiting.clear()
        self._changed.set()

    async def next(self) -> Seen:
        """Return what waits longest, when there is something. Raises what ``fail`` was given."""
        while not self._waiting:
            if self._failure is not None:
                raise self._failure
            self._changed.clear()
            await self._changed.wait()
        return self._waiting.popleft()
