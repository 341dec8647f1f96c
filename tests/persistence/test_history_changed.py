"""Positions in a history that has lost events, or was begun anew."""

import asyncio
import base64
from collections.abc import AsyncIterator
from contextlib import ExitStack, aclosing
from dataclasses import dataclass, replace
from random import Random
from typing import Any

import psycopg
import pytest

from persistence import position_queries
from persistence.database import Database
from persistence.errors import DatabaseUnavailable, HistoryChanged
from persistence.history import EventFilter, PaymentHistory
from persistence.models import PaymentEvent
from persistence.positions import Mark, Position, Snapshot
from tests.support import databases, ledger
from tests.support.feeds import Stream, feed, watching
from tests.support.ledger import Entry
from tests.support.orders import Orders
from tests.support.plans import Read, explain, touched
from tests.support.waiting import eventually

pytestmark = pytest.mark.anyio

ALL = EventFilter(storefront_ids=frozenset([3]))  # the storefront of each order
EVERYTHING = EventFilter(all_orders=True, include_refused=True)


@pytest.fixture
async def history(database_url: str) -> AsyncIterator[PaymentHistory]:
    async with databases.pool(database_url) as database:
        yield PaymentHistory(database)


@dataclass(frozen=True)
class Reached:
    """A position, and the events that were committed by then, in that order."""

    position: Position
    seen: tuple[Entry, ...]


async def overlapping(url: str, history: PaymentHistory, random: Random) -> list[Reached]:
    """Commit events in transactions that overlap, and read them as they are committed."""
    orders = Orders(url)
    committed: list[Entry] = []
    reached, position = [], await history.durable(None)
    with ExitStack() as stack:
        connections = [stack.enter_context(psycopg.connect(url)) for _ in range(4)]
        order_ids = [orders.add() for _ in connections]
        written: list[list[Entry]] = [[] for _ in connections]
        for number in range(60):
            chosen = random.randrange(len(connections))
            if random.random() < 0.5:
                event = (
                    ledger.take(connections[chosen], order_ids[chosen], f"status {number}")
                    if random.random() < 0.9
                    else ledger.refuse(connections[chosen])
                )
                written[chosen].append(event)
            else:
                connections[chosen].commit()
                committed += written[chosen]
                written[chosen] = []
            if random.random() < 0.4:
                now = await history.durable(position)
                events = history.events_since(position, now, EVERYTHING)
                on_the_way = [each async for _, each in events]
                reached += [Reached(each, tuple(committed)) for each in (*on_the_way, now)]
                position = now
    return reached


def lost_of(reached: Reached, lost: list[Entry]) -> set[str]:
    """Return of which tables the position has seen events that are lost."""
    return {each.table for each in reached.seen if each in lost}


@pytest.mark.parametrize("seed", range(3))
async def test_each_loss_of_what_was_seen_is_noticed_and_no_other(
    database_url: str, history: PaymentHistory, seed: int
) -> None:
    """Whatever the order in which transactions began, the end of the WAL is lost."""
    random = Random(seed)
    reached = await overlapping(database_url, history, random)
    lost: list[Entry] = []
    noticed = 0
    for entry in reversed(reached[-1].seen):
        ledger.lose(database_url, entry)
        lost.append(entry)
        for each in random.sample(reached, 5):
            tables = lost_of(each, lost)
            if not tables:
                assert (await history.checked(each.position)) == each.position
            elif ledger.TAKEN in tables:  # of refused ones, a position knows the last event alone
                with pytest.raises(HistoryChanged):
                    await history.checked(each.position)
                with pytest.raises(HistoryChanged):
                    await history.durable(each.position)
                noticed += 1
    assert noticed > 20


async def test_another_event_with_the_same_ids_is_not_the_one_that_was_seen(
    database_url: str, history: PaymentHistory
) -> None:
    order_id = Orders(database_url).add()
    with psycopg.connect(database_url) as connection:
        event = ledger.take(connection, order_id, "paid")
    position = await history.durable(None)
    assert (await history.visible(position)).xmax == position.seen.xmax
    ledger.replace(database_url, event)
    with pytest.raises(HistoryChanged):
        await history.visible(position)


PLANS = ("enable_indexscan = off", "enable_bitmapscan = off", "enable_indexscan = on")


async def test_many_events_of_one_transaction_have_one_mark(database_url: str) -> None:
    """By any plan, and wherever the table has its rows."""
    with psycopg.connect(database_url) as connection:
        connection.execute("SET session_replication_role = replica")
        connection.execute(
            "INSERT INTO order_payment_events (order_id, storefront_id, payment_status_after)"
            " SELECT random() * 1000, 1, 'paid' FROM generate_series(1, 3000)"
        )
    limits: dict[str, Any] = {"connect_timeout": 5, "statement_timeout": 5}
    async with Database(database_url, max_connections=1, **limits) as database:
        history = PaymentHistory(database)
        position = await history.durable(None)
        for statement in (
            *(f"SET {each}" for each in PLANS),
            "CLUSTER order_payment_events USING order_payment_events_pkey",
            "ANALYZE order_payment_events",
        ):
            await database.fetch(statement)
            assert (await history.visible(position)).xmax == position.seen.xmax


@pytest.mark.parametrize("include_refused", [False, True])
async def test_another_server_answers_that_lacks_events(
    database_url: str, history: PaymentHistory, include_refused: bool
) -> None:
    """As an old primary does, to which the pool has a connection: nothing is skipped."""
    order_id = Orders(database_url).add()
    start = await history.durable(None)
    with psycopg.connect(database_url) as connection:
        ledger.take(connection, order_id, "paid")
        event = ledger.take(connection, order_id, "refunded")
    upto = await history.durable(start)
    ledger.lose(database_url, event)
    wanted = EventFilter(all_orders=True, include_refused=include_refused)
    for events in (
        history.events_since(start, upto, wanted),
        history.missed_events(start, upto, replace(wanted, scope=frozenset([404]))),
    ):
        with pytest.raises(DatabaseUnavailable, match="lacks events"):
            await anext(events)


async def test_the_last_refused_event_is_gone(database_url: str, history: PaymentHistory) -> None:
    before = await history.durable(None)
    with psycopg.connect(database_url) as connection:
        refused = ledger.refuse(connection)
    position = await history.durable(before)
    ledger.lose(database_url, refused)
    assert (await history.visible(before)).xmax == before.seen.xmax
    with pytest.raises(HistoryChanged):
        await history.visible(position)


async def test_a_position_of_another_cluster(database_url: str, history: PaymentHistory) -> None:
    """Its hash of system identifier and epoch is another one."""
    position = await history.durable(None)
    assert position.mark is not None
    other = replace(position, mark=position.mark._replace(ledger=position.mark.ledger ^ 1))
    with pytest.raises(HistoryChanged, match="another"):
        await history.checked(other)


def of_the_version_before(snapshot: Snapshot) -> Position:
    xmin, xmax, in_progress = snapshot
    text = f"{xmin}:{xmax}:{','.join(map(str, in_progress))}"
    return Position.parse(base64.urlsafe_b64encode(text.encode()).decode().rstrip("="))


async def test_a_position_of_the_version_before_is_good_in_the_first_epoch(
    database_url: str, history: PaymentHistory
) -> None:
    orders = Orders(database_url)
    orders.add(payment_status="paid")
    seen = (await history.durable(None)).seen
    earlier = of_the_version_before(seen)
    marked = await history.checked(earlier)
    assert marked.seen == seen
    assert isinstance(marked.mark, Mark)
    assert (await history.visible(marked)).xmax == seen.xmax
    with pytest.raises(HistoryChanged):
        await history.checked(of_the_version_before(Snapshot(2**40 + 3, 2**40 + 3, ())))
    ledger.begin_epoch(database_url)
    for each in (earlier, marked):
        with pytest.raises(HistoryChanged):
            await history.checked(each)


async def test_a_watch_from_a_position_of_the_version_before(database_url: str) -> None:
    orders = Orders(database_url)
    order_id = orders.add()
    earlier = of_the_version_before(Snapshot(1, 1, ()))
    orders.change(order_id, payment_status="processing")
    async with feed(database_url) as opened, aclosing(opened.watch(ALL, earlier)) as stream:
        first, position = await anext(stream)
        event, reached = await anext(stream)
        assert first is None
        assert isinstance(event, PaymentEvent)
        assert event.payment_status_after == "processing"
        for each in (position, reached):
            assert Position.parse(str(each)) == each
            assert each.mark is not None


async def test_running_and_resumed_watches_end_when_events_are_lost(database_url: str) -> None:
    """Whether or not another event comes; then a new watch begins."""
    order_id = Orders(database_url).add()
    async with feed(database_url) as opened, asyncio.timeout(10):
        async with watching(opened, ALL) as stream, watching(opened, ALL) as other:
            with psycopg.connect(database_url) as connection:
                event = ledger.take(connection, order_id, "paid")
            _, position = await anext(stream)
            await anext(other)
            ledger.lose(database_url, event)
            for each in (stream, other, opened.watch(ALL, position)):
                with pytest.raises(HistoryChanged, match="lost"):
                    await anext(each)
        async with watching(opened, ALL) as stream:
            Orders(database_url).change(order_id, payment_status="refunded")
            assert (await anext(stream))[0] is not None


async def test_no_watch_begins_on_a_history_that_needs_an_epoch(database_url: str) -> None:
    """As where the URL has come to lead to a database that was restored."""
    orders = Orders(database_url)
    order_id = orders.add(payment_status="paid")
    async with feed(database_url) as opened, asyncio.timeout(10):
        async with watching(opened, ALL) as stream:
            ledger.bring(database_url, order_id, "old", 2**40 + 3)
            with psycopg.connect(database_url) as connection:
                connection.execute(
                    "INSERT INTO payment_history_epochs (last_event_id, last_refused_event_id,"
                    " system_identifier) VALUES (0, 0, 1)"
                )
            with pytest.raises(HistoryChanged):
                await anext(stream)
        with pytest.raises(DatabaseUnavailable, match="of another cluster"):
            await anext(opened.watch(ALL, None))
        ledger.begin_epoch(database_url)
        async with watching(opened, ALL):
            pass


async def test_running_watches_end_when_an_epoch_begins(database_url: str) -> None:
    async with (
        feed(database_url) as opened,
        asyncio.timeout(10),
        watching(opened, ALL) as stream,
    ):
        ledger.begin_epoch(database_url)
        with pytest.raises(HistoryChanged, match="epoch"):
            await anext(stream)


def begins_after_all_events(url: str) -> bool:
    """Begin an epoch, and return whether its transactions are later than those of all events."""
    ledger.begin_epoch(url)
    with psycopg.connect(url) as connection:
        return not connection.execute(
            "SELECT FROM order_payment_events WHERE transaction_id >="
            " (SELECT first_transaction_id FROM payment_history_epochs ORDER BY id DESC LIMIT 1)"
        ).rowcount


async def test_a_look_reads_no_events_of_earlier_epochs(database_url: str) -> None:
    with psycopg.connect(database_url) as connection:
        connection.execute("SET session_replication_role = replica")
        connection.execute(
            "INSERT INTO order_payment_events (order_id, storefront_id, payment_status_after)"
            " SELECT 1, 1, 'paid' FROM generate_series(1, 20000)"
        )
    # Once no transaction of another test is in progress that began before.
    eventually(lambda: begins_after_all_events(database_url))
    with psycopg.connect(database_url, autocommit=True) as connection:
        cursor = psycopg.ClientCursor(connection)
        cursor.execute("ANALYZE order_payment_events")
        for sql in (position_queries.visible(), position_queries.durable()):
            plan = explain(cursor, Read(sql, ("1:1:", "1:1:", "0")), ", ANALYZE, BUFFERS")
            assert touched(plan) < 80


async def test_a_transaction_in_progress_when_an_epoch_begins(
    database_url: str, history: PaymentHistory
) -> None:
    order_id = Orders(database_url).add()
    with psycopg.connect(database_url) as connection:
        connection.execute("SELECT pg_current_xact_id()")
        ledger.begin_epoch(database_url)
        start = await history.durable(None)
        event = ledger.take(connection, order_id, "paid")
    upto = await history.durable(start)
    assert [each.id async for each, _ in history.events_since(start, upto, ALL)] == [event.id]


async def _statuses(stream: Stream, count: int) -> list[str]:
    found = [(await anext(stream))[0] for _ in range(count)]
    return [each.payment_status_after for each in found if isinstance(each, PaymentEvent)]


async def test_transactions_of_another_cluster_are_no_news(database_url: str) -> None:
    """They are of the past or of the future of this one, which comes to assign them."""
    orders = Orders(database_url)
    order_id = orders.add()
    now = orders.value("SELECT pg_current_xact_id()::text::bigint")
    for transaction in (3, now, now + 10, now + 11, now + 10**9):
        ledger.bring(database_url, order_id, "brought", transaction)
    ledger.begin_epoch(database_url)
    async with feed(database_url) as opened, asyncio.timeout(10):
        async with watching(opened, ALL) as stream:
            start = opened._position
            for first in range(0, 30, 5):  # each reading may wait for the next poll
                statuses = [f"{number}" for number in range(first, first + 5)]
                for status in statuses:
                    orders.change(order_id, payment_status=status)
                assert await _statuses(stream, len(statuses)) == statuses
        assert start is not None
        async with aclosing(opened.watch(ALL, start)) as stream:
            await anext(stream)
            assert await _statuses(stream, 30) == [f"{number}" for number in range(30)]
