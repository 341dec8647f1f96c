"""Workers of the version before and of this one on the same orders, during and after migrating."""

import asyncio
from collections.abc import AsyncIterator, Awaitable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from itertools import pairwise
from random import Random
from typing import Any, Final, TypeAlias

import asyncpg
import psycopg
import pytest

from persistence import migrations
from persistence.dsn import asyncpg_dsn
from persistence.errors import (
    EtagMismatch,
    IdempotencyKeyReused,
    PaymentEventRefused,
    TransactionConflict,
)
from persistence.models import Origin, PaymentUpdate, etag_of
from persistence.orders import OrderRepository
from persistence.payment_states import PaymentState
from persistence.payment_updates import Update
from tests.support import databases, pooler, version_0_1
from tests.support.history import after, before, events
from tests.support.orders import Orders
from tests.support.version_0_1 import KeyReused, OldWorker, StatusRefused
from tests.support.waiting import eventually_async, lock_waits

pytestmark = pytest.mark.anyio

WORKERS: Final = 6
WORDS: Final = ("pending", "processing", "failed", "canceled", "on_hold")


class NewWorker:
    """The present version's updates, under the interface of ``OldWorker``."""

    def __init__(self, repository: OrderRepository) -> None:
        self._repository = repository

    async def update(self, order_id: int, **params: Any) -> Update:
        update = PaymentUpdate(**params)
        return await self._repository.update_payment_info(order_id, update, Origin("new-worker"))


Worker: TypeAlias = OldWorker | NewWorker


Answer: TypeAlias = bool | Update | KeyReused | IdempotencyKeyReused


async def answer(update: Awaitable[bool | Update]) -> Answer:
    """Return what an update returns, or raises about its key."""
    try:
        return await update
    except (KeyReused, IdempotencyKeyReused) as error:
        return error


def is_replay(found: Answer) -> bool:
    return found.replayed if isinstance(found, Update) else found is True


@asynccontextmanager
async def old_workers(url: str, number: int = 1) -> AsyncIterator[list[OldWorker]]:
    """Yield workers that are connected as the service is."""
    async with AsyncExitStack() as stack:
        connections = []
        for _ in range(number):
            connection = await asyncpg.connect(
                asyncpg_dsn(databases.for_service(url)),
                statement_cache_size=0 if pooler.is_used() else 100,
            )
            stack.push_async_callback(connection.close)
            connections.append(connection)
        yield [OldWorker(connection) for connection in connections]


@asynccontextmanager
async def both(url: str) -> AsyncIterator[tuple[OldWorker, NewWorker]]:
    async with old_workers(url) as (old,), databases.pool(url) as database:
        yield old, NewWorker(OrderRepository(database))


def check_history(url: str, order_id: int) -> None:
    """Check that each event begins where the one before ended, and the last with the order."""
    found = events(url, order_id)
    for earlier, later in pairwise(found):
        assert before(later) == after(earlier)
    row = Orders(url).row(order_id)
    assert {name: row[name] for name in version_0_1.COLUMNS} == after(found[-1])


def stamps(url: str, order_id: int) -> tuple[Any, ...]:
    """Return the state, the version, and since when the payment has the state."""
    row = Orders(url).row(order_id)
    return row["payment_state"], row["payment_version"], row["payment_status_since"]


async def test_workers_of_the_version_before_lose_no_update_while_it_is_migrated(
    database_url: str,
) -> None:
    """Up, down and up again; each of them writes to orders that the others write to as well."""
    url, orders = database_url, Orders(database_url)
    migrations.down(url, version_0_1.MIGRATION)
    order_ids = [orders.add() for _ in range(10)]
    written: list[tuple[int, str]] = []
    migrated = asyncio.Event()

    async def write(worker: OldWorker, number: int) -> None:
        random = Random(number)
        while not migrated.is_set():
            order_id, session = random.choice(order_ids), f"cs_{number}_{len(written)}"
            await worker.update(
                order_id, payment_session_id=session, payment_status=random.choice(WORDS)
            )
            written.append((order_id, session))

    async with old_workers(url, WORKERS) as workers, asyncio.TaskGroup() as writing:
        for number, worker in enumerate(workers):
            writing.create_task(write(worker, number))
        await eventually_async(lambda: len(written) > 50)
        await asyncio.to_thread(migrations.up, url)
        await asyncio.to_thread(migrations.down, url, version_0_1.MIGRATION)
        await asyncio.to_thread(migrations.up, url)
        count = len(written)
        await eventually_async(lambda: len(written) > count + 50)
        migrated.set()

    recorded = []
    for order_id in order_ids:
        check_history(url, order_id)
        recorded += [(order_id, e["payment_session_id_after"]) for e in events(url, order_id)]
        assert stamps(url, order_id)[2] is not None
    assert sorted(recorded) == sorted(written)


async def test_a_word_of_the_version_before_is_understood_by_the_next_update(
    database_url: str,
) -> None:
    orders = Orders(database_url)
    async with both(database_url) as (old, new):
        order_id = orders.add()
        await new.update(order_id, payment_provider="stripe", payment_status="pending")
        first = stamps(database_url, order_id)
        assert first[0] == PaymentState.PENDING

        assert not await old.update(order_id, payment_status="paid")

        second = stamps(database_url, order_id)
        assert second[0] is None
        assert second[1] != first[1]
        assert second[2] > first[2]
        with pytest.raises(PaymentEventRefused) as caught:
            await new.update(order_id, payment_status="pending")
        assert caught.value.order.payment_state == PaymentState.PAID
        await new.update(order_id, payment_transaction_id="txn_1")
        third = stamps(database_url, order_id)
        assert (third[0], third[2]) == (PaymentState.PAID, second[2])

        await old.update(order_id, payment_status="paid", payment_intent_id="pi_1")
        assert stamps(database_url, order_id)[0] == PaymentState.PAID  # the word is the same
        await old.update(order_id, payment_status="refunded")
        await new.update(order_id, payment_status="refund_failed")
        assert stamps(database_url, order_id)[0] == PaymentState.PAID

        check_history(database_url, order_id)
        found = events(database_url, order_id)
        assert [each["payment_state_after"] for each in found] == [2, None, 9, 9, None, 9]
        assert [each["request_id"] for each in found] == [
            *("new-worker", "old-worker", "new-worker", "old-worker", "old-worker", "new-worker"),
        ]


async def test_an_id_of_the_version_before_is_that_of_the_present_attempt(
    database_url: str,
) -> None:
    """It replaces an id that another attempt has left stale."""
    orders = Orders(database_url)
    async with both(database_url) as (old, new):
        order_id = orders.add()
        stripe = {"payment_provider": "stripe", "payment_status": "pending"}
        await new.update(order_id, **stripe, payment_session_id="cs_1", payment_intent_id="pi_1")
        await new.update(order_id, **stripe, payment_session_id="cs_2")
        assert orders.row(order_id)["payment_intent_stale"]

        await old.update(order_id, payment_intent_id="pi_2", payment_status="paid")

        assert not orders.row(order_id)["payment_intent_stale"]
        await new.update(order_id, payment_intent_id="pi_2", payment_status="refunded")
        assert stamps(database_url, order_id)[0] == PaymentState.REFUNDED


async def test_the_version_before_goes_on_by_words(database_url: str) -> None:
    """It refuses the same, whether an old or a new worker has written the word."""
    async with both(database_url) as (old, new):
        order_id = Orders(database_url).add()
        await new.update(order_id, payment_status="paid")
        with pytest.raises(StatusRefused):
            await old.update(order_id, payment_status="pending")
        await old.update(order_id, payment_status="disputed")
        await new.update(order_id, payment_status="won")
        assert stamps(database_url, order_id)[0] == PaymentState.PAID
        assert not await old.update(order_id, payment_status="refunded")
        check_history(database_url, order_id)


async def test_an_etag_of_before_the_change_by_the_version_before_is_outdated(
    database_url: str,
) -> None:
    async with both(database_url) as (old, new):
        order_id = Orders(database_url).add()
        for params in ({"payment_status": "paid"}, {"payment_intent_id": "pi_2"}):
            read = etag_of((await new.update(order_id, payment_transaction_id="t")).order)
            await old.update(order_id, **params)
            with pytest.raises(EtagMismatch):
                await new.update(order_id, payment_status="refunded", etag=read)


async def test_a_key_is_used_once_by_both_versions(database_url: str) -> None:
    orders = Orders(database_url)
    async with both(database_url) as (old, new):
        for first, second in ((old, new), (new, old)):
            order_id, other_id = orders.add(), orders.add()
            key = {"payment_idempotency_key": f"evt_{order_id}"}
            paid = key | {"payment_provider": "stripe", "payment_status": "paid"}
            await first.update(order_id, **paid)
            assert is_replay(await second.update(order_id, **paid))
            assert is_replay(await first.update(order_id, **paid))
            with pytest.raises((KeyReused, IdempotencyKeyReused)):
                await second.update(other_id, **paid)
            assert events(database_url, other_id) == []

            # With other values, it is a further event for this version, and an error before it.
            await new.update(order_id, **key, payment_status="refunded")
            with pytest.raises(KeyReused):
                await old.update(order_id, **key, payment_status="refunded")
            assert is_replay(await new.update(order_id, **key, payment_status="refunded"))
            assert is_replay(await new.update(order_id, **paid))
            assert len(events(database_url, order_id)) == 2

            # After another key, and with it.
            await old.update(order_id, payment_idempotency_key=f"other_{order_id}")
            for worker in (first, second):
                assert is_replay(await worker.update(order_id, **paid))
                with pytest.raises((KeyReused, IdempotencyKeyReused)):
                    await worker.update(other_id, **paid)
            check_history(database_url, order_id)


@pytest.mark.parametrize("is_old_first", [True, False])
async def test_one_of_both_versions_gets_a_key_for_which_they_race(
    database_url: str, is_old_first: bool
) -> None:
    """Both have found the key unused, when the history becomes free to be written."""
    orders = Orders(database_url)
    order_ids = [orders.add(), orders.add()]
    paid = {"payment_idempotency_key": "evt_1", "payment_status": "paid"}
    async with both(database_url) as workers:
        racers: tuple[Worker, ...] = workers if is_old_first else workers[::-1]
        with psycopg.connect(database_url) as holder:
            holder.execute("LOCK TABLE order_payment_events IN SHARE MODE")
            racing = []
            for order_id, worker in zip(order_ids, racers, strict=True):
                racing.append(asyncio.create_task(answer(worker.update(order_id, **paid))))
                await eventually_async(lambda: lock_waits(database_url) == len(racing))
            holder.rollback()
        found = [await each for each in racing]

    (event,) = events(database_url)
    won = order_ids.index(event["order_id"])
    assert isinstance(found[won], bool | Update)
    assert not is_replay(found[won])
    assert isinstance(found[1 - won], KeyReused | IdempotencyKeyReused)
    assert orders.row(order_ids[1 - won])["payment_status"] == "pending"


async def test_a_dispute_of_the_version_before_is_won(database_url: str) -> None:
    """The state before the dispute is not known, so it is PAID."""
    order_id = Orders(database_url).add()
    migrations.down(database_url, version_0_1.MIGRATION)
    async with old_workers(database_url) as (old,):
        await old.update(order_id, payment_status="partially_refunded")
        await old.update(order_id, payment_status="disputed")
    migrations.up(database_url)
    assert stamps(database_url, order_id)[0] == PaymentState.DISPUTED
    async with both(database_url) as (_, new):
        order = (await new.update(order_id, payment_status="dispute_won")).order
    assert (order.payment_status, order.payment_state) == ("dispute_won", PaymentState.PAID)


async def test_both_versions_write_to_the_same_orders_at_once(database_url: str) -> None:
    """Each answer is in the history, in the order in which the payments changed."""
    orders = Orders(database_url)
    order_ids = [orders.add() for _ in range(3)]
    taken: list[tuple[int, str]] = []

    async def write(worker: Worker, number: int) -> None:
        random = Random(number)
        for turn in range(40):
            order_id, reference = random.choice(order_ids), f"txn_{number}_{turn}"
            # The last one, because old workers change the word faster than it is looked up.
            with suppress(PaymentEventRefused, StatusRefused, TransactionConflict):
                await worker.update(
                    order_id,
                    payment_transaction_id=reference,
                    payment_status=random.choice((*WORDS, "paid", "disputed", "won")),
                )
                taken.append((order_id, reference))

    async with (
        old_workers(database_url, 3) as old,
        databases.pool(database_url, max_connections=3) as database,
    ):
        workers: list[Worker] = [*old]
        workers += [NewWorker(OrderRepository(database)) for _ in range(3)]
        async with asyncio.TaskGroup() as writing:
            for number, worker in enumerate(workers):
                writing.create_task(write(worker, number))

    recorded = [(e["order_id"], e["payment_transaction_id_after"]) for e in events(database_url)]
    assert sorted(recorded) == sorted(taken)
    for order_id in order_ids:
        check_history(database_url, order_id)
        found = events(database_url, order_id)
        for earlier, later in pairwise(found):
            assert later["payment_state_before"] == earlier["payment_state_after"]
            is_old = later["request_id"] == "old-worker"
            is_new_word = later["payment_status_before"] != later["payment_status_after"]
            assert (later["payment_state_after"] is None) <= is_old
            assert (later["payment_state_after"] is None) >= (is_old and is_new_word)
