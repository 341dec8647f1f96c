"""Watching payments while transactions overlap and watchers reconnect."""

import asyncio
from collections import defaultdict
from collections.abc import AsyncGenerator, AsyncIterator, Iterable
from contextlib import AsyncExitStack, aclosing
from dataclasses import dataclass
from random import Random

import asyncpg
import psycopg
import pytest

from persistence.dsn import asyncpg_dsn
from persistence.errors import DatabaseUnavailable, WatchEnded, WatcherTooSlow
from persistence.history import EventFilter, PaymentHistory, WatchedEvent
from persistence.models import PaymentEvent
from persistence.positions import Position, Snapshot
from persistence.watch import ChangeFeed
from tests.support import databases, ledger
from tests.support.feeds import ONE, CountedHistory, Stream, feed, feed_of, watching
from tests.support.orders import Orders

pytestmark = pytest.mark.anyio


class Writer:
    """Changes orders in transactions that overlap with those of other writers."""

    def __init__(self, connection: "asyncpg.Connection[asyncpg.Record]", random: Random) -> None:
        self._connection = connection
        self._random = random

    async def run(
        self, order_ids: list[int], locks: dict[int, asyncio.Lock], wrote: dict[int, list[str]]
    ) -> None:
        for _ in range(12):
            transaction = self._connection.transaction()
            await transaction.start()
            chosen = sorted(self._random.sample(order_ids, self._random.randint(1, 2)))
            written = []
            for order_id in chosen:
                await locks[order_id].acquire()
                value = f"{self._random.getrandbits(64)}"
                await self._connection.execute(
                    "UPDATE orders SET payment_transaction_id = $1 WHERE id = $2", value, order_id
                )
                written.append((order_id, value))
                for _ in range(self._random.randint(0, 20)):
                    await asyncio.sleep(0)
            if self._random.random() < 0.2:
                await transaction.rollback()
            else:
                await transaction.commit()
                for order_id, value in written:
                    wrote[order_id].append(value)
            for order_id in chosen:
                locks[order_id].release()


@dataclass(frozen=True)
class Received:
    """A message of a stream, as a client keeps it."""

    order_id: int | None
    value: str | None
    event_id: str


async def messages(
    opened: ChangeFeed, wanted: EventFilter, event_id: str | None
) -> AsyncGenerator[Received]:
    """Watch from ``event_id`` up to the event with the value "end"."""
    position = None if event_id is None else Position.parse(event_id)
    async with aclosing(opened.watch(wanted, position)) as stream:
        async for event, reached in stream:
            assert event is None or isinstance(event, PaymentEvent)
            value = event and event.payment_transaction_id_after
            yield Received(event and event.order_id, value, str(reached))
            if value == "end":
                break


def by_order(received: Iterable[Received]) -> dict[int, list[str]]:
    found: dict[int, list[str]] = defaultdict(list)
    for each in received:
        if each.order_id is not None and each.value is not None:
            found[each.order_id].append(each.value)
    return found


@pytest.mark.parametrize("seed", range(6))
async def test_every_commit_arrives_once_however_often_the_watcher_reconnects(
    database_url: str, seed: int
) -> None:
    """From the event_id of the last message; at the end, from that of every third one, too."""
    orders, random = Orders(database_url), Random(seed)
    order_ids = [orders.add(storefront_id=9) for _ in range(6)]
    wrote: dict[int, list[str]] = defaultdict(list)
    received: list[Received] = []

    async def watch(opened: ChangeFeed, wanted: EventFilter) -> None:
        event_id = None
        while not received or received[-1].value != "end":
            async with aclosing(messages(opened, wanted, event_id)) as stream:
                async for each in stream:
                    received.append(each)
                    event_id = each.event_id
                    begun.set()
                    if random.random() < 0.1:
                        break

    begun = asyncio.Event()
    connections = [await asyncpg.connect(asyncpg_dsn(database_url)) for _ in range(4)]
    locks = {order_id: asyncio.Lock() for order_id in order_ids}
    wanted = (
        EventFilter(storefront_ids=frozenset([9]))
        if seed % 2
        else EventFilter(frozenset(order_ids))
    )
    async with feed(database_url, heartbeat=0.004) as opened, asyncio.timeout(30):
        watching = asyncio.create_task(watch(opened, wanted))
        await begun.wait()
        await asyncio.gather(
            *(
                Writer(each, Random(f"{seed} {n}")).run(order_ids, locks, wrote)
                for n, each in enumerate(connections)
            )
        )
        orders.change(order_ids[0], payment_transaction_id="end")
        wrote[order_ids[0]].append("end")
        await watching
        assert by_order(received) == wrote
        assert any(each.value is None for each in received)
        for number in range(0, len(received) - 1, 3):
            again = messages(opened, wanted, received[number].event_id)
            rest = [each async for each in again]
            assert by_order(rest) == by_order(received[number + 1 :])
    for each in connections:
        await each.close()


async def test_an_open_transaction_of_another_session_delays_no_event(database_url: str) -> None:
    orders = Orders(database_url)
    order_id = orders.add()
    with psycopg.connect(database_url) as other:
        other.execute("INSERT INTO orders SELECT * FROM orders WHERE false")
        other.execute("SELECT pg_current_xact_id()")
        wanted = EventFilter(frozenset([order_id]))
        async with (
            feed(database_url) as opened,
            asyncio.timeout(5),
            watching(opened, wanted) as stream,
        ):
            await assert_a_change_arrives(orders, order_id, stream)


async def assert_a_change_arrives(orders: Orders, order_id: int, stream: Stream) -> None:
    orders.change(order_id, payment_status="paid")
    event, _ = await anext(stream)
    assert isinstance(event, PaymentEvent)
    assert event.payment_status_after == "paid"


async def test_a_watcher_with_too_many_pending_events_is_dropped(database_url: str) -> None:
    orders = Orders(database_url)
    order_id = orders.add()
    async with (
        feed(database_url) as opened,
        aclosing(opened.watch(EventFilter(frozenset([order_id])), None)) as stream,
    ):
        await anext(stream)
        with psycopg.connect(database_url) as connection:
            for number in range(1_002):
                connection.execute(
                    "UPDATE orders SET payment_status = %s WHERE id = %s", (number, order_id)
                )
        async with asyncio.timeout(10):
            while opened.watchers:  # noqa: ASYNC110 - there is no event to wait for
                await asyncio.sleep(0)
        with pytest.raises(WatcherTooSlow):
            await anext(stream)


class Interrupted(PaymentHistory):
    """A history whose connection is lost once, in the middle of reading."""

    interrupted = False

    async def events_since(
        self, position: Position, upto: Position, wanted: EventFilter
    ) -> AsyncIterator[tuple[WatchedEvent, Position]]:
        async for event, reached in super().events_since(position, upto, wanted):
            yield event, reached
            assert isinstance(event, PaymentEvent)
            if event.payment_status_after == "2" and not self.interrupted:
                self.interrupted = True
                raise DatabaseUnavailable("the connection was lost")


async def test_no_event_is_repeated_after_a_lost_connection(database_url: str) -> None:
    orders = Orders(database_url)
    order_id = orders.add()
    async with (
        feed_of(Interrupted, database_url) as (opened, history),
        asyncio.timeout(10),
        aclosing(opened.watch(EventFilter(frozenset([order_id])), None)) as stream,
    ):
        await anext(stream)
        with psycopg.connect(database_url) as connection:
            for number in range(5):
                connection.execute(
                    "UPDATE orders SET payment_status = %s WHERE id = %s", (number, order_id)
                )
        events = [(await anext(stream))[0] for _ in range(5)]
    statuses = [each.payment_status_after for each in events if isinstance(each, PaymentEvent)]
    assert statuses == list("01234")
    assert history.interrupted


async def test_end_ends_all_watchers(database_url: str) -> None:
    async with feed(database_url) as opened:
        async with (
            aclosing(opened.watch(EventFilter(storefront_ids=frozenset([1])), None)) as first,
            aclosing(opened.watch(EventFilter(storefront_ids=frozenset([2])), None)) as second,
        ):
            await anext(first)
            await anext(second)
            opened.end()
            for stream in (first, second):
                with pytest.raises(WatchEnded):
                    await anext(stream)
        with pytest.raises(WatchEnded):
            await anext(opened.watch(EventFilter(storefront_ids=frozenset([1])), None))


async def test_many_unwatched_changes_do_not_delay_a_watched_one(database_url: str) -> None:
    orders = Orders(database_url)
    order_id = orders.add()
    async with (
        feed(database_url) as opened,
        asyncio.timeout(20),
        aclosing(opened.watch(EventFilter(frozenset([order_id])), None)) as stream,
    ):
        await anext(stream)
        with psycopg.connect(database_url) as connection:
            connection.execute(
                "INSERT INTO orders (order_number, buyer_id, storefront_id, currency,"
                " subtotal_amount, total_amount, payment_status)"
                " SELECT 'M-' || n, 1, 1, 'EUR', 1, 1, 'paid' FROM generate_series(1, 20000) n"
            )
        orders.change(order_id, payment_status="paid")
        async with asyncio.timeout(2):
            event, _ = await anext(stream)
    assert event is not None
    assert event.order_id == order_id


async def test_a_position_ends_with_the_last_event(database_url: str) -> None:
    """A later transaction id may not be on disk yet, and be assigned again after a crash."""
    orders = Orders(database_url)
    async with databases.pool(database_url, max_connections=1) as database:
        history = PaymentHistory(database)
        start = await history.durable(None)
        assert start.seen == await history.visible(start) == Snapshot(1, 1, ())
        with psycopg.connect(database_url) as earlier, psycopg.connect(database_url) as later:
            row = earlier.execute("SELECT pg_current_xact_id()::text::bigint").fetchone()
            assert row is not None
            orders.add(payment_status="paid")
            last = orders.value(
                "SELECT max(transaction_id::text::bigint) FROM order_payment_events"
            )
            later.execute("SELECT pg_current_xact_id()")
            for _ in range(2):
                orders.value("SELECT pg_current_xact_id()::text::bigint")
            position = await history.durable(start)
            assert position.seen.xmax == last + 1
            assert row[0] in position.seen.in_progress
            assert max(position.seen.in_progress) < position.seen.xmax
        assert (await history.visible(start)).xmax == last + 1


async def test_a_refused_event_is_one_that_may_be_the_last(database_url: str) -> None:
    Orders(database_url).add(payment_status="paid")
    async with databases.pool(database_url, max_connections=1) as database:
        history = PaymentHistory(database)
        before = await history.durable(None)
        with psycopg.connect(database_url) as connection:
            refused = ledger.refuse(connection)
        assert (await history.visible(before)).xmax == refused.transaction + 1
        assert (await history.durable(before)).seen.xmax == refused.transaction + 1


async def test_watches_that_begin_at_the_same_time_share_a_statement(database_url: str) -> None:
    async with (
        feed_of(CountedHistory, database_url) as (opened, history),
        asyncio.timeout(10),
        AsyncExitStack() as streams,
    ):
        await streams.enter_async_context(watching(opened, ONE))
        before = history.looks + history.waits
        begun = (streams.enter_async_context(watching(opened, ONE)) for _ in range(500))
        await asyncio.gather(*begun)
        assert opened.watchers == 501
        assert (
            history.looks + history.waits - before <= 3
        )  # the one under way, theirs, one by polling


async def test_a_watch_that_is_cancelled_before_it_begins_leaves_nothing(database_url: str) -> None:
    async with feed_of(CountedHistory, database_url) as (opened, history), asyncio.timeout(10):
        streams = [opened.watch(ONE, None) for _ in range(20)]
        tasks = [asyncio.create_task(anext(each)) for each in streams]
        while not history.waits:  # noqa: ASYNC110 - there is no event to wait for
            await asyncio.sleep(0)
        for each in tasks:
            each.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        async with watching(opened, ONE):
            assert opened.watchers == 1
