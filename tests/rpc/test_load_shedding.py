"""More calls than can be served: rejected at once, in the protocol of each caller."""

import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import grpc
import httpx
import psycopg
import pytest
from protobuf import Message

from server.gen.google.rpc.error_details_pb import ErrorInfo, RetryInfo
from server.gen.listings.v1.orders_pb import (
    GetOrderRequest,
    UpdateOrderPaymentRequest,
    WatchOrderPaymentsRequest,
    WatchOrderPaymentsResponse,
)
from tests.support import callers, service
from tests.support.callers import CALLERS, PATH, READERS, Failure, json_client, path
from tests.support.orders import Orders
from tests.support.service import Service
from tests.support.waiting import eventually
from tests.support.watchers import WATCHERS

WATCH = path(WatchOrderPaymentsRequest())
READ_REASON = "too many calls are waiting; try again"
WRITE_REASON = "too many calls are waiting; nothing was written; try again"


@contextmanager
def filled(running: Service) -> Iterator[list[grpc.Future]]:
    """Fill the service: one call waits for a row lock, one is queued, a third is rejected."""
    order_id = Orders(running.database_url).add()
    request = UpdateOrderPaymentRequest(order_id=order_id, payment_status="paid").to_binary()
    with (
        grpc.insecure_channel(running.base_url.removeprefix("http://")) as channel,
        psycopg.connect(running.database_url) as holder,
    ):
        holder.execute("SELECT FROM orders WHERE id = %s FOR UPDATE", (order_id,))
        method = channel.unary_unary(PATH)
        calls = [method.future(request) for _ in range(3)]
        eventually(lambda: any(each.done() for each in calls))
        yield calls
        holder.rollback()
        assert sorted(each.code().name for each in calls) == ["OK", "OK", "RESOURCE_EXHAUSTED"]


def test_reads_by_get_are_counted_and_released(database_url: str, tmp_path: Path) -> None:
    settings = {"pool_size": "1", "queue_size": "1", "statement_timeout": "60"}
    query = {"connect": "v1", "encoding": "json", "message": '{"orderId": 1}'}
    with (
        service.running(database_url, tmp_path / "log", **settings) as running,
        psycopg.connect(database_url) as holder,
        json_client(running.base_url) as client,
        ThreadPoolExecutor(2) as pool,
    ):
        holder.execute("LOCK TABLE orders")

        def read() -> int:
            return client.get(path(GetOrderRequest()), params=query, timeout=30).status_code

        waiting = []
        for number in (1, 2):
            waiting.append(pool.submit(read))
            eventually(lambda n=number: running.metric("listings_rpcs_in_flight") == n)  # type: ignore[misc]
        assert read() == 429
        holder.rollback()
        assert [each.result() for each in waiting] == [404, 404]
        assert running.metric("listings_rpcs_in_flight") == 0
        assert read() == 404


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service at its limit of calls."""
    log = tmp_path_factory.mktemp("full") / "log"
    settings = {"pool_size": "1", "queue_size": "1", "statement_timeout": "60"}
    with service.on_own_database(log, **settings) as running, filled(running):
        yield running
    assert "Traceback" not in log.read_text()


READ = GetOrderRequest(order_id=1)
WRITE = UpdateOrderPaymentRequest(order_id=1, payment_status="paid")


@pytest.mark.parametrize(
    ("caller", "request_", "reason"),
    [
        *((caller, READ, READ_REASON) for caller in READERS),
        *((caller, WRITE, WRITE_REASON) for caller in CALLERS),
    ],
)
def test_rejections_by_protocol(
    full: Service, caller: str, request_: Message[Any], reason: str
) -> None:
    """Only the message for an update says that nothing was written."""
    with READERS[caller](full.base_url) as call, pytest.raises(Failure) as caught:
        call(request_)
    failure = caught.value
    assert (failure.code, failure.message) == ("resource_exhausted", reason)
    retry, info = failure.details
    assert isinstance(retry, RetryInfo)
    assert retry.retry_delay is not None
    assert isinstance(info, ErrorInfo)
    assert info.reason == "OVERLOADED"


@pytest.mark.parametrize("protocol", WATCHERS)
def test_streams_are_not_rejected_for_calls_that_wait(full: Service, protocol: str) -> None:
    """An invalid watch is refused for what is wrong with it, and not as OVERLOADED."""
    request = WatchOrderPaymentsRequest()
    with (
        WATCHERS[protocol](full.base_url) as watch,
        watch(request) as stream,
        pytest.raises(Failure) as caught,
    ):
        next(stream)
    assert caught.value.code == "invalid_argument"


@pytest.mark.parametrize("version", [1, 2])
def test_a_rejection_has_the_request_id(full: Service, version: int) -> None:
    with callers.json_client(full.base_url, version) as client:
        response = client.post(PATH, content="{}", headers={"x-request-id": "r-1"})
    assert response.status_code == 429
    assert response.headers["x-request-id"] == "r-1"


def test_rejections_keep_the_connection_open(full: Service) -> None:
    """Many rejections in a row over one HTTP/1.1 connection, with bodies that are not read."""
    with httpx.Client(base_url=full.base_url, trust_env=False) as client:
        streams = set()
        for _ in range(20):
            response = client.post(PATH, json={"orderId": "1", "paymentSessionId": "s" * 200})
            assert response.status_code == 429
            streams.add(response.extensions["network_stream"].get_extra_info("client_addr"))
    assert len(streams) == 1


def test_other_pages_are_served(full: Service) -> None:
    for page in ("/livez", "/readyz", "/metrics"):
        assert httpx.get(full.base_url + page).status_code == 200
    check = httpx.post(full.base_url + "/grpc.health.v1.Health/Check", json={})
    assert check.json() == {"status": "SERVING"}


def rejected_by_log(running: Service) -> int:
    """The sum of the rejections that the log reports."""
    entries = running.logged(level="warning", logger="server.rpc.load_shedding")
    return sum(int(each["event"].rpartition(" ")[2]) for each in entries)


def test_the_log_reports_the_number_of_rejections(full: Service) -> None:
    eventually(lambda: rejected_by_log(full) == full.metric("listings_queue_drops_total") > 0)


def test_the_log_reports_all_rejections_before_exit(database_url: str, tmp_path: Path) -> None:
    settings = {"pool_size": "1", "queue_size": "1", "statement_timeout": "60"}
    with service.running(database_url, tmp_path / "log", **settings) as running:
        for _ in range(2):  # the second ends less than a poll interval before exit
            with filled(running):
                pass
        assert running.stop() == 0
        assert rejected_by_log(running) == 2


def test_incomplete_requests_do_not_count(database_url: str, tmp_path: Path) -> None:
    order_id = Orders(database_url).add()
    settings = {"pool_size": "1", "queue_size": "0"}
    with service.running(database_url, tmp_path / "log", **settings) as running, ExitStack() as st:
        for _ in range(20):
            half = st.enter_context(socket.create_connection(("127.0.0.1", running.port)))
            half.sendall(
                b"POST %s HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\n"
                b'content-length: 100\r\n\r\n{"orderId":' % PATH.encode()
            )
        for caller in READERS.values():
            with caller(running.base_url) as call:
                assert call(GetOrderRequest(order_id=order_id)).order.id == order_id


def test_watchers_do_not_count(database_url: str, tmp_path: Path) -> None:
    order_id = Orders(database_url).add()
    request = WatchOrderPaymentsRequest(order_ids=[order_id]).to_binary()
    settings = {"pool_size": "1", "queue_size": "0"}
    with (
        service.running(database_url, tmp_path / "log", **settings) as running,
        grpc.insecure_channel(running.base_url.removeprefix("http://")) as channel,
    ):
        watch = channel.unary_stream(
            WATCH, response_deserializer=WatchOrderPaymentsResponse.from_binary
        )
        streams = []
        for _ in range(5):
            streams.append(watch(request))
            next(streams[-1])  # the first message, which has the position
        with callers.grpcio(running.base_url) as call:
            call(UpdateOrderPaymentRequest(order_id=order_id, payment_status="paid"))
        for stream in streams:
            assert next(stream).event.order_id == order_id
            stream.cancel()
