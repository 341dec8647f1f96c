"""PostgreSQL is suspended: it accepts connections and sends nothing. Every call ends in time."""

import asyncio
import random
from collections.abc import Coroutine, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import psycopg
import pytest
from protobuf import Message, Oneof
from protobuf.wkt import Duration

from persistence.database import Database
from server.gen.listings.v1.orders_pb import (
    FindOrderByPaymentRequest,
    GetOrderRequest,
    ListOrderPaymentEventsRequest,
    ListOrderPaymentsRequest,
    ListOrdersRequest,
    ListRefusedPaymentEventsRequest,
    ListStuckPaymentsRequest,
    WatchOrderPaymentsRequest,
)
from tests.support import checker, cluster, service
from tests.support.load import (
    CALLERS,
    UNKNOWN,
    Attempt,
    Call,
    Log,
    Updates,
    attempt,
    watching,
)
from tests.support.pool import SERVICE, assert_whole
from tests.support.trial import Trial
from tests.support.waiting import eventually_async

pytestmark = pytest.mark.anyio

STATEMENT_TIMEOUT = 1.0
GRACE = 1.0  # seconds that an answer may be late
DEADLINES = (0.3, 10.0, None)
WATCHERS = 3  # at once, to each of the deadlines
POOL_SIZE = 8  # far fewer than the calls: the others wait for a connection, or are refused

SESSION: Any = Oneof("payment_session_id", "cs_0")

_WAITING = "SELECT FROM pg_locks WHERE NOT granted AND relation = 'pg_proc'::regclass"

SETTINGS = {
    "statement_timeout": str(STATEMENT_TIMEOUT),
    "pool_size": str(POOL_SIZE),
    "queue_size": "1000",
}


def requests(updates: Updates) -> Iterator[Message[Any]]:
    yield updates.next(keyed=True)
    yield updates.next(keyed=False)
    yield GetOrderRequest(order_id=updates.order_ids[0])
    yield FindOrderByPaymentRequest(reference=SESSION)
    yield ListOrdersRequest(page_size=5)
    yield ListStuckPaymentsRequest(older_than=Duration(seconds=60))
    yield ListOrderPaymentEventsRequest(order_id=updates.order_ids[0])
    yield ListOrderPaymentsRequest(order_id=updates.order_ids[0])
    yield ListRefusedPaymentEventsRequest(page_size=5)


class Callers:
    """Calls of every method, and the log of their attempts."""

    def __init__(self, updates: Updates, calls: dict[str, Call], watch: Call) -> None:
        self.log = Log()
        self._updates = updates
        self._calls = calls
        self._watch = watch

    async def burst(self) -> Log:
        """Call each method over each protocol, with each deadline, all concurrently."""
        made = [each for deadline in DEADLINES for each in self._each(deadline)]
        random.shuffle(made)
        return await asyncio.gather(*made)

    async def one_by_one(self) -> Log:
        """Call each method over each protocol, one after the other."""
        return [await each for each in self._each(None)]

    def _each(self, deadline: float | None) -> Iterator[Coroutine[Any, Any, Attempt]]:
        for name, call in self._calls.items():
            for request in requests(self._updates):
                yield self._one(name, call, request, deadline)
        watched = WatchOrderPaymentsRequest(order_ids=self._updates.order_ids)
        for _ in range(WATCHERS):
            yield self._one("watching", self._watch, watched, deadline)

    async def _one(
        self, name: str, call: Call, request: Message[Any], deadline: float | None
    ) -> Attempt:
        async with asyncio.timeout(60):
            self.log.append(await attempt(name, call, request, deadline))
        return self.log[-1]


def late(log: Log) -> list[str]:
    return [
        f"{each.caller}: {type(each.request).__name__} took {each.seconds:.2f} s ({each.code})"
        for each in log
        if each.seconds > min(each.deadline or STATEMENT_TIMEOUT, STATEMENT_TIMEOUT) + GRACE
    ]


async def test_a_call_ends_while_its_connection_is_new() -> None:
    with cluster.running() as postgres:
        url = cluster.url_of(postgres)
        database = Database(
            url, max_connections=1, connect_timeout=60, statement_timeout=60, eager=False
        )
        with psycopg.connect(url) as other:
            # A new session looks up the functions of its first statement, and waits here.
            other.execute("LOCK TABLE pg_proc IN ACCESS EXCLUSIVE MODE")
            async with database:
                call = asyncio.create_task(database.fetchrow("SELECT 1"))
                await eventually_async(lambda: other.execute(_WAITING).rowcount)
                with postgres.suspended():
                    call.cancel()
                    done, _ = await asyncio.wait([call], timeout=GRACE)
                assert done == {call}


async def test_every_call_ends_while_postgresql_is_stopped(tmp_path: Path, trial: Trial) -> None:
    times = trial.times(1, 10)
    async with AsyncExitStack() as stack:
        postgres = stack.enter_context(cluster.running())
        url = cluster.url_of(postgres, application_name=SERVICE)
        running = stack.enter_context(service.running(url, tmp_path / "log", **SETTINGS))
        calls = {
            name: await stack.enter_async_context(connected(running.base_url))
            for name, connected in CALLERS.items()
        }
        watch = await stack.enter_async_context(watching(running.base_url))
        callers = Callers(Updates(postgres.url), calls, watch)
        for _ in range(times):
            interrupted = asyncio.create_task(callers.burst())
            await asyncio.sleep(random.uniform(0, 0.1))
            with postgres.suspended():
                await interrupted
                answers = await callers.burst()
            assert {each.code for each in answers} <= UNKNOWN | {"resource_exhausted"}
            await assert_whole(postgres.url, calls["grpcio"], POOL_SIZE)
            assert all(each.is_fine for each in await callers.one_by_one())
        lost = checker.losses(postgres.url, callers.log)

    slowest = max(each.seconds for each in callers.log)
    trial.report(times, len(lost), f"{len(callers.log)} calls, the slowest took {slowest:.2f} s")
    assert not late(callers.log), "\n".join(late(callers.log))
    assert lost == []
