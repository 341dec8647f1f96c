"""Commits whose wait for a synchronous standby is interrupted on the server are no success."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Any, TypeVar

import psycopg
import pytest

from persistence import errors
from persistence.database import Database
from persistence.history import EventFilter, PaymentHistory
from persistence.models import Origin, PaymentEvent
from persistence.orders import OrderRepository
from persistence.positions import Position
from persistence.watch import ChangeFeed
from tests.support import cluster
from tests.support.cluster import Cluster
from tests.support.feeds import watching
from tests.support.history import update
from tests.support.orders import Orders
from tests.support.waiting import eventually_async

pytestmark = pytest.mark.anyio

T = TypeVar("T")

WAYS: dict[str, Callable[[Database, str], Awaitable[object]]] = {
    "fetch_all": Database.fetch_all,
    "fetch_one": Database.fetch_one,
    "fetch": Database.fetch,
    "fetchrow": Database.fetchrow,
    "fetchmany": lambda database, sql: database.fetchmany(sql, [()]),
}


class Pair:
    """A primary and its synchronous standby."""

    def __init__(self, primary: Cluster, standby: Cluster) -> None:
        self.primary = primary
        self.standby = standby

    def pool(self, *, max_connections: int = 1, statement_timeout: float = 20) -> Database:
        return Database(
            self.primary.url,
            max_connections=max_connections,
            connect_timeout=5,
            statement_timeout=statement_timeout,
        )

    async def interrupted(
        self, calls: Sequence[Awaitable[T]], by: str = "pg_cancel_backend"
    ) -> list[T | BaseException]:
        """Return the outcomes of ``calls``, whose commits wait for the standby until interrupted.

        Each wait ends ``by`` a function of PostgreSQL.
        """
        end_waits = f"SELECT {by}(pid) FROM pg_stat_activity WHERE wait_event = 'SyncRep'"
        with (
            self.standby.suspended(),
            psycopg.connect(self.primary.url, autocommit=True) as administrator,
        ):
            outcomes = asyncio.gather(*calls, return_exceptions=True)

            def ended() -> bool:
                administrator.execute(end_waits.encode())
                return outcomes.done()

            await eventually_async(ended)
            return await outcomes


@pytest.fixture(scope="module")
def pair() -> Iterator[Pair]:
    with cluster.running() as primary, primary.standby() as standby:
        yield Pair(primary, standby)


@pytest.fixture
def orders(pair: Pair) -> Orders:
    return Orders(pair.primary.url)


def mark(order_id: int, value: str) -> str:
    return (
        f"UPDATE orders SET payment_transaction_id = '{value}' WHERE id = {order_id} RETURNING id"
    )


@pytest.mark.parametrize("by", ["pg_cancel_backend", "pg_terminate_backend"])
@pytest.mark.parametrize("way", WAYS)
async def test_a_commit_that_may_not_be_replicated_is_no_success(
    pair: Pair, orders: Orders, way: str, by: str
) -> None:
    order_id, run = orders.add(), WAYS[way]
    async with pair.pool() as database:
        (outcome,) = await pair.interrupted([run(database, mark(order_id, "txn_1"))], by)
        assert type(outcome) is errors.DatabaseUnavailable
        assert orders.row(order_id)["payment_transaction_id"] == "txn_1"

        await run(database, mark(order_id, "txn_2"))  # the connection is as good as before
        assert orders.row(order_id)["payment_transaction_id"] == "txn_2"


@pytest.mark.parametrize("calls", [1, 16], ids=["single", "batched"])
async def test_an_update_that_may_not_be_replicated_is_not_acknowledged(
    pair: Pair, orders: Orders, calls: int
) -> None:
    order_ids = [orders.add() for _ in range(calls)]

    def pay(repository: OrderRepository) -> list[Awaitable[Any]]:
        return [
            repository.update_payment_info(
                each,
                update({"payment_status": "paid", "payment_idempotency_key": f"evt_{each}"}),
                Origin("r"),
            )
            for each in order_ids
        ]

    async with pair.pool(max_connections=6) as database:
        repository = OrderRepository(database)
        outcomes = await pair.interrupted(pay(repository))
        assert {type(each) for each in outcomes} == {errors.DatabaseUnavailable}
        assert all(each.replayed for each in await asyncio.gather(*pay(repository)))


async def test_warnings_that_the_role_turns_off(pair: Pair, orders: Orders) -> None:
    order_id = orders.add()
    pair.primary.execute("ALTER ROLE listings SET client_min_messages = error")
    try:
        async with pair.pool() as database:
            (outcome,) = await pair.interrupted([database.fetch(mark(order_id, "txn_1"))])
            assert type(outcome) is errors.DatabaseUnavailable
    finally:
        pair.primary.execute("ALTER ROLE listings RESET client_min_messages")


async def test_other_warnings_do_not_make_a_statement_fail(pair: Pair) -> None:
    with psycopg.connect(pair.primary.url, autocommit=True) as administrator:
        administrator.execute("""
            CREATE FUNCTION warn() RETURNS integer LANGUAGE plpgsql AS $$
            BEGIN
                RAISE WARNING USING errcode = '01000', message = 'canceling wait for replication';
                RETURN 1;
            END $$
        """)
    async with pair.pool() as database:
        assert await database.fetchrow("SELECT warn()") == (1,)
        assert await database.fetchmany("SELECT warn()", [(), ()]) == [(1,), (1,)]


async def test_no_position_is_taken_whose_wait_was_interrupted(pair: Pair, orders: Orders) -> None:
    orders.add(payment_status="paid")
    async with pair.pool() as database:
        history = PaymentHistory(database)
        outcomes = await pair.interrupted([history.durable(None)])
        assert [type(each) for each in outcomes] == [errors.DatabaseUnavailable]
        position = await history.durable(None)
        assert await history.visible(position) == position.seen


async def test_a_standby_gives_no_position_and_no_events(pair: Pair, orders: Orders) -> None:
    """Its snapshots have no transaction in progress, and not all that it shows is durable."""
    start = await _position(pair)
    orders.add(payment_status="paid")
    upto = await _position(pair)
    async with Database(
        pair.standby.url, max_connections=1, connect_timeout=5, statement_timeout=5
    ) as database:
        history = PaymentHistory(database)
        for call in (history.visible(upto), history.durable(None), history.checked(upto)):
            with pytest.raises(errors.DatabaseReadOnly):
                await call
        with pytest.raises(errors.DatabaseReadOnly):
            await anext(history.events_since(start, upto, EventFilter(all_orders=True)))


async def _position(pair: Pair) -> Position:
    async with pair.pool() as database:
        return await PaymentHistory(database).durable(None)


async def test_a_feed_waits_for_the_standby(pair: Pair, orders: Orders) -> None:
    """Watches stay, and one that joins waits as an update does; what is not durable is not sent."""
    order_id = orders.add()
    wanted = EventFilter(order_ids=frozenset([order_id]))
    async with (
        pair.pool(max_connections=2, statement_timeout=0.5) as database,
        ChangeFeed(
            PaymentHistory(database), pair.primary.url, connect_timeout=5, heartbeat=0.1
        ) as opened,
        asyncio.timeout(20),
        watching(opened, wanted) as stream,
    ):
        _, known = await anext(stream)
        with pair.standby.suspended():
            orders.change(order_id, payment_status="paid")  # its session does not wait
            joining = asyncio.create_task(anext(opened.watch(wanted, None)))
            while not joining.done():
                assert await anext(stream) == (None, known)
            assert isinstance(joining.exception(), errors.DatabaseTimeout)
        event = None
        while event is None:
            event, _ = await anext(stream)
        assert isinstance(event, PaymentEvent)
        assert event.payment_status_after == "paid"
