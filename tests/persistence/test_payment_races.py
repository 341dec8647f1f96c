"""Concurrent writers: every answer is consistent with the order of events in the ledger."""

import asyncio
import time
from collections.abc import AsyncIterator, Coroutine, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from random import Random
from typing import Any, Final

import psycopg
import pytest

from persistence import errors
from persistence.history import PaymentHistory
from persistence.models import PAYMENT_COLUMNS, Origin, PaymentEvent, Update
from persistence.orders import OrderRepository
from tests.support import databases
from tests.support.orders import Orders
from tests.support.waiting import eventually_async, lock_waits

pytestmark = pytest.mark.anyio

KEY: Final = "payment_idempotency_key"
WRITERS, ORDERS, REQUESTS, UPDATES = 16, 4, 150, 25
STATUSES: Final = (
    *("pending", "processing", "failed", "paid", "paid"),
    *("partially_refunded", "disputed", "on_hold", "on_hold"),
)

EMPTY: Final[dict[str, str | None]] = dict.fromkeys(PAYMENT_COLUMNS) | {"payment_status": "pending"}
SETTLED: Final = {"paid", "partially_refunded", "disputed"}
UNSETTLED: Final = {"pending", "processing", "failed"}

Answer = Update | errors.IdempotencyKeyReused | errors.PaymentStatusRefused


@dataclass(frozen=True)
class Call:
    """An update by one writer, its answer, and the times when it began and ended."""

    request_id: str
    order_id: int
    params: dict[str, str]
    answer: Answer
    began: float
    ended: float


@asynccontextmanager
async def opened(url: str) -> AsyncIterator[tuple[OrderRepository, PaymentHistory]]:
    database = databases.pool(url, max_connections=8)
    async with database:
        yield OrderRepository(database), PaymentHistory(database)


async def update(
    repository: OrderRepository, order_id: int, request_id: str = "r", **params: str
) -> Answer:
    try:
        return await repository.update_payment_info(order_id, params, Origin(request_id))
    except (errors.IdempotencyKeyReused, errors.PaymentStatusRefused) as refusal:
        return refusal


def before(event: PaymentEvent) -> dict[str, str | None]:
    return {name: getattr(event, f"{name}_before") for name in PAYMENT_COLUMNS}


def after(event: PaymentEvent) -> dict[str, str | None]:
    return {name: getattr(event, f"{name}_after") for name in PAYMENT_COLUMNS}


def payment(update: Update) -> dict[str, str | None]:
    return {name: getattr(update.order, name) for name in PAYMENT_COLUMNS}


def requests(random: Random, order_ids: list[int]) -> Iterator[tuple[int, dict[str, str]]]:
    """Yield the updates that the writers send, each more than once and out of order."""
    for _ in range(REQUESTS):
        params = {"payment_status": random.choice(STATUSES)}
        if random.random() < 0.5:
            params["payment_transaction_id"] = f"{random.randint(1, 3)}"
        if random.random() < 0.7:
            params[KEY] = f"key {random.randint(1, REQUESTS)}"
        yield random.choice(order_ids), params


@pytest.mark.parametrize("seed", range(3))
async def test_the_ledger_is_a_serial_history_that_explains_every_answer(
    database_url: str, seed: int
) -> None:
    orders = Orders(database_url)
    order_ids = [orders.add() for _ in range(ORDERS)]
    shared = list(requests(Random(seed), order_ids))
    calls: list[Call] = []

    async def write(repository: OrderRepository, writer: int) -> None:
        random = Random(f"{seed} {writer}")
        for number in range(UPDATES):
            order_id, params = random.choice(shared)
            request_id, began = f"{writer} {number}", time.monotonic()
            answer = await update(repository, order_id, request_id, **params)
            calls.append(Call(request_id, order_id, params, answer, began, time.monotonic()))

    async with opened(database_url) as (repository, ledger):
        await asyncio.gather(*(write(repository, writer) for writer in range(WRITERS)))
        events = {each: await ledger.list_events(each, 10_000) for each in order_ids}

    assert len(calls) == WRITERS * UPDATES
    for order_id in order_ids:
        check_chain(orders.row(order_id), events[order_id])
    history = History(events, {call.request_id: call for call in calls})
    for call in calls:
        history.explain(call)
    # Each event belongs to a call whose answer reports it.
    applied = {call.request_id for call in calls if name(call.answer) == "applied"}
    assert history.by_request.keys() <= applied
    assert len(history.by_request) == sum(map(len, events.values()))
    assert {name(call.answer) for call in calls} == {
        *("applied", "replayed", "IdempotencyKeyReused", "PaymentStatusRefused")
    }


@dataclass
class History:
    """The events of each order, the calls, and which call made which event."""

    events: dict[int, list[PaymentEvent]]
    calls: dict[str, Call]

    def __post_init__(self) -> None:
        everything = [event for each in self.events.values() for event in each]
        self.by_request = {str(event.request_id): event for event in everything}
        self.by_key = {event.idempotency_key: event for event in everything}

    def explain(self, call: Call) -> None:
        """Fail unless the answer to ``call`` is consistent with the events."""
        written = self.by_request.get(call.request_id)
        answer = call.answer
        if isinstance(answer, Update) and not answer.replayed:
            if written is None:  # it changed nothing, and so had no key
                assert KEY not in call.params
                assert call.params.items() <= payment(answer).items()
                assert payment(answer) in [EMPTY, *map(after, self.events[call.order_id])]
            else:
                assert after(written) == before(written) | call.params == payment(answer)
            return
        assert written is None
        if isinstance(answer, errors.PaymentStatusRefused):
            assert answer.new == call.params["payment_status"]
            assert answer.current in self.statuses_during(call)
            return
        first = self.by_key[call.params[KEY]]
        by = self.calls[str(first.request_id)]
        assert by.began < call.ended
        same = (by.order_id, by.params) == (call.order_id, call.params)
        assert same == isinstance(answer, Update)

    def statuses_during(self, call: Call) -> set[str]:
        """Return every status that the order may have had while ``call`` was under way."""
        statuses = {"pending"}
        for event in self.events[call.order_id]:
            by = self.calls[str(event.request_id)]
            if by.ended < call.began:  # ended before the call began, as did all before it
                statuses.clear()
            if by.began < call.ended:
                statuses.add(event.payment_status_after)
        return statuses


def check_chain(row: dict[str, Any], events: list[PaymentEvent]) -> None:
    """Check that each event starts from the values of the one before, and no status goes back."""
    state = EMPTY
    for event in events:
        assert before(event) == state
        state = after(event)
        if event.payment_status_before in SETTLED:
            assert event.payment_status_after not in UNSETTLED
    assert state == {name: row[name] for name in PAYMENT_COLUMNS}


def name(answer: Answer) -> str:
    if isinstance(answer, Update):
        return "replayed" if answer.replayed else "applied"
    return type(answer).__name__


async def both(*calls: Coroutine[Any, Any, Answer]) -> set[str]:
    """Run both calls concurrently, and return the names of their answers."""
    return set(map(name, await asyncio.gather(*calls)))


@pytest.mark.parametrize("order", ["paid first", "pending first", "as it comes"])
async def test_paid_and_a_late_pending_end_in_paid(database_url: str, order: str) -> None:
    orders = Orders(database_url)
    async with opened(database_url) as (repository, _):
        for _ in range(20):
            order_id = orders.add(payment_status="processing")
            statuses = ["pending", "paid"] if order == "pending first" else ["paid", "pending"]
            if order == "as it comes":
                await both(*(update(repository, order_id, payment_status=s) for s in statuses))
            else:
                await in_turn(database_url, repository, order_id, statuses)
            assert orders.row(order_id)["payment_status"] == "paid"


async def in_turn(
    url: str, repository: OrderRepository, order_id: int, statuses: list[str]
) -> None:
    """Queue the updates for the row's lock in the given order, then release the lock."""
    with psycopg.connect(url) as holder:
        holder.execute("SELECT FROM orders WHERE id = %s FOR UPDATE", (order_id,))
        calls = []
        for status in statuses:
            calls.append(asyncio.create_task(update(repository, order_id, payment_status=status)))
            await eventually_async(lambda: lock_waits(url) >= len(calls))
        holder.rollback()
        await asyncio.gather(*calls)


async def test_two_equal_requests_sent_concurrently(database_url: str) -> None:
    orders = Orders(database_url)
    async with opened(database_url) as (repository, ledger):
        for number in range(30):
            order_id = orders.add()
            params = {"payment_status": "paid", KEY: f"{number}"}
            answers = await both(
                *(update(repository, order_id, f"{each}", **params) for each in range(2))
            )
            assert answers == {"applied", "replayed"}
            assert len(await ledger.list_events(order_id, 10)) == 1


async def test_updates_of_two_orders_with_the_same_key(database_url: str) -> None:
    orders = Orders(database_url)
    async with opened(database_url) as (repository, ledger):
        for number in range(30):
            ids = [orders.add(), orders.add()]
            params = {"payment_status": "paid", KEY: f"{number}"}
            answers = await both(*(update(repository, each, **params) for each in ids))
            assert answers == {"applied", "IdempotencyKeyReused"}
            statuses = [orders.row(each)["payment_status"] for each in ids]
            assert sorted(statuses) == ["paid", "pending"]
            found = [len(await ledger.list_events(each, 10)) for each in ids]
            assert found == [int(status == "paid") for status in statuses]
