"""The metrics of a running service."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import grpc
import httpx
import psycopg
import pytest

from server.gen.listings.v1.orders_pb import (
    GetOrderRequest,
    UpdateOrderPaymentRequest,
    WatchOrderPaymentsRequest,
)
from tests.support import service, watchers
from tests.support.callers import CALLERS, PATH, PROTOCOLS, READERS, Failure, path
from tests.support.orders import Orders
from tests.support.service import Service
from tests.support.waiting import eventually

GET = path(GetOrderRequest()).lstrip("/")
UPDATE = PATH.lstrip("/")


@contextmanager
def blocked(running: Service, count: int) -> Iterator[list[grpc.Future]]:
    """Block ``count`` updates of one order by a row lock."""
    order_id = Orders(running.database_url).add()
    request = UpdateOrderPaymentRequest(order_id=order_id, payment_status="paid").to_binary()
    options = [("grpc.use_local_subchannel_pool", 1)]
    with (
        psycopg.connect(running.database_url) as holder,
        grpc.insecure_channel(running.base_url.removeprefix("http://"), options) as channel,
    ):
        holder.execute("SELECT FROM orders WHERE id = %s FOR UPDATE", (order_id,))
        futures = [channel.unary_unary(PATH).future(request, timeout=60) for _ in range(count)]
        yield futures
        holder.rollback()
        for future in futures:
            future.exception()  # waits


@pytest.mark.parametrize("workers", ["1", "2"])
def test_rpcs_by_method_code_and_protocol(database_url: str, tmp_path: Path, workers: str) -> None:
    """The counts of all workers, from any worker that answers the scrape."""
    order_id = Orders(database_url).add()
    with service.running(database_url, tmp_path / "log", workers=workers) as running:
        for caller in READERS.values():
            for _ in range(3):  # connections, which are spread over the workers
                with caller(running.base_url) as call:
                    call(GetOrderRequest(order_id=order_id))
                    with pytest.raises(Failure):
                        call(GetOrderRequest(order_id=404))
        expected: dict[str, int] = {}
        for name in READERS:
            protocol = PROTOCOLS.get(name, "connect")
            expected[protocol] = expected.get(protocol, 0) + 3
        for protocol, count in expected.items():
            for code in ("ok", "not_found"):
                labels = {"method": GET, "code": code, "protocol": protocol}
                assert running.metric("listings_rpcs_total", **labels) == count
            series = {"method": GET, "protocol": protocol}
            name = "listings_rpc_duration_seconds"
            assert running.metric(f"{name}_count", **series) == 2 * count
            assert running.metric(f"{name}_bucket", le="10.0", **series) == 2 * count
            assert 0 < running.metric(f"{name}_sum", **series) < 10
        assert running.stop() == 0


@pytest.mark.parametrize("workers", ["1", "2"])
def test_gauges(database_url: str, tmp_path: Path, workers: str) -> None:
    settings = {"pool_size": "2", "workers": workers, "statement_timeout": "60"}
    names = ("rpcs_in_flight", "pool_in_use", "pool_waiting", "watchers", "pool_size", "ready")

    def seen() -> list[float]:
        return [running.metric(f"listings_{name}") for name in names]

    with service.running(database_url, tmp_path / "log", **settings) as running:
        eventually(lambda: seen() == [0, 0, 0, 0, 2 * int(workers), int(workers)])
        with (
            watchers.grpcio(running.base_url) as watch,
            watch(WatchOrderPaymentsRequest(order_ids=[1])) as stream,
        ):
            next(stream)
            with blocked(running, 5):  # on one connection, so one worker has them
                # The feed waits for a connection as well when it polls the history.
                expected = [[6, 2, n, 1, 2 * int(workers), int(workers)] for n in (3, 4)]
                eventually(lambda: seen() in expected)
        eventually(lambda: seen() == [0, 0, 0, 0, 2 * int(workers), int(workers)])
        assert running.stop() == 0


@pytest.mark.parametrize("caller", CALLERS)
def test_queue_drops(database_url: str, tmp_path: Path, caller: str) -> None:
    settings = {"pool_size": "1", "queue_size": "1", "statement_timeout": "60"}
    with service.running(database_url, tmp_path / "log", **settings) as running:
        with blocked(running, 3) as futures:
            eventually(lambda: any(each.done() for each in futures))
            labels = {"code": "resource_exhausted", "method": UPDATE}
            assert running.metric("listings_queue_drops_total") == 1
            assert running.metric("listings_rpcs_total", protocol="grpc", **labels) == 1
            with CALLERS[caller](running.base_url) as call, pytest.raises(Failure):
                call(UpdateOrderPaymentRequest(order_id=1, payment_status="paid"))
            protocol = PROTOCOLS.get(caller, "connect")
            assert running.metric("listings_queue_drops_total") == 2
            counted = running.metric("listings_rpcs_total", protocol=protocol, **labels)
            assert counted == 1 + (protocol == "grpc")
            with grpc.insecure_channel(running.base_url.removeprefix("http://")) as channel:
                for number in range(3):
                    nowhere = f"/listings.v1.OrderService/Nowhere{number}"
                    assert channel.unary_unary(nowhere).future(b"").exception() is not None
            assert "Nowhere" not in httpx.get(f"{running.base_url}/metrics").text
        assert running.stop() == 0


def test_unknown_paths_do_not_become_labels(database_url: str, tmp_path: Path) -> None:
    with service.running(database_url, tmp_path / "log") as running:
        for number in range(5):
            httpx.post(f"{running.base_url}/listings.v1.OrderService/Nowhere{number}", json={})
            httpx.post(f"{running.base_url}/elsewhere/{number}", json={})
        labels = {"code": "unimplemented", "method": "unknown", "protocol": "connect"}
        assert running.metric("listings_rpcs_total", **labels) == 10
        assert running.stop() == 0


def test_concurrent_scrapes(database_url: str, tmp_path: Path) -> None:
    with service.running(database_url, tmp_path / "log", workers="2") as running:
        with ThreadPoolExecutor(8) as threads:
            asked = [threads.submit(running.metric, "listings_ready") for _ in range(40)]
            assert {each.result() for each in asked} <= {1, 2}
        assert not [each for each in running.metrics() if "rpcs_total" in each[0]]
        assert running.stop() == 0
