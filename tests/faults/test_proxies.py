"""nginx and HAProxy in front of two services: calls, idle watches and a rolling restart."""

import asyncio
import itertools
import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from server.gen.listings.v1.orders_pb import (
    UpdateOrderPaymentRequest,
    WatchOrderPaymentsRequest,
)
from tests.support import checker, proxies
from tests.support.callers import CALLERS
from tests.support.load import Call, Log, Updates, attempt, grpcio, json
from tests.support.orders import Orders
from tests.support.proxies import Proxy
from tests.support.replicas import Replica, two_replicas
from tests.support.trial import Trial
from tests.support.waiting import eventually_async
from tests.support.watchers import WATCHERS

pytestmark = pytest.mark.anyio

DEADLINE = 20  # seconds
SETTINGS = {"watch_heartbeat": "1", "trusted_proxies": "127.0.0.1"}


@pytest.fixture(params=["nginx", "haproxy"])
def name(request: pytest.FixtureRequest) -> str:
    """Each proxy that is installed."""
    found: str = request.param
    if not proxies.program(found):
        pytest.skip(f"{found} is not installed; on Debian: apt-get install {found}")
    return found


async def test_calls_during_a_rolling_restart(
    database_url: str, tmp_path: Path, trial: Trial, name: str
) -> None:
    """No call fails, and none is made twice, although half of them have no key."""
    each = trial.times(300, 2500)  # calls, over gRPC and as JSON
    updates, log = Updates(database_url), Log()

    async def load(caller: str, call: Call, numbers: "itertools.count[int]") -> None:
        while next(numbers) < each or not restarted.is_set():
            log.append(await attempt(caller, call, updates.next(), DEADLINE))

    restarted = asyncio.Event()

    async def restart(replicas: list[Replica]) -> None:
        for replica in replicas:
            enough = len(log) + each // 4
            await eventually_async(lambda enough=enough: len(log) >= enough, 60)  # type: ignore[misc]
            await asyncio.to_thread(replica.restart)
        restarted.set()

    with (
        two_replicas(database_url, tmp_path, **SETTINGS) as replicas,
        proxies.running(name, [each.port for each in replicas], tmp_path) as proxy,
    ):
        async with AsyncExitStack() as stack, asyncio.TaskGroup() as group:
            for caller, client, url in (
                ("grpc", grpcio, proxy.http2),
                ("json", json, proxy.http1),
            ):
                call = await stack.enter_async_context(client(url))
                numbers = itertools.count()
                for _ in range(8):
                    group.create_task(load(caller, call, numbers))
            await restart(replicas)
        callers = {entry["caller"] for r in replicas for entry in r.service.logged(event="rpc")}
    lost = checker.losses(database_url, log)
    failed = [attempt for attempt in log if not attempt.is_fine]
    slowest = max(attempt.seconds for attempt in log)
    trial.report(
        len(log), len(lost) + len(failed), f"{len(failed)} failed, all within {slowest:.2f} s"
    )
    assert failed == []
    assert lost == []
    assert not any(attempt.replayed for attempt in log)
    assert callers == {"127.0.0.1"}, "with a port, it would be the proxy's"


@pytest.mark.parametrize(
    ("watcher", "url"),
    [("grpcio", lambda proxy: proxy.http2), ("connect-json", lambda proxy: proxy.http1)],
)
def test_a_watch_without_events_outlives_the_proxys_time_out(
    database_url: str, tmp_path: Path, name: str, watcher: str, url: Callable[[Proxy], str]
) -> None:
    order_id = Orders(database_url).add()
    with (
        two_replicas(database_url, tmp_path, **SETTINGS) as replicas,
        proxies.running(name, [each.port for each in replicas], tmp_path) as proxy,
        WATCHERS[watcher](url(proxy)) as watch,
        watch(WatchOrderPaymentsRequest(order_ids=[order_id])) as stream,
        CALLERS["grpcio"](proxy.http2) as call,
    ):
        began = time.monotonic()
        for message in stream:
            assert not message.has_field("event")
            if time.monotonic() > began + 2 * proxies.TIMEOUT:
                break
        call(UpdateOrderPaymentRequest(order_id=order_id, payment_status="paid"))
        event = next(each.event for each in stream if each.event is not None)
        assert event.order_id == order_id
