"""Concurrent writers: the history is a serial one by the rules, and explains every answer."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from random import Random
from typing import Any, Final, NamedTuple

import psycopg
import pytest

from persistence import errors
from persistence.history import PaymentHistory
from persistence.models import PAYMENT_COLUMNS, Origin, PaymentEvent
from persistence.orders import OrderRepository
from tests.support import by_model, databases
from tests.support.orders import Orders
from tests.support.payment_model import Order, Reason, Request
from tests.support.payment_shop import OK, REPLAYED
from tests.support.refused_updates import refused as on_record
from tests.support.waiting import eventually_async, lock_waits

pytestmark = pytest.mark.anyio

WRITERS, ORDERS, REQUESTS, UPDATES = 16, 4, 150, 25
WORDS: Final = (
    *("pending", "processing", "authorized", "failed", "canceled", "paid", "PAID", "succeeded"),
    *("partially_refunded", "refund_failed", "disputed", "dispute_won", "returned", "piad"),
)
RULES: Final = by_model.rules()
REFUSED: Final = (errors.IdempotencyKeyReused, errors.PaymentEventRefused)


@asynccontextmanager
async def opened(url: str) -> AsyncIterator[tuple[OrderRepository, PaymentHistory]]:
    database = databases.pool(url, max_connections=8)
    async with database:
        yield OrderRepository(database), PaymentHistory(database)


async def answer(
    repository: OrderRepository, order_id: int, request: Request, request_id: str = "r"
) -> str:
    """Return the answer to an update as the model does."""
    try:
        update = by_model.update(request)
        made = await repository.update_payment_info(order_id, update, Origin(request_id))
    except REFUSED as refusal:
        return refusal.reason.value
    return REPLAYED if made.replayed else OK


def texts(event: PaymentEvent, when: str) -> tuple[object, ...]:
    return tuple(getattr(event, f"{name}_{when}") for name in PAYMENT_COLUMNS)


@dataclass(frozen=True)
class Call:
    """An update by one writer, its answer, and the times when it began and ended."""

    request_id: str
    order_id: int
    request: Request
    answer: str
    began: float
    ended: float


class Event(NamedTuple):
    """An event of the history, who made it, and the order after it by the model."""

    event: PaymentEvent
    call: Call
    after: Order


def requests(random: Random, order_ids: list[int]) -> Iterator[tuple[int, Request]]:
    """Yield the updates that the writers send, each more than once and out of order."""
    for _ in range(REQUESTS):
        has_key = random.random() < 0.7
        yield (
            random.choice(order_ids),
            Request(
                random.choice(WORDS),
                random.choice((None, "stripe", "STRIPE", "adyen")),
                random.choice((None, None, "s1", "s2")),
                random.choice((None, "i1", "i2")),
                payment_idempotency_key=f"key {random.randint(1, REQUESTS)}" if has_key else None,
                payment_event_time=random.choice((None, 1_000_000, 5_000_000)),
                captured_amount=random.choice((None, None, 500, 10_000)),
            ),
        )


@pytest.mark.parametrize("seed", range(3))
async def test_the_history_is_a_serial_one_that_explains_every_answer(
    database_url: str, seed: int
) -> None:
    orders = Orders(database_url)
    order_ids = [orders.add() for _ in range(ORDERS)]
    shared = list(requests(Random(seed), order_ids))
    calls: list[Call] = []

    async def write(repository: OrderRepository, writer: int) -> None:
        random = Random(f"{seed} {writer}")
        for number in range(UPDATES):
            request_id, (order_id, request) = f"{writer} {number}", random.choice(shared)
            if request.payment_idempotency_key is None:  # so that it changes something
                request = request._replace(payment_transaction_id=request_id)
            began = time.monotonic()
            given = await answer(repository, order_id, request, request_id)
            calls.append(Call(request_id, order_id, request, given, began, time.monotonic()))

    async with opened(database_url) as (repository, ledger):
        starts = {each: by_model.order(orders.row(each)) for each in order_ids}
        await asyncio.gather(*(write(repository, writer) for writer in range(WRITERS)))
        events = {each: await ledger.list_events(each, 10_000) for each in order_ids}

    assert len(calls) == WRITERS * UPDATES
    history = History(starts, events, {call.request_id: call for call in calls})
    for order_id in order_ids:
        assert by_model.order(orders.row(order_id)) == history.last(order_id)._replace(changes=0)
    for call in calls:
        history.explain(call)
    made = {each.call.request_id for events_ in history.events.values() for each in events_}
    assert made == {call.request_id for call in calls if call.answer == OK}
    refused = [call for call in calls if call.answer not in {OK, REPLAYED}]
    rows = on_record(database_url)
    # What is on record is what was refused, and nothing that was then written.
    assert sum(row["times"] for row in rows) == len(refused)
    assert {(row["order_id"], row["reason"]) for row in rows} == {
        (call.order_id, call.answer) for call in refused
    }
    assert not made & {row["request_id"] for row in rows}
    assert {call.answer for call in calls} >= {
        *(OK, REPLAYED, Reason.KEY_REUSED, Reason.DUPLICATE, Reason.NOT_CURRENT, Reason.REFUSED)
    }


class History:
    """The history of each order, played through the model, which has to take each event."""

    def __init__(
        self,
        starts: dict[int, Order],
        events: dict[int, list[PaymentEvent]],
        calls: dict[str, Call],
    ) -> None:
        self.starts = starts
        self.events: dict[int, list[Event]] = {each: [] for each in events}
        for order_id, each in events.items():
            for event in each:
                self._add(order_id, event, calls[str(event.request_id)])

    def last(self, order_id: int) -> Order:
        events = self.events[order_id]
        return events[-1].after if events else self.starts[order_id]

    def _add(self, order_id: int, event: PaymentEvent, call: Call) -> None:
        before, request = self.last(order_id), call.request
        assert call.order_id == order_id
        assert texts(event, "before") == tuple(getattr(before, name) for name in PAYMENT_COLUMNS)
        assert RULES.judge(before, request) is None
        after = RULES.apply(before, request)
        assert texts(event, "after") == tuple(getattr(after, name) for name in PAYMENT_COLUMNS)
        self.events[order_id].append(Event(event, call, after))

    def explain(self, call: Call) -> None:
        """Fail unless the answer to ``call`` is consistent with the events."""
        uses = [
            (order_id, each)
            for order_id, events in self.events.items()
            for each in events
            if call.request.payment_idempotency_key is not None
            and each.call.request.payment_idempotency_key == call.request.payment_idempotency_key
        ]
        equal = [each for _, each in uses if each.call.request == call.request]
        match call.answer:
            case "ok":
                assert [each.call for each in equal] in ([], [call])  # equal ones apply once
            case "replayed":
                assert [each.call.began < call.ended for each in equal] == [True]
            case Reason.KEY_REUSED:
                assert all(order_id != call.order_id for order_id, _ in uses)
                assert any(each.call.began < call.ended for _, each in uses)
            case reason:
                assert all(order_id == call.order_id for order_id, each in uses) or all(
                    call.began < each.call.ended for _, each in uses
                )
                assert reason in {RULES.judge(order, call.request) for order in self.during(call)}

    def during(self, call: Call) -> list[Order]:
        """Return all that the order may have been while ``call`` was under way."""
        orders = [self.starts[call.order_id]]
        for each in self.events[call.order_id]:
            if each.call.ended < call.began:  # ended before the call began, as did all before it
                orders.clear()
            if each.call.began < call.ended:
                orders.append(each.after)
        return orders


@asynccontextmanager
async def row_locked(url: str, *order_ids: int) -> AsyncIterator[psycopg.Connection[Any]]:
    """Hold the lock of these rows; within, what waits for it queues up; then let it go."""
    with psycopg.connect(url) as holder:
        holder.execute("SELECT FROM orders WHERE id = ANY(%s) FOR UPDATE", [list(order_ids)])
        yield holder
        holder.commit()


async def in_turn(url: str, repository: OrderRepository, *calls: tuple[int, Request]) -> list[str]:
    """Queue the updates for the locks of their rows in this order, then release the locks."""
    tasks = []
    async with row_locked(url, *(order_id for order_id, _ in calls)):
        for order_id, request in calls:
            tasks.append(asyncio.create_task(answer(repository, order_id, request)))
            await eventually_async(lambda: lock_waits(url) >= len(tasks))
    return await asyncio.gather(*tasks)


async def at_once(_: str, repository: OrderRepository, *calls: tuple[int, Request]) -> list[str]:
    return await asyncio.gather(*(answer(repository, *call) for call in calls))


HOW: Final = pytest.mark.parametrize(
    ("make", "times"), [(in_turn, 3), (at_once, 20)], ids=["in turn", "at once"]
)
FIRST: Final = Request("succeeded", "stripe", "cs_1", "pi_1", "ch_1")
SECOND: Final = Request("PAID", "stripe", "cs_2", "pi_2", "ch_2")


@HOW
@pytest.mark.parametrize(
    "attempts",
    [
        (FIRST, SECOND),
        (SECOND, FIRST),
        (FIRST, Request("COMPLETED", "paypal", None, "O1", "ch_2")),
        (FIRST._replace(payment_event_time=9), SECOND._replace(payment_event_time=1)),
        (FIRST._replace(captured_amount=10_000), SECOND._replace(captured_amount=10_000)),
    ],
    ids=["first", "second", "another provider", "times", "amounts"],
)
async def test_of_two_attempts_that_are_paid_one_is_on_record_as_a_duplicate(
    database_url: str, make: Any, times: int, attempts: tuple[Request, Request]
) -> None:
    orders = Orders(database_url)
    async with opened(database_url) as (repository, _):
        for number in range(times):
            order_id = orders.add(payment_status="processing", payment_intent_id="pi_0")
            answers = await make(database_url, repository, *((order_id, each) for each in attempts))
            assert sorted(answers) == ["PAYMENT_DUPLICATE", OK]
            if make is in_turn:
                assert answers[0] == OK
            paid, refused = sorted(attempts, key=lambda each: answers[attempts.index(each)] != OK)
            order, record = by_model.order(orders.row(order_id)), on_record(database_url)[-1]
            assert len(on_record(database_url)) == number + 1
            assert (record["order_id"], record["reason"], record["times"]) == (
                *(order_id, "PAYMENT_DUPLICATE"),
                1,
            )
            for column in ("payment_status", "payment_intent_id", "payment_transaction_id"):
                assert getattr(order, column) == getattr(paid, column)
                assert record[column] == getattr(refused, column)
                assert record[f"order_{column}"] == getattr(paid, column)


@HOW
async def test_paid_stays_whatever_comes_with_it(database_url: str, make: Any, times: int) -> None:
    orders, late = Orders(database_url), Request("pending", "stripe", "cs_1")
    async with opened(database_url) as (repository, _):
        for number in range(times):
            order_id = orders.add(payment_status="processing", payment_session_id="cs_1")
            calls = [(order_id, late), (order_id, FIRST)]
            answers = await make(database_url, repository, *(calls[:: -1 if number % 2 else 1]))
            assert set(answers) <= {OK, Reason.REFUSED}
            assert orders.row(order_id)["payment_intent_id"] == "pi_1"
            assert orders.row(order_id)["payment_status"] == "succeeded"


@HOW
async def test_one_key_for_two_orders_is_the_key_of_one(
    database_url: str, make: Any, times: int
) -> None:
    orders = Orders(database_url)
    async with opened(database_url) as (repository, ledger):
        for number in range(times):
            ids = [orders.add(), orders.add()]
            request = FIRST._replace(payment_idempotency_key=f"{number}")
            answers = await make(database_url, repository, *((each, request) for each in ids))
            assert sorted(answers) == [Reason.KEY_REUSED, OK]
            taken, refused = sorted(ids, key=lambda each: answers[ids.index(each)] != OK)
            assert orders.row(taken)["payment_status"] == "succeeded"
            assert orders.row(refused)["payment_status"] == "pending"
            found = [len(await ledger.list_events(each, 10)) for each in (taken, refused)]
            assert found == [1, 0]
            record = on_record(database_url)[number]
            assert (record["order_id"], record["reason"]) == (refused, Reason.KEY_REUSED)
            assert record["payment_intent_id"] == "pi_1"


@HOW
async def test_equal_requests_with_one_key_take_effect_once(
    database_url: str, make: Any, times: int
) -> None:
    orders = Orders(database_url)
    async with opened(database_url) as (repository, ledger):
        for number in range(times):
            order_id = orders.add()
            request = FIRST._replace(payment_idempotency_key=f"{number}", captured_amount=1)
            answers = await make(database_url, repository, *[(order_id, request)] * 3)
            assert sorted(answers) == [OK, REPLAYED, REPLAYED]
            assert len(await ledger.list_events(order_id, 10)) == 1
    assert on_record(database_url) == []


@HOW
async def test_different_requests_with_one_key_are_events_one_after_the_other(
    database_url: str, make: Any, times: int
) -> None:
    orders = Orders(database_url)
    async with opened(database_url) as (repository, ledger):
        for number in range(times):
            order_id, key = orders.add(), f"{number}"
            steps = [
                Request("processing", "stripe", "cs_1", None, None, key),
                Request("succeeded", None, "cs_1", "pi_1", "ch_1", key),
                Request("succeeded", None, "cs_1", "pi_1", "ch_2", key),
            ]
            answers = await make(database_url, repository, *((order_id, each) for each in steps))
            events = await ledger.list_events(order_id, 10)
            assert answers[1:] == [OK, OK]
            assert answers[0] in ({OK} if make is in_turn else {OK, Reason.REFUSED})
            assert [event.idempotency_key for event in events] == [key] + [None] * (len(events) - 1)
            further = [event.further_idempotency_key for event in events]
            assert further == [None] + [key] * (len(events) - 1)
            assert len(events) == answers.count(OK)
            assert orders.row(order_id)["payment_status"] == "succeeded"


async def test_a_worker_of_the_version_before_pays_the_order_meanwhile(database_url: str) -> None:
    """It writes no state: the one who waited for it looks at its word."""
    orders = Orders(database_url)
    async with opened(database_url) as (repository, _):
        order_id = orders.add(payment_status="processing", payment_session_id="cs_1")
        async with row_locked(database_url, order_id) as before:
            waiting = asyncio.create_task(answer(repository, order_id, SECOND))
            await eventually_async(lambda: lock_waits(database_url) == 1)
            before.execute(
                "UPDATE orders SET payment_status = 'paid', payment_intent_id = 'pi_1',"
                " payment_provider = 'stripe' WHERE id = %s",
                [order_id],
            )
        assert await waiting == Reason.DUPLICATE
    (record,) = on_record(database_url)
    assert record["payment_intent_id"] == "pi_2"
    assert record["order_payment_intent_id"] == "pi_1"
    assert orders.row(order_id)["payment_intent_id"] == "pi_1"
