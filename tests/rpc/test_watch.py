"""WatchOrderPayments, over every protocol with streams; slow and lost watchers."""

import re
import socket
import statistics
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import httpx
import psutil
import psycopg
import pytest
from psycopg import sql

from persistence.positions import Position
from server.gen.google.rpc.error_details_pb import BadRequest, ErrorInfo, RetryInfo
from server.gen.listings.v1.orders_pb import (
    OrderPaymentEvent,
    PaymentState,
    UpdateOrderPaymentRequest,
    WatchOrderPaymentsRequest,
    WatchOrderPaymentsResponse,
)
from tests.support import callers, databases, service
from tests.support.callers import Failure
from tests.support.orders import Orders
from tests.support.service import Service
from tests.support.waiting import eventually
from tests.support.watchers import WATCHERS, Stream, Watch, grpcio


@pytest.fixture(scope="session", params=WATCHERS)
def watch(request: pytest.FixtureRequest, running: Service) -> Iterator[Watch]:
    with WATCHERS[request.param](running.base_url) as watch:
        yield watch


@pytest.fixture(scope="session")
def update(running: Service) -> Iterator[callers.Call]:
    with callers.grpcio(running.base_url) as call:
        yield call


def of(*order_ids: int, after: str = "") -> WatchOrderPaymentsRequest:
    return WatchOrderPaymentsRequest(order_ids=list(order_ids), last_event_id=after)


def begun(stream: Stream) -> str:
    """Read the first message of a stream, and return its event_id."""
    first = next(stream)
    assert first.event is None
    return first.event_id


def event(response: WatchOrderPaymentsResponse) -> OrderPaymentEvent:
    assert response.event is not None
    return response.event


def statuses(stream: Stream, count: int) -> list[str]:
    found = []
    for _ in range(count):
        after = event(next(stream)).after
        assert after is not None
        found.append(after.payment_status)
    return found


def test_each_change_arrives_once_and_in_order(
    watch: Watch, update: callers.Call, orders: Orders
) -> None:
    order_id, other = orders.add(), orders.add()
    with watch(of(order_id)) as stream:
        begun(stream)
        for status in ("processing", "paid", "refunded"):
            update(UpdateOrderPaymentRequest(order_id=other, payment_status=status))
            update(
                UpdateOrderPaymentRequest(
                    order_id=order_id,
                    payment_status=status,
                    payment_idempotency_key=f"{order_id} {status}",
                )
            )
        first = event(next(stream))
        assert statuses(stream, 2) == ["paid", "refunded"]
    assert first.order_id == order_id
    assert first.before == PaymentState(payment_status="pending")
    assert first.after == PaymentState(
        payment_status="processing", payment_idempotency_key=f"{order_id} processing"
    )
    assert first.payment_idempotency_key == f"{order_id} processing"
    assert first.has_field("request_id")


def test_a_watch_of_a_storefront_includes_orders_created_later(
    watch: Watch, orders: Orders
) -> None:
    storefront = 1_000_000 + orders.add()
    with watch(WatchOrderPaymentsRequest(storefront_id=storefront)) as stream:
        begun(stream)
        orders.add(payment_status="paid", storefront_id=storefront + 1)
        order_id = orders.add(payment_status="paid", storefront_id=storefront)
        found = event(next(stream))
    assert found.order_id == order_id
    assert found.before == PaymentState()


def test_a_change_by_sql_has_no_request_id(watch: Watch, orders: Orders) -> None:
    order_id = orders.add()
    with watch(of(order_id)) as stream:
        begun(stream)
        orders.change(order_id, payment_status="paid")
        found = event(next(stream))
    assert not found.has_field("request_id")
    assert found.database_role != ""


def test_a_reconnect_delivers_changes_committed_meanwhile(watch: Watch, orders: Orders) -> None:
    """Including a transaction that began before the last event and committed after it."""
    late, early = orders.add(), orders.add()
    with psycopg.connect(orders.url) as slow:
        with watch(of(late, early)) as stream:
            begun(stream)
            slow.execute("UPDATE orders SET payment_status = 'slow' WHERE id = %s", (late,))
            orders.change(early, payment_status="first")
            seen = next(stream)
            assert event(seen).order_id == early
        slow.commit()
    orders.change(early, payment_status="second")

    with watch(of(late, early, after=seen.event_id)) as stream:
        assert begun(stream) == seen.event_id
        assert statuses(stream, 2) == ["slow", "second"]
        orders.change(early, payment_status="third")
        assert statuses(stream, 1) == ["third"]


def test_a_watch_resumes_after_any_event(watch: Watch, orders: Orders) -> None:
    order_id = orders.add()
    with watch(of(order_id)) as stream:
        start = begun(stream)
    expected = [f"status {number}" for number in range(7)]
    for status in expected:
        orders.change(order_id, payment_status=status)
    found: list[str] = []
    after = start
    while len(found) < len(expected):
        with watch(of(order_id, after=after)) as stream:
            begun(stream)
            for _ in range(min(3, len(expected) - len(found))):
                message = next(stream)
                after = message.event_id
                state = event(message).after
                assert state is not None
                found.append(state.payment_status)
    assert found == expected


@pytest.mark.parametrize(
    "request_",
    [
        WatchOrderPaymentsRequest(),
        WatchOrderPaymentsRequest(order_ids=[1], storefront_id=1),
        WatchOrderPaymentsRequest(order_ids=[0]),
        WatchOrderPaymentsRequest(order_ids=list(range(1, 1002))),
        WatchOrderPaymentsRequest(storefront_id=-1),
        *(of(1, after=text) for text in ("x", "ä", "MTox", "MTo5OjM6", "OToxOg", "MTo5OjUgMTo5Og")),
    ],
    ids=str,
)
def test_invalid_requests(watch: Watch, request_: WatchOrderPaymentsRequest) -> None:
    with watch(request_) as stream, pytest.raises(Failure) as caught:
        next(stream)
    assert caught.value.code == "invalid_argument"
    (detail,) = caught.value.details
    assert isinstance(detail, BadRequest)
    if request_.last_event_id:
        assert [each.field for each in detail.field_violations] == ["last_event_id"]


def test_a_position_of_another_history(watch: Watch, orders: Orders) -> None:
    """It has the form of one, and the hash of another cluster or epoch: begin anew."""
    order_id = orders.add()
    with watch(of(order_id)) as stream:
        position = Position.parse(begun(stream))
    assert position.mark is not None
    other = replace(position, mark=position.mark._replace(ledger=position.mark.ledger ^ 1))
    with watch(of(order_id, after=str(other))) as stream, pytest.raises(Failure) as caught:
        next(stream)
    assert caught.value.code == "aborted"
    assert "without last_event_id" in caught.value.message
    (info,) = caught.value.details  # and no RetryInfo
    assert isinstance(info, ErrorInfo)
    assert (info.reason, info.domain) == ("HISTORY_CHANGED", "listings.v1")


def test_changes_arrive_without_polling_delay(
    running: Service, update: callers.Call, orders: Orders
) -> None:
    """The median latency is far below the polling interval: NOTIFY triggers the read."""
    order_id, times = orders.add(), []
    with grpcio(running.base_url) as watch, watch(of(order_id)) as stream:
        begun(stream)
        for number in range(15):
            update(UpdateOrderPaymentRequest(order_id=order_id, captured_amount=number))
            start = time.monotonic()
            next(stream)
            times.append(time.monotonic() - start)
    assert statistics.median(times) < 0.1


def watchers(base_url: str) -> float:
    found = re.search(r"^listings_watchers (\S+)$", httpx.get(f"{base_url}/metrics").text, re.M)
    assert found
    return float(found[1])


def until_no_watcher_is_left(base_url: str) -> None:
    eventually(lambda: not watchers(base_url), seconds=10)


def test_a_cancelled_watch_is_unregistered(watch: Watch, running: Service) -> None:
    with watch(of(1)) as stream:
        begun(stream)
        assert watchers(running.base_url) == 1
    until_no_watcher_is_left(running.base_url)


@pytest.fixture
def apart(tmp_path: Path, database_url: str) -> Iterator[Service]:
    """A service for one test."""
    with service.running(database_url, tmp_path / "log") as running:
        yield running


def test_changes_through_another_replica(apart: Service, tmp_path: Path, database_url: str) -> None:
    order_id = Orders(database_url).add()
    with (
        service.running(database_url, tmp_path / "log 2") as other,
        callers.grpcio(other.base_url) as update,
        grpcio(apart.base_url) as watch,
        watch(of(order_id)) as stream,
    ):
        begun(stream)
        times = []
        for number in range(9):
            update(UpdateOrderPaymentRequest(order_id=order_id, payment_status=f"{number}"))
            start = time.monotonic()
            assert statuses(stream, 1) == [f"{number}"]
            times.append(time.monotonic() - start)
    assert statistics.median(times) < 0.1


def test_no_change_is_lost_when_the_database_connection_is_lost(apart: Service) -> None:
    orders = Orders(apart.database_url)
    order_id = orders.add()
    server, name = databases.server_and_name(orders.url)
    with grpcio(apart.base_url) as watch, watch(of(order_id)) as stream:
        begun(stream)
        with psycopg.connect(server, autocommit=True) as connection:
            connection.execute(
                sql.SQL(
                    "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity"
                    " WHERE datname = {}"
                ).format(name)
            )
        for number in range(3):
            orders.change(order_id, payment_status=f"{number}")
        assert statuses(stream, 3) == ["0", "1", "2"]


def test_shutdown_ends_a_stream_at_once(apart: Service) -> None:
    with grpcio(apart.base_url) as watch, watch(of(1)) as stream:
        begun(stream)
        start = time.monotonic()
        assert apart.stop() == 0
        assert time.monotonic() - start < 10
        with pytest.raises(Failure) as caught:
            next(stream)
    assert caught.value.code == "unavailable"
    retry, info = caught.value.details
    assert isinstance(retry, RetryInfo)
    assert isinstance(info, ErrorInfo)
    assert info.reason == "SERVER_STOPPING"


def test_heartbeats_over_every_protocol(tmp_path: Path, database_url: str) -> None:
    """A watch goes on from any of them, and the events after it come once."""
    orders = Orders(database_url)
    order_id = orders.add()
    with service.running(database_url, tmp_path / "log", watch_heartbeat="0.1") as running:
        for connect in WATCHERS.values():
            with connect(running.base_url) as watch:
                with watch(of(order_id)) as stream:
                    heartbeats = [begun(stream) for _ in range(4)]
                orders.change(order_id, payment_status="processing")
                orders.change(order_id, payment_status="paid")
                for each in (heartbeats[1], heartbeats[-1]):
                    with watch(of(order_id, after=each)) as stream:
                        assert begun(stream) == each
                        assert statuses(stream, 2) == ["processing", "paid"]
                        assert begun(stream) != each


EVENTS = 6_000


def many_changes(orders: Orders, storefront: int) -> None:
    """Make more changes than the client's window and the kernel's buffers hold."""
    ids = [orders.add(storefront_id=storefront) for _ in range(EVENTS // 60)]
    with psycopg.connect(orders.url, autocommit=True) as connection:
        for number in range(60):
            connection.execute(
                "UPDATE orders SET payment_transaction_id = %s, payment_session_id = %s"
                " WHERE id = ANY(%s)",
                (f"{number}".zfill(250), f"{number}".zfill(250), ids),
            )


def test_a_slow_watcher_is_disconnected_and_can_resume(apart: Service) -> None:
    orders, process = Orders(apart.database_url), psutil.Process(apart.process.pid)
    storefront, found, after = 77, 0, ""
    request = WatchOrderPaymentsRequest(storefront_id=storefront)
    with grpcio(apart.base_url) as watch:
        with watch(request) as stream:
            after = begun(stream)
            before = process.memory_info().rss
            many_changes(orders, storefront)
            until_no_watcher_is_left(apart.base_url)  # the client has read only the first message
            assert process.memory_info().rss - before < 16 * 2**20
            with pytest.raises(Failure) as caught:
                for message in stream:
                    found, after = found + 1, message.event_id
        assert caught.value.code == "resource_exhausted"
        (detail,) = caught.value.details
        assert isinstance(detail, ErrorInfo)
        assert detail.reason == "WATCHER_TOO_SLOW"
        assert found < EVENTS
        while found < EVENTS:
            request = WatchOrderPaymentsRequest(storefront_id=storefront, last_event_id=after)
            with watch(request) as stream:
                begun(stream)
                for message in stream:
                    found, after = found + 1, message.event_id
                    if found == EVENTS:
                        break


def test_a_watcher_over_http_1_that_does_not_read_does_not_grow_memory(apart: Service) -> None:
    process = psutil.Process(apart.process.pid)
    body = b'{"storefrontId": "78"}'
    envelope = b"\x00" + len(body).to_bytes(4) + body
    with closing(socket.create_connection(("127.0.0.1", apart.port))) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.sendall(
            b"POST /listings.v1.OrderService/WatchOrderPayments HTTP/1.1\r\nHost: localhost\r\n"
            b"Content-Type: application/connect+json\r\nConnect-Protocol-Version: 1\r\n"
            b"Content-Length: %d\r\n\r\n" % len(envelope) + envelope
        )
        assert connection.recv(12) == b"HTTP/1.1 200"
        before = process.memory_info().rss
        many_changes(Orders(apart.database_url), 78)
        until_no_watcher_is_left(apart.base_url)
        assert process.memory_info().rss - before < 16 * 2**20
