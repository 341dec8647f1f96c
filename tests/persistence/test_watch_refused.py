"""Watches that have the refused events as well: none is missed, and none comes twice."""

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import aclosing
from dataclasses import replace
from random import Random
from typing import Any, Final, TypeAlias

import asyncpg
import pytest

from persistence import history
from persistence.database import Database
from persistence.dsn import asyncpg_dsn
from persistence.errors import DatabaseUnavailable
from persistence.history import EventFilter, PaymentHistory, WatchedEvent
from persistence.models import Origin, PaymentEvent, PaymentUpdate, RefusedEvent
from persistence.orders import OrderRepository
from persistence.payment_updates import Guard
from persistence.positions import ORIGIN, Position
from persistence.subscriptions import Delivery
from persistence.watch import ChangeFeed
from tests.support import databases
from tests.support.feeds import Stream, feed, feed_of, watching
from tests.support.history import connect, opened
from tests.support.orders import Orders
from tests.support.refused_updates import LATE_FAILURE, PAID, refuse

pytestmark = pytest.mark.anyio

SHOP: Final = 9
CHANGES: Final = EventFilter(storefront_ids=frozenset([SHOP]))
BOTH: Final = EventFilter(storefront_ids=frozenset([SHOP]), include_refused=True)

REQUEST: Final = Origin("request")

_REFUSE: Final = """
    INSERT INTO refused_payment_events (
        order_id, storefront_id, digest, written, tells_of_money, reason, request_id
    ) VALUES ($1, $2, md5($3)::uuid, false, false, 'PAYMENT_DUPLICATE', $3)
    ON CONFLICT (digest) DO UPDATE SET
        times = refused_payment_events.times + 1, last_refused_at = clock_timestamp()
"""

Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record]"
Texts: TypeAlias = list[str]


def text(event: WatchedEvent) -> str:
    """Return what the writers below call an event."""
    if isinstance(event, PaymentEvent):
        return str(event.payment_transaction_id_after)
    return event.request_id


async def write(connection: Connection, order_id: int, value: str) -> None:
    """Write a change, or for a value that ends with "!" the record of a refused event."""
    if value.endswith("!"):
        await connection.execute(_REFUSE, order_id, SHOP, value)
    else:
        await connection.execute(
            "UPDATE orders SET payment_transaction_id = $1 WHERE id = $2", value, order_id
        )


class Writer:
    """Changes an order of its own, and refuses events, in transactions that overlap with others."""

    def __init__(self, url: str, name: str) -> None:
        self._url = url
        self._name = name
        self._random = Random(name)

    async def run(self) -> Texts:
        """Return the values of what was committed, each once."""
        order_id = Orders(self._url).add(storefront_id=SHOP)
        connection = await asyncpg.connect(asyncpg_dsn(self._url))
        wrote = dict[str, None]()
        for number in range(12):
            transaction = connection.transaction()
            await transaction.start()
            written = []
            for each in range(self._random.randint(1, 3)):
                value = f"{self._name} {number} {each}"
                if self._random.random() < 0.6:
                    # Also one that is on record already.
                    value = self._random.choice([value, *wrote]).rstrip("!") + "!"
                await write(connection, order_id, value)
                written.append(value)
                for _ in range(self._random.randint(0, 20)):
                    await asyncio.sleep(0)
            if self._random.random() < 0.2:
                await transaction.rollback()
            else:
                await transaction.commit()
                wrote.update(dict.fromkeys(written))
        await connection.close()
        return list(wrote)


async def read(opened: ChangeFeed, wanted: EventFilter, position: Position) -> list[Delivery]:
    """Watch from ``position`` up to the event that is called "end"."""
    found: list[Delivery] = []
    async with aclosing(opened.watch(wanted, position)) as stream:
        async for event, reached in stream:
            if event is not None:
                found.append((event, Position.parse(str(reached))))
                if text(event) == "end":
                    break
    return found


def texts(found: Iterable[Delivery]) -> Texts:
    return [text(event) for event, _ in found if event is not None]


@pytest.mark.parametrize(("seed", "page_size"), [(0, 500), (1, 2), (2, 1)])
async def test_every_event_arrives_once_however_often_the_watcher_reconnects(
    database_url: str, monkeypatch: pytest.MonkeyPatch, seed: int, page_size: int
) -> None:
    """From any position; and a watch without refused events goes on from there, too."""
    monkeypatch.setattr(history, "_PAGE_SIZE", page_size)
    orders, random = Orders(database_url), Random(seed)
    found: list[Delivery] = []

    async def watch(opened: ChangeFeed, begun: asyncio.Event) -> None:
        position = None
        while not found or texts(found[-1:]) != ["end"]:
            async with aclosing(opened.watch(BOTH, position)) as stream:
                async for event, reached in stream:
                    found.append((event, reached))
                    position = Position.parse(str(reached))
                    begun.set()
                    if random.random() < 0.1 or (event and text(event) == "end"):
                        break

    async with feed(database_url, heartbeat=0.004) as opened, asyncio.timeout(60):
        begun = asyncio.Event()
        watched = asyncio.create_task(watch(opened, begun))
        await begun.wait()
        writers = [Writer(database_url, f"{seed}/{n}") for n in range(4)]
        written = await asyncio.gather(*(each.run() for each in writers))
        wrote = [value for each in written for value in each]
        orders.add(storefront_id=SHOP, payment_transaction_id="end")
        await watched
        assert sorted(texts(found)) == sorted([*wrote, "end"])
        for number in range(0, len(found) - 1, 9):
            after = found[number][1]
            rest = texts(found[number + 1 :])
            assert sorted(texts(await read(opened, BOTH, after))) == sorted(rest)
            changes = [each for each in rest if not each.endswith("!")]
            assert sorted(texts(await read(opened, CHANGES, after))) == sorted(changes)


async def stretch(url: str, *values: str) -> None:
    """Write what a watch that was away has missed: each value in a transaction of its own."""
    order_id = Orders(url).add(storefront_id=SHOP)
    connection = await asyncpg.connect(asyncpg_dsn(url))
    for value in values:
        await write(connection, order_id, value)
    await connection.close()


MISSED: Final = ("1!", "2", "3!", "4!", "5", "6", "7!", "end")


async def beginning(opened: ChangeFeed) -> Position:
    async with aclosing(opened.watch(CHANGES, None)) as stream:
        _, position = await anext(stream)
        return position


@pytest.mark.parametrize("page_size", [1, 2, 500])
async def test_what_was_missed_comes_by_its_time(
    database_url: str, monkeypatch: pytest.MonkeyPatch, page_size: int
) -> None:
    monkeypatch.setattr(history, "_PAGE_SIZE", page_size)
    async with feed(database_url) as opened, asyncio.timeout(20):
        start = await beginning(opened)
        await stretch(database_url, *MISSED)
        assert texts(await read(opened, BOTH, start)) == list(MISSED)
        changes = [each for each in MISSED if not each.endswith("!")]
        assert texts(await read(opened, CHANGES, start)) == changes


async def test_the_flag_may_change_within_a_stretch(database_url: str) -> None:
    """With, without and with refused events, each from the last position of the watch before."""
    async with feed(database_url) as opened, asyncio.timeout(20):
        start = await beginning(opened)
        await stretch(database_url, *MISSED)
        for _, first in [(None, start), *(await read(opened, BOTH, start))[:-1]]:
            seen = first.last_id, first.last_refused_id
            expected = texts(await read(opened, BOTH, first))
            for event, second in (await read(opened, CHANGES, first))[:-1]:
                assert event is not None
                assert second.last_refused_id == seen[1]
                rest = await read(opened, BOTH, second)
                # All refused events after the first position, all changes after the second one.
                skipped = [
                    each for each in expected if not each.endswith("!") and each <= text(event)
                ]
                assert sorted([*texts(rest), *skipped]) == sorted(expected)


async def test_a_position_without_refused_events_in_the_middle_of_a_stretch(
    database_url: str,
) -> None:
    """The refused events of the stretch have not been sent to this watcher: they come."""
    async with feed(database_url) as opened, asyncio.timeout(20):
        start = await beginning(opened)
        await stretch(database_url, *MISSED)
        (_, second), *_ = await read(opened, CHANGES, start)
        assert second.last_refused_id == 0
        expected = [each for each in MISSED if each != "2"]
        assert texts(await read(opened, BOTH, second)) == expected


async def refused_of(stream: Stream) -> RefusedEvent:
    event, _ = await anext(stream)
    assert isinstance(event, RefusedEvent)
    return event


async def test_a_repeated_event_comes_once(database_url: str) -> None:
    async with opened(database_url) as database, feed(database_url) as watched:
        repository = OrderRepository(database, committed=watched.notify)
        order_id = Orders(database_url).add(storefront_id=SHOP)
        wanted = EventFilter(frozenset([order_id]), include_refused=True)
        async with asyncio.timeout(20), watching(watched, wanted) as stream:
            await repository.update_payment_info(order_id, PAID, REQUEST)
            event, _ = await anext(stream)
            assert isinstance(event, PaymentEvent)
            await refuse(repository, order_id, LATE_FAILURE)
            first = await refused_of(stream)
            assert (first.order_id, first.times) == (order_id, 1)
            for _ in range(3):
                await refuse(repository, order_id, LATE_FAILURE)
            other = LATE_FAILURE._replace(payment_transaction_id="other")
            await refuse(repository, order_id, other)
            assert (await refused_of(stream)).payment_transaction_id == "other"


async def test_what_the_shadow_writes_comes_as_both(database_url: str) -> None:
    async with opened(database_url) as database, feed(database_url) as watched:
        shadow = OrderRepository(database, guard=Guard.SHADOW, committed=watched.notify)
        order_id = Orders(database_url).add(storefront_id=SHOP)
        await shadow.update_payment_info(order_id, PAID, REQUEST)
        async with asyncio.timeout(20), watching(watched, BOTH) as stream:
            await shadow.update_payment_info(order_id, LATE_FAILURE, REQUEST)
            change, _ = await anext(stream)
            assert isinstance(change, PaymentEvent)
            assert change.payment_status_after == "failed"
            assert (await refused_of(stream)).written


async def test_an_order_that_there_is_not(database_url: str) -> None:
    """Events for it have no storefront: they are for who watches its id, in any storefront."""
    missing = 10**15
    both = replace(BOTH, order_ids=frozenset([missing]))
    limited = replace(both, scope=BOTH.storefront_ids)
    Orders(database_url).add(payment_idempotency_key="evt_1")
    async with (
        opened(database_url) as database,
        feed(database_url) as watched,
        asyncio.timeout(20),
        watching(watched, both) as every,
        watching(watched, limited) as some,
    ):
        start = await beginning(watched)
        repository = OrderRepository(database, committed=watched.notify)
        reused = PaymentUpdate(payment_idempotency_key="evt_1")
        assert await refuse(repository, missing, reused) == "IDEMPOTENCY_KEY_REUSED"
        event = await refused_of(every)
        assert (event.order_id, event.storefront_id) == (missing, None)
        await stretch(database_url, "end")
        assert texts([await anext(some)]) == texts(await read(watched, limited, start)) == ["end"]
        assert texts(await read(watched, both, start)) == ["request", "end"]


class Interrupted(PaymentHistory):
    """A history whose connection is lost once, after each of some events."""

    def __init__(self, database: Database) -> None:
        super().__init__(database)
        self.left = {"2", "3!", "4!", "6"}

    async def events_since(
        self, position: Position, upto: Position, wanted: EventFilter
    ) -> AsyncIterator[tuple[WatchedEvent, Position]]:
        async for event, reached in super().events_since(position, upto, wanted):
            yield event, reached
            if text(event) in self.left:
                self.left.remove(text(event))
                raise DatabaseUnavailable("the connection was lost")


async def test_no_event_is_repeated_after_a_lost_connection(database_url: str) -> None:
    async with (
        feed_of(Interrupted, database_url) as (opened, interrupted),
        asyncio.timeout(20),
        watching(opened, BOTH) as stream,
        watching(opened, CHANGES) as changes,
    ):
        order_id = Orders(database_url).add(storefront_id=SHOP)
        connection = await asyncpg.connect(asyncpg_dsn(database_url))
        async with connection.transaction():  # one stretch
            for value in MISSED:
                await write(connection, order_id, value)
        await connection.close()
        found = [await anext(stream) for _ in MISSED]
        assert texts(found) == list(MISSED)
        taken = [each for each in MISSED if not each.endswith("!")]
        assert texts([await anext(changes) for _ in taken]) == taken
        assert interrupted.left == set()


async def test_refused_events_are_read_only_for_who_asks(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[str] = []
    fetch_all = Database.fetch_all

    async def recording(self: Database, query: str, values: Any) -> Any:
        sent.append(query)
        return await fetch_all(self, query, values)

    monkeypatch.setattr(Database, "fetch_all", recording)
    async with feed(database_url) as opened, asyncio.timeout(20):
        for wanted, tables in ((CHANGES, 1), (BOTH, 2), (CHANGES, 1)):
            start = await beginning(opened)
            async with watching(opened, wanted) as stream:
                sent.clear()
                await stretch(database_url, "1!", "end")
                found: list[Delivery] = []
                while texts(found[-1:]) != ["end"]:
                    found.append(await anext(stream))
                assert {"requested_state" in each for each in sent} == {False, tables == 2}
            sent.clear()
            await read(opened, wanted, start)
            assert {"requested_state" in each for each in sent} == {False, tables == 2}


async def test_refused_events_of_an_earlier_epoch_are_no_news(database_url: str) -> None:
    """Their transactions may be those of another cluster."""
    await stretch(database_url, "1!", "2", "3!")
    with connect(database_url) as connection:
        connection.execute(
            "INSERT INTO payment_history_epochs (last_event_id, last_refused_event_id)"
            " SELECT (SELECT max(id) FROM order_payment_events),"
            " (SELECT max(id) FROM refused_payment_events)"
        )
    await stretch(database_url, "4!", "end")
    async with databases.pool(database_url, max_connections=1) as database:
        read = PaymentHistory(database)
        now = await read.durable(None)
        events = read.events_since(Position(ORIGIN), now, BOTH)
        assert texts([each async for each in events]) == ["4!", "end"]
