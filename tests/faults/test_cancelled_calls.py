"""Calls are cancelled at random moments: no connection leaks, no acknowledged update is lost."""

import asyncio
import random
import time
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
from protobuf import Message

from tests.support import checker, cluster, service
from tests.support.load import (
    CALLERS,
    CANCELLED,
    UNKNOWN,
    Attempt,
    Call,
    Log,
    Updates,
    attempt,
    grpcio,
)
from tests.support.orders import Orders
from tests.support.pool import SERVICE, assert_whole
from tests.support.trial import Trial

pytestmark = pytest.mark.anyio

POOL_SIZE = 4
AT_ONCE = 4  # calls by each kind of caller
UPDATE = 0.005  # seconds that an update takes
LONGEST = 0.020  # seconds until a call is cancelled, at most


async def one_given_up(name: str, call: Call, request: Message[Any]) -> Attempt:
    """Make a call with too short a deadline, or cancel it before it is answered."""
    patience = random.uniform(0.001, LONGEST)
    if random.random() < 0.5:
        return await attempt(name, call, request, patience)
    began = time.monotonic()
    try:
        async with asyncio.timeout(patience):
            return await attempt(name, call, request)
    except TimeoutError:
        return Attempt(name, request, began, time.monotonic(), CANCELLED)


async def test_random_cancels_leak_no_connection(tmp_path: Path, trial: Trial) -> None:
    wanted, log = trial.times(240, 1_200), Log()
    async with AsyncExitStack() as stack:
        postgres = stack.enter_context(cluster.running())
        Orders(postgres.url).slow_down(UPDATE)
        url = cluster.url_of(postgres, application_name=SERVICE)
        running = stack.enter_context(
            service.running(url, tmp_path / "log", pool_size=str(POOL_SIZE))
        )
        updates = Updates(postgres.url)

        def given_up() -> int:
            return sum(each.code in UNKNOWN for each in log)

        async def give_up(name: str, call: Call) -> None:
            while given_up() < wanted:
                log.append(await one_given_up(name, call, updates.next()))

        async with asyncio.TaskGroup() as group:
            for name, connected in CALLERS.items():
                call = await stack.enter_async_context(connected(running.base_url))
                for _ in range(AT_ONCE):
                    group.create_task(give_up(name, call))
        call = await stack.enter_async_context(grpcio(running.base_url))
        await assert_whole(postgres.url, call, POOL_SIZE)
        lost = checker.losses(postgres.url, log)

    trial.report(given_up(), len(lost), f"{len(log)} calls, {POOL_SIZE} connections")
    assert lost == []
    assert {each.code for each in log if not each.is_fine} <= UNKNOWN | {"resource_exhausted"}
