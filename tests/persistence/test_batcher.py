"""Batches of updates: each caller gets the result that a single statement would give."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, nullcontext
from contextvars import Context, ContextVar
from random import Random

import psutil
import psycopg
import pytest

from persistence import errors
from persistence.batcher import BatchSpan
from persistence.models import Origin
from persistence.orders import OrderRepository
from persistence.payment_updates import Update
from tests.support import databases
from tests.support.history import update
from tests.support.orders import Orders
from tests.support.waiting import eventually_async, lock_waits

pytestmark = pytest.mark.anyio

CONNECTIONS, LIMIT = 6, 5.0
SOON = LIMIT / 2  # long before a time-out
MAX_IN_FLIGHT = 4  # single statements; further ones are batched
SLOT_SECONDS = 0.01  # after which the next batch starts in any case

BUSY = (
    "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
    " AND state <> 'idle' AND pid <> pg_backend_pid()"
)
SLEEPING = (
    "SELECT count(*) FROM pg_stat_activity"
    " WHERE wait_event = 'PgSleep' AND datname = current_database()"
)


@asynccontextmanager
async def opened(
    url: str, *, processes: int = 1, batch_span: BatchSpan = nullcontext
) -> AsyncIterator[OrderRepository]:
    pool = databases.pool(url, max_connections=CONNECTIONS, statement_timeout=LIMIT)
    async with pool as database:
        yield OrderRepository(database, processes=processes, batch_span=batch_span)


@pytest.fixture
async def repository(database_url: str) -> AsyncIterator[OrderRepository]:
    async with opened(database_url) as repository:
        yield repository


@pytest.fixture
def orders(database_url: str) -> Orders:
    return Orders(database_url)


def pay(
    repository: OrderRepository, order_id: int, request_id: str = "r", **params: str
) -> Awaitable[Update]:
    wanted = update({"payment_status": "paid"} | params)
    return repository.update_payment_info(order_id, wanted, Origin(request_id))


def transactions(orders: Orders, order_ids: list[int]) -> int:
    ids = ",".join(map(str, order_ids))
    statement = "SELECT count(DISTINCT transaction_id) FROM order_payment_events"
    return int(orders.value(f"{statement} WHERE order_id IN ({ids})"))


async def test_a_batch_shares_a_commit_and_nothing_else(
    repository: OrderRepository, orders: Orders
) -> None:
    order_ids = [orders.add() for _ in range(16)]
    answers = await asyncio.gather(
        *(
            pay(repository, each, f"request {each}", payment_transaction_id=f"txn_{each}")
            for each in order_ids
        )
    )
    assert (
        transactions(orders, order_ids) == MAX_IN_FLIGHT + 1
    )  # the first ones are sent as single statements
    for order_id, answer in zip(order_ids, answers, strict=True):
        assert answer.order.id == order_id
        assert answer.order.payment_transaction_id == f"txn_{order_id}"
        assert orders.row(order_id)["payment_transaction_id"] == f"txn_{order_id}"
        statement = "SELECT request_id FROM order_payment_events WHERE order_id ="
        assert orders.value(f"{statement} {order_id}") == f"request {order_id}"


async def test_a_batch_runs_within_a_span_of_its_callers(database_url: str, orders: Orders) -> None:
    order_ids = [orders.add() for _ in range(16)]
    caller: ContextVar[int] = ContextVar("caller")
    spans: list[list[int]] = []

    @contextmanager
    def span(callers: Sequence[Context]) -> Iterator[None]:
        spans.append([context[caller] for context in callers])
        before = transactions(orders, order_ids)
        yield
        assert transactions(orders, order_ids) > before

    async def call(repository: OrderRepository, order_id: int) -> None:
        caller.set(order_id)
        await pay(repository, order_id)

    async with opened(database_url, batch_span=span) as repository:
        await asyncio.gather(*(call(repository, each) for each in order_ids))
    assert spans == [order_ids[MAX_IN_FLIGHT:]]
    assert transactions(orders, order_ids) == MAX_IN_FLIGHT + 1


@pytest.mark.parametrize(
    ("processes", "singles"), [(2, MAX_IN_FLIGHT // 2), (MAX_IN_FLIGHT, 1), (100, 1)]
)
async def test_processes_share_the_slots(
    database_url: str, orders: Orders, processes: int, singles: int
) -> None:
    order_ids = [orders.add() for _ in range(16)]
    async with opened(database_url, processes=processes) as repository:
        await asyncio.gather(*(pay(repository, each) for each in order_ids))
    assert transactions(orders, order_ids) == singles + 1


async def test_each_caller_gets_its_own_error(repository: OrderRepository, orders: Orders) -> None:
    """One order does not exist, one status is refused, and three updates cause a rollback."""
    fine = [orders.add() for _ in range(4)]
    refunded = orders.add(payment_status="refunded")
    taken = orders.add(payment_idempotency_key="taken")
    others = [orders.add() for _ in range(3)]
    answers = await asyncio.gather(
        *(pay(repository, each, payment_idempotency_key=f"key {each}") for each in fine),
        pay(repository, refunded, payment_idempotency_key="key of a refused one"),
        pay(repository, 10**15, payment_idempotency_key="key of none"),
        pay(repository, others[0], payment_idempotency_key="taken"),
        pay(repository, others[1], payment_idempotency_key="x" * 256),
        pay(repository, others[2], payment_idempotency_key="a\0b"),
        return_exceptions=True,
    )
    assert [type(each) for each in answers] == [
        *[Update] * 4,
        errors.PaymentEventRefused,
        errors.OrderNotFound,
        errors.IdempotencyKeyReused,
        errors.InvalidValue,
        errors.InvalidValue,
    ]
    assert [orders.row(each)["payment_status"] for each in fine] == ["paid"] * 4
    assert not any(answer.replayed for answer in answers if isinstance(answer, Update))
    untouched = [orders.row(each)["payment_status"] for each in (refunded, taken, *others)]
    assert untouched == ["refunded", *["pending"] * 4]


async def test_one_of_several_updates_with_the_same_key_is_written(
    repository: OrderRepository, orders: Orders
) -> None:
    order_ids = [orders.add() for _ in range(6)]
    answers = await asyncio.gather(
        *(pay(repository, each, payment_idempotency_key="one") for each in order_ids),
        return_exceptions=True,
    )
    assert sorted(type(each).__name__ for each in answers) == [
        *["IdempotencyKeyReused"] * 5,
        "Update",
    ]
    paid = [each for each in order_ids if orders.row(each)["payment_status"] == "paid"]
    assert len(paid) == 1


async def test_concurrent_updates_of_one_order_record_an_event_each(
    repository: OrderRepository, orders: Orders
) -> None:
    order_id = orders.add()
    answers = await asyncio.gather(
        *(pay(repository, order_id, payment_transaction_id=f"txn_{each}") for each in range(30))
    )
    assert [each.order.payment_transaction_id for each in answers] == [
        f"txn_{each}" for each in range(30)
    ]
    assert orders.value("SELECT count(*) FROM order_payment_events") == 30


async def test_a_locked_row_delays_only_its_own_update(
    repository: OrderRepository, orders: Orders
) -> None:
    held, *others = [orders.add() for _ in range(10)]
    with orders.locked(held):
        waiting = asyncio.ensure_future(pay(repository, held))
        async with asyncio.timeout(SOON):
            await asyncio.gather(*(pay(repository, each) for each in others))
        assert not waiting.done()
    assert (await waiting).order.payment_status == "paid"


async def test_statements_that_wait_for_a_lock_do_not_delay_others(
    repository: OrderRepository, orders: Orders
) -> None:
    """With more statements waiting than there are slots."""
    held, other = orders.add(), orders.add()
    with orders.locked(held):
        waiting = []
        for number in range(CONNECTIONS - 1):
            waiting.append(asyncio.ensure_future(pay(repository, held)))
            await eventually_async(lambda n=number: lock_waits(orders.url) == n + 1)  # type: ignore[misc]
        async with asyncio.timeout(SOON):
            await pay(repository, other)
        assert not any(each.done() for each in waiting)
    await asyncio.gather(*waiting)


async def test_a_cancel_ends_one_statement_only(
    repository: OrderRepository, orders: Orders
) -> None:
    order_ids = [orders.add() for _ in range(8)]
    calls = [asyncio.ensure_future(pay(repository, each)) for each in order_ids]
    await asyncio.sleep(0)  # the tasks have started; no statement is sent yet
    calls[0].cancel()
    await asyncio.sleep(0)  # now the statements are sent
    calls[MAX_IN_FLIGHT + 1].cancel()
    answers = await asyncio.gather(*calls, return_exceptions=True)
    cancelled = [number for number, each in enumerate(answers) if not isinstance(each, Update)]
    assert cancelled == [0, MAX_IN_FLIGHT + 1]
    assert {type(answers[each]) for each in cancelled} == {asyncio.CancelledError}
    await asyncio.gather(*(pay(repository, each) for each in order_ids))


async def test_a_cancelled_batch_overwrites_nothing_later(
    repository: OrderRepository, orders: Orders
) -> None:
    """The batch executes its last statements long after its callers have been cancelled."""
    orders.slow_down(0.3, when="new.payment_transaction_id = 'early'")
    order_ids = [orders.add() for _ in range(MAX_IN_FLIGHT + 4)]
    early = [
        asyncio.ensure_future(pay(repository, each, payment_transaction_id="early"))
        for each in order_ids
    ]
    await eventually_async(
        lambda: orders.value(SLEEPING) == MAX_IN_FLIGHT + 1
    )  # and the batch of the others
    for call in early:
        call.cancel()
    await asyncio.gather(*early, return_exceptions=True)
    await asyncio.gather(
        *(pay(repository, each, payment_transaction_id="late") for each in order_ids)
    )

    assert {orders.row(each)["payment_transaction_id"] for each in order_ids} == {"late"}


async def test_a_cancelled_single_statement_overwrites_nothing_later(
    repository: OrderRepository, orders: Orders
) -> None:
    """PostgreSQL begins with the statement after its caller has been cancelled."""
    order_id = orders.add()
    await pay(repository, order_id)
    ours = "datname = current_database() AND query ~ 'UPDATE' AND pid <> pg_backend_pid()"
    backend = psutil.Process(orders.value(f"SELECT pid FROM pg_stat_activity WHERE {ours}"))
    backend.suspend()
    try:
        early = asyncio.ensure_future(pay(repository, order_id, payment_transaction_id="early"))
        await asyncio.sleep(SLOT_SECONDS)
        early.cancel()
        await asyncio.gather(early, return_exceptions=True)
        late = asyncio.ensure_future(pay(repository, order_id, payment_transaction_id="late"))
        await asyncio.wait([late], timeout=0.2)
        assert not late.done()  # the early one may still be executed
    finally:
        backend.resume()
    await late

    await eventually_async(lambda: orders.value(BUSY) == 0)
    assert orders.row(order_id)["payment_transaction_id"] == "late"


async def test_a_statement_cancelled_before_its_batch_is_sent_is_left_out(
    repository: OrderRepository, orders: Orders
) -> None:
    held = [orders.add() for _ in range(CONNECTIONS)]
    *first, cancelled, remaining = [orders.add() for _ in range(MAX_IN_FLIGHT + 2)]
    with orders.locked(*held):
        waiting = []
        for number, each in enumerate(held):
            waiting.append(asyncio.ensure_future(pay(repository, each)))
            await eventually_async(lambda n=number: lock_waits(orders.url) == n + 1)  # type: ignore[misc]
        waiting += [asyncio.ensure_future(pay(repository, each)) for each in first]
        cancelling = asyncio.ensure_future(pay(repository, cancelled))
        waiting.append(asyncio.ensure_future(pay(repository, remaining)))
        await asyncio.sleep(2 * SLOT_SECONDS)  # by now, these two form a batch
        cancelling.cancel()
        await asyncio.gather(cancelling, return_exceptions=True)
    await asyncio.gather(*waiting)

    assert [orders.row(each)["payment_status"] for each in (cancelled, remaining)] == [
        "pending",
        "paid",
    ]


async def test_each_caller_has_its_own_deadline(
    repository: OrderRepository, orders: Orders
) -> None:
    """A caller whose deadline expires does not wait for the rest of its batch."""
    orders.slow_down(0.3)
    order_ids = [orders.add() for _ in range(MAX_IN_FLIGHT + 4)]

    began = time.monotonic()
    calls = [asyncio.ensure_future(pay(repository, each)) for each in order_ids]
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.1):
            await calls[-1]
    assert time.monotonic() - began < 0.3
    answers = await asyncio.gather(*calls[:-1])
    assert [each.order.payment_status for each in answers] == ["paid"] * (MAX_IN_FLIGHT + 3)


async def test_a_lost_connection_fails_the_whole_batch(
    repository: OrderRepository, orders: Orders
) -> None:
    """All callers of the batch get the same error, and all or none of its updates are written."""
    orders.slow_down(1.0)
    order_ids = [orders.add() for _ in range(MAX_IN_FLIGHT + 4)]
    calls = [asyncio.ensure_future(pay(repository, each)) for each in order_ids]
    await eventually_async(
        lambda: orders.value(SLEEPING) == MAX_IN_FLIGHT + 1
    )  # and the batch of the others
    with psycopg.connect(orders.url, autocommit=True) as connection:
        connection.execute(SLEEPING.replace("count(*)", "pg_terminate_backend(pid)").encode())
    answers = await asyncio.gather(*calls, return_exceptions=True)
    assert {type(each) for each in answers} == {errors.DatabaseUnavailable}
    assert {orders.row(each)["payment_status"] for each in order_ids} == {"pending"}


async def test_processes_do_not_deadlock(database_url: str, orders: Orders) -> None:
    """Three pools update the same orders in different sequences, with few distinct keys."""
    order_ids = [orders.add() for _ in range(12)]

    async def work(repository: OrderRepository, seed: int) -> int:
        random, made = Random(seed), 0
        for number in range(25):
            chosen = random.sample(order_ids, 8)
            made += len(
                await asyncio.gather(
                    *(
                        pay(repository, each, payment_transaction_id=f"{seed} {number} {each}")
                        for each in chosen
                    )
                )
            )
        return made

    async with AsyncExitStack() as stack:
        pools = [await stack.enter_async_context(opened(database_url)) for _ in range(3)]
        made = await asyncio.gather(*(work(each, seed) for seed, each in enumerate(pools)))
    assert sum(made) == 3 * 25 * 8
    assert orders.value("SELECT count(*) FROM order_payment_events") == sum(made)
