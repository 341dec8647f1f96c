"""Messages without an event, which an idle watch gets once a heartbeat."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import pytest

from persistence.errors import DatabaseUnavailable
from persistence.history import EventFilter, PaymentHistory, WatchedEvent
from persistence.models import PaymentEvent
from persistence.positions import Position
from tests.support import databases
from tests.support.feeds import ONE, CountedHistory, Stream, feed, feed_of, watching
from tests.support.orders import Orders

pytestmark = pytest.mark.anyio


async def test_heartbeats_go_on_while_the_database_is_away(database_url: str) -> None:
    """They carry the last position that is known, and what was committed meanwhile follows."""
    orders = Orders(database_url)
    order_id = orders.add(payment_status="processing", storefront_id=1)
    async with (
        feed(database_url, heartbeat=0.05) as opened,
        asyncio.timeout(20),
        watching(opened, ONE) as stream,
    ):
        event, known = await anext(stream)
        assert event is None
        with databases.unreachable(database_url):
            with pytest.raises(DatabaseUnavailable):
                await anext(opened.watch(ONE, None))
            for _ in range(20):
                assert await anext(stream) == (None, known)
        orders.change(order_id, payment_status="paid")
        while event is None:
            event, reached = await anext(stream)
        assert isinstance(event, PaymentEvent)
        assert event.payment_status_after == "paid"
        assert reached != known
        assert opened.watchers == 1


class Busy(PaymentHistory):
    """A history that reads an event while the process is busy for longer than a heartbeat.

    The event is queued between the time-out of the heartbeat and the step of the watcher's task.
    """

    async def events_since(
        self, position: Position, upto: Position, wanted: EventFilter
    ) -> AsyncIterator[tuple[WatchedEvent, Position]]:
        async for each in super().events_since(position, upto, wanted):
            asyncio.get_running_loop().call_soon(time.sleep, 0.3)
            await asyncio.sleep(0.01)
            yield each


async def test_a_heartbeat_does_not_overtake_a_queued_event(database_url: str) -> None:
    orders = Orders(database_url)
    order_id = orders.add(payment_status="processing", storefront_id=1)
    async with (
        feed_of(Busy, database_url, heartbeat=0.2) as (opened, _),
        asyncio.timeout(20),
        watching(opened, ONE) as stream,
    ):
        event, known = await anext(stream)
        assert event is None
        for status in ("requires_action", "authorized", "paid"):
            orders.change(order_id, payment_status=status)
            before = []
            event = None
            while event is None:
                event, position = await anext(stream)
                before.append(position)
            assert {*before[:-1]} <= {known}
            known = position
            # The position of an event leads into a snapshot, the next one to its end.
            event, known = await anext(stream)
            assert event is None


async def test_heartbeats_cost_no_statement(database_url: str) -> None:
    orders = Orders(database_url)
    orders.add(payment_status="paid")
    async with (
        feed_of(CountedHistory, database_url, heartbeat=0.02) as (opened, history),
        asyncio.timeout(20),
        AsyncExitStack() as stack,
    ):
        streams = [await stack.enter_async_context(watching(opened, ONE)) for _ in range(50)]
        before = history.looks + history.waits + history.readings

        async def heartbeats(stream: Stream) -> None:
            for _ in range(10):
                event, _position = await anext(stream)
                assert event is None

        await asyncio.gather(*map(heartbeats, streams))
        polled = history.looks + history.waits + history.readings - before
        assert polled < 50  # for 500 heartbeats


async def test_a_heartbeat_moves_on_with_events_that_are_not_wanted(database_url: str) -> None:
    """A watch from there reads none of them again."""
    orders = Orders(database_url)
    async with (
        feed(database_url, heartbeat=0.05) as opened,
        asyncio.timeout(20),
        watching(opened, ONE) as stream,
    ):
        for _ in range(3):
            orders.add(payment_status="paid", storefront_id=2)
        last = orders.value("SELECT max(transaction_id::text::bigint) FROM order_payment_events")
        position = None
        while position is None or position.seen.xmax <= last:
            event, position = await anext(stream)
            assert event is None


async def test_heartbeats_can_be_off(database_url: str) -> None:
    async with feed(database_url, heartbeat=0) as opened, watching(opened, ONE) as stream:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2):
                await anext(stream)
