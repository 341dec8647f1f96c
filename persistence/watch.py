"""The change feed of payments: each event of the history, once it is committed, for watchers.

One connection of the process listens for NOTIFY, and sends it. A notification has no content: it
makes the feed read the history from its position on, so that a lost one loses no event. A process
notifies after its commits, once for all of some milliseconds. (NOTIFY within each update, by the
trigger, would serialize commits: 2,300 updates a second instead of 5,700.) When a process dies
between the two, the other processes find its events by their next poll.
"""

import asyncio
import logging
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from types import TracebackType
from typing import Final, Self, TypeAlias

import asyncpg

from persistence.dsn import asyncpg_dsn
from persistence.errors import PersistenceError, WatchEnded, WatcherTooSlow
from persistence.history import EventFilter, PaymentHistory
from persistence.models import PaymentEvent
from persistence.positions import Position
from persistence.state_log import StateLog

CHANNEL: Final = "order_payment_events"
"""The channel of NOTIFY. The trigger of the history notifies it of changes by hand."""

# Seconds.
_MIN_INTERVAL: Final = 0.02  # between two reads of the history, and between two notifications
_POLL_INTERVAL: Final = 0.5  # until the history is read without a notification
_RECONNECT_DELAY: Final = 0.5

_MAX_QUEUED: Final = 1_000  # events, for each watcher

WatchedEvent: TypeAlias = tuple[PaymentEvent | None, Position]
"""An event, and the position of its watcher after it. The first one of a watch has no event."""

_log = logging.getLogger(__name__)


class ChangeFeed:
    """Delivers each committed event to the watchers. Use it as an async context manager."""

    def __init__(
        self,
        history: PaymentHistory,
        url: str,
        *,
        connect_timeout: float,
        name: str | None = None,
    ) -> None:
        """Describe the feed; nothing is opened yet. ``url`` is a libpq URL, times are seconds.

        ``name`` is the ``application_name`` of its session, instead of one in the URL.
        """
        self._history = history
        self._dsn = asyncpg_dsn(url)
        self._settings = None if name is None else {"application_name": name}
        self._connect_timeout = connect_timeout
        self._subscriptions: set[_Subscription] = set()
        self._position: Position | None = None  # of all subscriptions
        self._delivering = asyncio.Lock()
        self._notify_due = asyncio.Event()
        self._notified = asyncio.Event()
        self._ended = False
        self._listen_state = StateLog(_log, "not listening for changes of payments")
        self._read_state = StateLog(_log, "cannot read the changes of payments")
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        """Start to listen, in the background: a connection that is lost is replaced."""
        self._tasks = [
            asyncio.create_task(each) for each in (self._keep_listening(), self._keep_delivering())
        ]
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
        """The number of watches."""
        return len(self._subscriptions)

    def notify(self) -> None:
        """Have all processes read the history, soon: this one has committed an event."""
        self._notify_due.set()

    def end(self) -> None:
        """End all watches, and those that begin from now on, with WatchEnded."""
        self._ended = True
        for subscription in self._subscriptions:
            subscription.fail(WatchEnded("the process stops"))

    async def watch(
        self, wanted: EventFilter, position: Position | None
    ) -> AsyncGenerator[WatchedEvent]:
        """Yield a position without an event, then each event of ``wanted`` once, without end.

        The events are those committed after ``position``, or from now on. Raises WatcherTooSlow,
        WatchEnded, or another PersistenceError; a watch from the last position on skips no event.
        """
        async with self._subscribed(wanted) as (subscription, start):
            yield None, position or start
            if position is not None:
                async for earlier in self._history.events_since(position, start.seen, wanted):
                    yield earlier
            while True:
                yield await subscription.next()

    @asynccontextmanager
    async def _subscribed(
        self, wanted: EventFilter
    ) -> AsyncIterator[tuple["_Subscription", Position]]:
        """Subscribe, and yield the position from which on the subscription has all events."""
        subscription = _Subscription(wanted)
        try:
            async with self._delivering:
                start = await self._deliver()
                self._subscriptions.add(subscription)
                if self._ended:
                    raise WatchEnded("the process stops")
            yield subscription, start
        finally:
            self._subscriptions.discard(subscription)

    async def _keep_delivering(self) -> None:
        """Deliver after each notification, and at each poll."""
        while True:
            try:
                async with asyncio.timeout(_POLL_INTERVAL):
                    await self._notified.wait()
            except TimeoutError:
                pass
            self._notified.clear()
            if self._subscriptions:
                try:
                    async with self._delivering:
                        await self._deliver()
                    self._read_state.succeeded()
                except Exception as error:  # the next delivery continues from the same position
                    self._read_state.failed(error)
            await asyncio.sleep(_MIN_INTERVAL)

    async def _deliver(self) -> Position:
        """Deliver what was committed up to now, and return the position of now."""
        now = await self._history.snapshot()
        if self._position is not None and self._subscriptions:
            # PostgreSQL filters first: of a million changes, only those that are watched are read.
            wanted = EventFilter.union(each.wanted for each in self._subscriptions)
            async for event, position in self._history.events_since(self._position, now, wanted):
                for subscription in [s for s in self._subscriptions if s.wanted.matches(event)]:
                    if not subscription.put(event, position):
                        self._subscriptions.discard(subscription)
                # Set for each event: after an error in between, none is delivered twice.
                self._position = position
                if not self._subscriptions:
                    break  # all of them were too slow
        self._position = Position(now)
        return self._position

    async def _keep_listening(self) -> None:
        while True:
            try:
                async with self._connection() as connection:
                    self._listen_state.succeeded()
                    await self._listen_and_notify(connection)
            except Exception as error:  # of any kind: it connects again
                self._listen_state.failed(error)
            await asyncio.sleep(_RECONNECT_DELAY)

    @asynccontextmanager
    async def _connection(self) -> AsyncIterator["asyncpg.Connection[asyncpg.Record]"]:
        connection = await asyncpg.connect(
            dsn=self._dsn,
            timeout=self._connect_timeout,
            command_timeout=self._connect_timeout,
            statement_cache_size=0,  # it prepares none
            server_settings=self._settings,
        )
        try:
            yield connection
        finally:
            connection.terminate()

    async def _listen_and_notify(self, connection: "asyncpg.Connection[asyncpg.Record]") -> None:
        """Listen for commits, and notify of those of this process, until the connection is lost."""
        await connection.add_listener(CHANNEL, lambda *_: self._notified.set())
        # Wakes the loop below, whose NOTIFY then fails.
        connection.add_termination_listener(lambda _: self._notify_due.set())
        while True:
            await self._notify_due.wait()
            self._notify_due.clear()
            await connection.execute(f"NOTIFY {CHANNEL}")
            await asyncio.sleep(_MIN_INTERVAL)


class _Subscription:
    """The queue of events for one watcher."""

    def __init__(self, wanted: EventFilter) -> None:
        self.wanted = wanted
        self._queue: deque[WatchedEvent] = deque()
        self._failure: PersistenceError | None = None
        self._changed = asyncio.Event()

    def put(self, event: PaymentEvent, position: Position) -> bool:
        """Queue ``event``. Return False when the subscription has failed: the queue is too long."""
        self._queue.append((event, position))
        self._changed.set()
        if len(self._queue) > _MAX_QUEUED:
            self.fail(WatcherTooSlow(f"more than {_MAX_QUEUED} events are waiting"))
        return self._failure is None

    def fail(self, failure: PersistenceError) -> None:
        """Make ``next`` raise ``failure``, or an earlier one, and drop the queue."""
        self._failure = self._failure or failure
        self._queue.clear()
        self._changed.set()

    async def next(self) -> WatchedEvent:
        """Return the oldest event of the queue, as soon as there is one."""
        while not self._queue:
            if self._failure is not None:
                raise self._failure
            self._changed.clear()
            await self._changed.wait()
        return self._queue.popleft()
