"""The change feed of payments: each event of the history, once it is durable, for watchers.

Refused events, too, for watches that ask for them. They are committed when they are recorded, and
what is recorded once more is no news.

One connection of the process listens for NOTIFY, and sends it. A notification has no content: it
makes the feed read the history from its position on, so that a lost one loses no event. A process
notifies after its commits, once for all of some milliseconds. (NOTIFY within each update, by the
trigger, would serialize commits: 2,300 updates a second instead of 5,700. It would also fail where
a transaction is prepared, and where the queue of notifications is full.) Changes by hand notify of
nothing: the feed finds them by its next poll, and so the events of a process that dies between the
two.

What is visible may be lost in a fail-over: it is delivered once it is durable. A look, at each
notification and each poll, finds out whether anything is new; only then, a second statement waits
until all of it is on disk, and on the standbys that updates wait for. Both also find out whether
the history still has what was delivered; ``persistence.positions`` says how.

The look takes 0.1 ms of PostgreSQL's time, and the second statement 0.4 ms and 104 bytes of WAL; so
a delivery takes three round trips and a commit. Measured with one watch, on two cores with a load
of ten besides: with 20 updates a second, 43 ms of PostgreSQL's time a second, and 22 when each
delivery read what was visible; half of the events came 11 ms after the answer to their update, and
3.5 ms then. With 100 updates a second 101 ms, and 75. While nothing happens, less than 0.5 ms.
"""

import asyncio
import logging
import random
from collections.abc import AsyncGenerator, AsyncIterator, Iterable
from contextlib import asynccontextmanager, suppress
from types import TracebackType
from typing import Final, Self

import asyncpg

from persistence.dsn import asyncpg_dsn
from persistence.errors import HistoryChanged, WatchEnded
from persistence.history import EventFilter, PaymentHistory, WatchedEvent
from persistence.positions import Position
from persistence.state_log import StateLog
from persistence.subscriptions import Delivery, Subscription, Subscriptions

CHANNEL: Final = "order_payment_events"
"""The channel of NOTIFY."""

# Seconds.
_MIN_INTERVAL: Final = 0.02  # between two reads of the history, and between two notifications
_POLL_INTERVAL: Final = 0.5  # until the history is read without a notification
_RECONNECT_DELAY: Final = 0.5

# The shortest time to a heartbeat, as a part of the interval. It varies, so that the heartbeats of
# watches that began together, as after a restart, do not come together.
_MIN_HEARTBEAT: Final = 0.75

# Watches that join without a pause for other calls. Their ids take 0.2 ms, for a thousand of them.
_JOINING_AT_ONCE: Final = 50

_log = logging.getLogger(__name__)


class ChangeFeed:
    """Delivers each committed event to the watchers. Use it as an async context manager."""

    def __init__(
        self,
        history: PaymentHistory,
        url: str,
        *,
        connect_timeout: float,
        heartbeat: float = 0,
        name: str | None = None,
    ) -> None:
        """Describe the feed; nothing is opened yet. ``url`` is a libpq URL, times are seconds.

        A watch that has had no event for ``heartbeat`` seconds gets its position; 0: it never does.
        ``name`` is the ``application_name`` of its session, instead of one in the URL.
        """
        self._history = history
        self._dsn = asyncpg_dsn(url)
        self._settings = None if name is None else {"application_name": name}
        self._connect_timeout = connect_timeout
        self._heartbeat = heartbeat
        self._subscriptions = Subscriptions()
        self._joining: set[Subscription] = set()  # by the next delivery
        self._retrying: set[Subscription] = set()  # of these, after a delivery that failed
        self._position: Position | None = None  # up to which all subscriptions have their events
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
        self._fail((*self._subscriptions, *self._joining), WatchEnded("the process stops"))

    async def watch(
        self, wanted: EventFilter, position: Position | None
    ) -> AsyncGenerator[Delivery]:
        """Yield a position without an event, then each event of ``wanted`` once, without end.

        The events are those committed after ``position``, or from now on. While there is none, the
        position that the watcher has come to is yielded once a heartbeat. Raises WatcherTooSlow,
        WatchEnded, or another PersistenceError; a watch from the last position on skips no event.
        Raises HistoryChanged when no watch can go on from there, because what was seen is gone.
        """
        async with self._subscribed(wanted) as (subscription, start):
            if position is None:
                yield None, start
            else:
                # After ``start`` was taken: a fail-over in between would be noticed by one of them.
                position = await self._history.checked(position)
                yield None, position
                async for earlier in self._history.missed_events(position, start, wanted):
                    yield earlier
            while True:
                with suppress(TimeoutError):
                    async with asyncio.timeout(self._next_heartbeat()):
                        await subscription.changed()
                yield subscription.take() or self._checkpoint()

    @asynccontextmanager
    async def _subscribed(
        self, wanted: EventFilter
    ) -> AsyncIterator[tuple[Subscription, Position]]:
        """Subscribe, and yield the position from which on the subscription has all events.

        The watches that begin while the history is being read share its next reading.
        """
        if self._ended:
            raise WatchEnded("the process stops")
        subscription = Subscription(wanted)
        self._joining.add(subscription)
        self._notified.set()
        try:
            await subscription.changed()
            first = subscription.take()
            assert first is not None  # noqa: S101 - it has changed
            yield subscription, first[1]
        finally:
            self._joining.discard(subscription)
            self._subscriptions.discard(subscription)

    def _checkpoint(self) -> Delivery:
        """Return the position that a subscription with an empty queue has come to."""
        assert self._position is not None  # noqa: S101 - a subscription begins with one
        return None, self._position

    def _next_heartbeat(self) -> float | None:
        """Return in how many seconds a heartbeat is due, None for never."""
        shortest = self._heartbeat * _MIN_HEARTBEAT
        return random.uniform(shortest, self._heartbeat) or None  # noqa: S311 - not for security

    async def _keep_delivering(self) -> None:
        """Deliver after each notification, and at each poll."""
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(_POLL_INTERVAL):
                    await self._notified.wait()
            self._notified.clear()
            if self._subscriptions or self._joining:
                try:
                    await self._deliver()
                    self._read_state.succeeded()
                    self._retrying.clear()
                except HistoryChanged as change:
                    self._end_with(change)
                except Exception as error:  # the next delivery continues from the same position
                    self._read_state.failed(error)
                    self._fail_joining(error)
            await asyncio.sleep(_MIN_INTERVAL)

    async def _deliver(self) -> None:
        """Deliver what has become durable, then add the subscriptions that wait for that."""
        joining = set(self._joining)  # before the look, so that it lies after their beginning
        if not self._subscriptions:
            self._position = None  # nothing has kept it up to date
        now = known = self._position
        if now is None or await self._history.visible(now) != now.seen:
            now = await self._history.durable(known)
        if known is not None and now is not known:
            # PostgreSQL filters first: of a million changes, only those that are watched are read.
            # With very many ids, ``wanted`` is for all orders. Refused events are read only if a
            # watch wants them.
            wanted = self._subscriptions.wanted
            await self._deliver_each(self._history.events_since(known, now, wanted))
        self._position = now
        for number, subscription in enumerate(joining, start=1):
            if subscription in self._joining:  # it has not ended meanwhile
                self._joining.remove(subscription)
                self._subscriptions.add(subscription)
                subscription.put(None, now)
            if number % _JOINING_AT_ONCE == 0:
                await asyncio.sleep(0)

    async def _deliver_each(self, events: AsyncIterator[tuple[WatchedEvent, Position]]) -> None:
        async for event, position in events:
            for subscription in self._subscriptions.matching(event):
                if not subscription.put(event, position):
                    self._subscriptions.discard(subscription)
            # Set for each event: after an error in between, none is delivered twice.
            self._position = position
            if not self._subscriptions:
                break  # all of them were too slow

    def _end_with(self, change: HistoryChanged) -> None:
        """End all watches: the history lacks what they have been sent. Others begin at once."""
        if ended := len(self._subscriptions):
            _log.warning("history of payments changed: %s; %d watches ended", change, ended)
        self._position = None
        for subscription in tuple(self._subscriptions):
            subscription.fail(change)
            self._subscriptions.discard(subscription)
        self._notified.set()

    def _fail_joining(self, failure: Exception) -> None:
        """Fail the watches whose beginning failed a second time, and retry the others at once.

        A rush of thousands can take so long that the first connection to PostgreSQL times out.
        """
        failed = self._joining & self._retrying
        self._fail(failed, failure)
        self._joining -= failed
        self._retrying = set(self._joining)
        if self._retrying:
            self._notified.set()

    def _fail(self, subscriptions: Iterable[Subscription], failure: Exception) -> None:
        for subscription in subscriptions:
            subscription.fail(failure)

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
