"""Two replicas behind one list of addresses restart in turn: no call fails or runs twice."""

import asyncio
import itertools
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from protobuf import Message

from tests.support import checker
from tests.support.callers import Failure
from tests.support.load import (
    Call,
    Log,
    Updates,
    attempt,
    grpcio,
    json,
    open_loop,
)
from tests.support.replicas import two_replicas
from tests.support.trial import Trial
from tests.support.waiting import eventually_async

pytestmark = pytest.mark.anyio

CALLS_PER_SECOND = 200
DEADLINE = 10  # seconds


@asynccontextmanager
async def keep_alive(ports: list[int]) -> AsyncIterator[Call]:
    """Yield a call that keeps its connections; if one closes, it retries at the other replica."""
    async with AsyncExitStack() as stack:
        urls = (f"http://127.0.0.1:{port}" for port in ports)
        clients = [await stack.enter_async_context(json(url)) for url in urls]
        preferred = 0

        async def call(request: Message[Any], deadline: float | None) -> Any:
            nonlocal preferred
            first = preferred
            try:
                return await clients[first](request, deadline)
            except httpx.TransportError:
                preferred = 1 - first
            try:
                return await clients[1 - first](request, deadline)
            except httpx.TransportError as error:
                raise Failure("unavailable", f"twice: {error!r}") from error

        yield call


async def more_calls(log: Log) -> None:
    """Wait until as many more calls are answered as are sent in half a second."""
    enough = len(log) + CALLS_PER_SECOND // 2
    await eventually_async(lambda: len(log) >= enough)


async def test_replicas_restarted_in_turn_under_load(
    database_url: str, tmp_path: Path, trial: Trial
) -> None:
    times = trial.times(1, 10)
    updates, log, done = Updates(database_url), Log(), asyncio.Event()

    async def load(name: str, calls: list[Call], share: float, *, keyed: bool | None) -> None:
        turn = itertools.cycle(calls)

        async def send(due: float) -> None:
            request = updates.next(keyed=keyed)
            log.append(await attempt(name, next(turn), request, DEADLINE, due))

        await open_loop(CALLS_PER_SECOND * share, send, done.is_set)

    with two_replicas(database_url, tmp_path) as replicas:
        ports = [replica.port for replica in replicas]
        addresses = "ipv4:" + ",".join(f"127.0.0.1:{port}" for port in ports)
        async with AsyncExitStack() as stack:
            one, *others = [await stack.enter_async_context(grpcio(addresses)) for _ in range(4)]
            http = await stack.enter_async_context(keep_alive(ports))
            async with asyncio.TaskGroup() as group:
                group.create_task(load("one channel", [one], 0.25, keyed=None))
                group.create_task(load("three channels", others, 0.25, keyed=None))
                group.create_task(load("keep-alive", [http], 0.5, keyed=True))
                for _ in range(times):
                    for replica in replicas:
                        await asyncio.to_thread(replica.restart)
                        await more_calls(log)
                done.set()

    lost = checker.losses(database_url, log)
    failed = [each for each in log if not each.is_fine]
    slowest = max(each.seconds for each in log)
    trial.report(
        2 * times,
        len(lost) + len(failed),
        f"{len(log)} calls, {len(failed)} failed, all within {slowest:.2f} s",
    )
    assert failed == []
    assert lost == []
    # gRPC's transparent retries are of calls that were not executed.
    assert not any(each.replayed for each in log if each.caller != "keep-alive")
