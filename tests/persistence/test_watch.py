"""Watching payments while transactions overlap and watchers reconnect."""

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from random import Random

import asyncpg
import psycopg
import pytest

from persistence.dsn import asyncpg_dsn
from persistence.errors import DatabaseUnavailable, InvalidPosition, WatchEnded, WatcherTooSlow
from persistence.history import EventFilter, PaymentHistory
from persistence.models import PaymentEvent
from persistence.positions import Position, Snapshot
from persistence.watch import ChangeFeed
from tests.support import databases
from tests.support.orders import Orders

pytestmark = pytest.mark.anyio


@asynccontextmanager
async def feed(url: str) -> AsyncIterator[ChangeFeed]:
    async with (
        databases.pool(url, max_connections=4) as database,
        ChangeFeed(
            PaymentHistory(database), databases.for_service(url), connect_timeout=5
        ) as opened,
    ):
        yield opened


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


@pytest.mark.parametrize("seed", range(6))
async def test_every_commit_arrives_once_however_often_the_watcher_reconnects(
    database_url: str, seed: int
) -> None:
    orders, random = Orders(database_url), Random(seed)
    order_ids = [orders.add(storefront_id=9) for _ in range(6)]
    wrote: dict[int, list[str]] = defaultdict(list)
    seen: dict[int, list[str]] = defaultdict(list)

    async def watch(opened: ChangeFeed, wanted: EventFilter) -> None:
        position: Position | None = None
        last = None
        while last != "end":
            async with aclosing(opened.watch(wanted, position)) as stream:
                remaining = random.randint(1, 15)
                async for event, reached in stream:
                    # A client stores the position as text.
                    position = Position.parse(str(reached))
                    if event is None:
                        begun.set()
                        continue
                    last = event.payment_transaction_id_after
                    assert last is not None
                    seen[event.order_id].append(last)
                    remaining -= 1
                    if last == "end" or remaining == 0:
                        break

    begun = asyncio.Event()
    connections = [await asyncpg.connect(asyncpg_dsn(database_url)) for _ in range(4)]
    locks = {order_id: asyncio.Lock() for order_id in order_ids}
    wanted = (
        EventFilter(storefront_ids=frozenset([9]))
        if seed % 2
        else EventFilter(frozenset(order_ids))
    )
    async with feed(database_url) as opened, asyncio.timeout(30):
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
    for each in connections:
        await each.close()
    assert seen == wrote


async def test_an_open_transaction_of_another_session_delays_no_event(database_url: str) -> None:
    orders = Orders(database_url)
    order_id = orders.add()
    with psycopg.connect(database_url) as other:
        other.execute("INSERT INTO orders SELECT * FROM orders WHERE false")
        other.execute("SELECT pg_current_xact_id()")
        async with (
            feed(database_url) as opened,
            asyncio.timeout(5),
            aclosing(opened.watch(EventFilter(frozenset([order_id])), None)) as stream,
        ):
            await anext(stream)
            orders.change(order_id, payment_status="paid")
            event, _ = await anext(stream)
    assert event is not None
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
        self, position: Position, upto: Snapshot, wanted: EventFilter
    ) -> AsyncIterator[tuple[PaymentEvent, Position]]:
        async for event, reached in super().events_since(position, upto, wanted):
            yield event, reached
            if event.payment_status_after == "2" and not self.interrupted:
                self.interrupted = True
                raise DatabaseUnavailable("the connection was lost")


async def test_no_event_is_repeated_after_a_lost_connection(database_url: str) -> None:
    orders = Orders(database_url)
    order_id = orders.add()
    database = databases.pool(database_url)
    history = Interrupted(database)
    async with (
        database,
        ChangeFeed(history, databases.for_service(database_url), connect_timeout=5) as opened,
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
    assert [each and each.payment_status_after for each in events] == list("01234")
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
        assert await history.snapshot() == Snapshot(1, 1, ())
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
            snapshot = await history.snapshot()
            assert snapshot.xmax == last + 1
            assert row[0] in snapshot.in_progress
            assert max(snapshot.in_progress) < snapshot.xmax
        assert (await history.snapshot()).xmax == last + 1


async def test_a_position_ahead_of_the_database_is_invalid(database_url: str) -> None:
    Orders(database_url).add(payment_status="paid")
    ahead = Position(Snapshot(2**40, 2**40, ()))
    async with feed(database_url) as opened:
        stream = opened.watch(EventFilter(storefront_ids=frozenset([1])), ahead)
        with pytest.raises(InvalidPosition):
            while True:
                await anext(stream)


@pytest.mark.parametrize(
    "position",
    [
        Position(Snapshot(1, 1, ())),
        Position(Snapshot(5, 9, (5, 7))),
        Position(Snapshot(5, 9, (5, 7)), Snapshot(2**62, 2**62, ()), 2**63 - 1),
    ],
)
async def test_a_position_survives_formatting_and_parsing(position: Position) -> None:
    assert Position.parse(str(position)) == position


@pytest.mark.parametrize(
    "text", ["", "*", "a" * 20_000, "MTow", "MDowOg", "NTo5Ojcs", "NTo5OjksOQ"]
)
async def test_other_texts_are_invalid_positions(text: str) -> None:
    with pytest.raises(InvalidPosition):
        Position.parse(text)


async def test_the_union_of_filters_matches_what_each_of_them_matches() -> None:
    """The union may match more; it has a scope only if each filter has one."""
    random = Random(20)

    def some(most: int) -> frozenset[int]:
        return frozenset(random.sample(range(6), random.randint(0, most)))

    def event(order_id: int, storefront_id: int) -> PaymentEvent:
        unknown = dict.fromkeys(PaymentEvent._fields)
        values = unknown | {"order_id": order_id, "storefront_id": storefront_id}
        return PaymentEvent(**values)  # type: ignore[arg-type]

    every_event = [event(order, storefront) for order in range(6) for storefront in range(6)]
    for _ in range(300):
        filters = [
            EventFilter(some(2), some(2), random.choice([None, some(3)]))
            for _ in range(random.randint(1, 4))
        ]
        union = EventFilter.union(filters)
        for each in every_event:
            assert union.matches(each) or not any(one.matches(each) for one in filters)
        assert union.order_ids == {n for one in filters for n in one.order_ids}
        assert union.storefront_ids == {n for one in filters for n in one.storefront_ids}
        scopes = [one.scope for one in filters]
        all_of_them = frozenset(n for scope in scopes for n in scope or ())
        assert union.scope == (None if None in scopes else all_of_them)
        if len(filters) == 1:
            assert union == filters[0]
