"""Calls by pages of another origin, with connect-web and Google's grpc-web, in Chromium."""

from collections.abc import Iterator
from pathlib import Path
from queue import Queue

import pytest

from server.gen.google.rpc.error_details_pb import BadRequest, ErrorInfo
from server.gen.listings.v1.orders_pb import (
    GetOrderRequest,
    ListOrdersRequest,
    UpdateOrderPaymentRequest,
)
from tests.support import bundles, callers, databases, service
from tests.support.callers import Call, Failure
from tests.support.chromium import Chromium
from tests.support.client_table import assert_documented
from tests.support.orders import Orders
from tests.support.page_clients import CONNECT, GOOGLE, GRPC_WEB, PageClient
from tests.support.service import Service
from tests.support.waiting import eventually, lock_waits


@pytest.fixture(scope="module")
def shown(browser: Chromium, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service that the pages may call."""
    log = tmp_path_factory.mktemp("shown") / "log"
    with service.on_own_database(log, cors_origins=browser.origin) as shown:
        yield shown


@pytest.fixture(scope="module")
def orders(shown: Service) -> Orders:
    return Orders(shown.database_url)


@pytest.fixture(scope="module", params=[*CONNECT, *GRPC_WEB, *GOOGLE])
def client(
    request: pytest.FixtureRequest, browser: Chromium, shown: Service
) -> Iterator[PageClient]:
    with browser.page(bundles.clients()) as page:
        yield PageClient(page, request.param, shown.base_url)


@pytest.fixture(scope="module")
def grpcio(shown: Service) -> Iterator[Call]:
    with callers.grpcio(shown.base_url) as call:
        yield call


def failure(call: Call, request: object) -> Failure:
    with pytest.raises(Failure) as raised:
        call(request)  # type: ignore[arg-type]
    return raised.value


def succeeds(call: Call, request: UpdateOrderPaymentRequest) -> bool:
    try:
        return bool(call(request).success)
    except Failure:
        return False


def test_an_update_and_reads(client: PageClient, orders: Orders, grpcio: Call) -> None:
    order_id = orders.add()
    update = UpdateOrderPaymentRequest(
        order_id=order_id, payment_status="paid", payment_provider="Zahlung € 支付"
    )
    assert client(update).order.payment_provider == "Zahlung € 支付"
    assert orders.row(order_id)["payment_status"] == "paid"
    for request in (GetOrderRequest(order_id=order_id), ListOrdersRequest(page_size=200)):
        assert client(request) == grpcio(request)
    assert_documented(client.row, {"unary": True})


@pytest.mark.parametrize(
    ("request_", "code", "detail"),
    [
        (GetOrderRequest(order_id=999_999_999), "not_found", None),
        (UpdateOrderPaymentRequest(order_id=-1), "invalid_argument", BadRequest),
        (ListOrdersRequest(page_token="äöü 100 % 支付"), "invalid_argument", BadRequest),
    ],
    ids=str,
)
def test_errors_are_those_of_grpc(
    client: PageClient, grpcio: Call, request_: object, code: str, detail: type | None
) -> None:
    found = failure(client, request_)
    assert found == failure(grpcio, request_)
    assert found.code == code
    assert [type(each) for each in found.details] == ([detail] if detail else [])
    assert_documented(client.row, {"errors": True, "details": True})


def test_a_refused_event_has_its_reason(client: PageClient, orders: Orders, grpcio: Call) -> None:
    order_id = orders.add(payment_status="refunded", payment_provider="stripe")
    late = UpdateOrderPaymentRequest(order_id=order_id, payment_status="paid")
    found = failure(client, late)
    assert found == failure(grpcio, late)
    (info,) = found.details
    assert isinstance(info, ErrorInfo)
    assert (found.code, info.reason) == ("failed_precondition", "PAYMENT_STATUS_REFUSED")


def test_a_deadline(client: PageClient, orders: Orders) -> None:
    order_id = orders.add()
    update = UpdateOrderPaymentRequest(order_id=order_id, payment_status="paid")
    with orders.locked(order_id):
        with pytest.raises(Failure) as raised:
            client(update, timeout_ms=300)
        assert raised.value.code == "deadline_exceeded"
        eventually(lambda: lock_waits(orders.url) == 0)
    assert orders.row(order_id)["payment_status"] == "pending"


def test_an_update_is_not_repeated(
    client: PageClient, orders: Orders, shown: Service, grpcio: Call
) -> None:
    order_id = orders.add()
    update = UpdateOrderPaymentRequest(order_id=order_id, payment_idempotency_key=f"{order_id}")
    before = len(shown.logged(code="unavailable"))
    with databases.unreachable(orders.url):
        assert failure(client, update).code == "unavailable"
    attempts = len(shown.logged(code="unavailable")) - before
    assert_documented(client.row, {"retries": attempts > 1})
    eventually(lambda: succeeds(grpcio, update))


def test_the_documented_interceptor_repeats_an_update(browser: Chromium, tmp_path: Path) -> None:
    logged: Queue[str] = Queue()
    log = tmp_path / "log"
    with service.on_own_database(log, cors_origins=browser.origin) as running:
        orders = Orders(running.database_url)
        order_id = orders.add(id=1)
        script = bundles.documented()[1].replace(
            b"http://127.0.0.1:8080", running.base_url.encode()
        )
        with (
            databases.unreachable(orders.url) as reachable,
            browser.page(script, console=logged.put),
        ):
            eventually(lambda: running.logged(code="unavailable"))
            reachable()
            assert logged.get(timeout=20) == "paid"
        assert orders.row(order_id)["payment_status"] == "paid"
        count = orders.value("SELECT count(*) FROM order_payment_events WHERE order_id = 1")
        assert count == 1


def test_pages_of_other_origins_cannot_call(browser: Chromium, tmp_path: Path) -> None:
    with (
        service.on_own_database(tmp_path / "log", cors_origins="https://else.example") as other,
        browser.page(bundles.clients()) as page,
    ):
        client = PageClient(page, CONNECT[0], other.base_url)
        found = failure(client, GetOrderRequest(order_id=1))
        assert (found.code, found.message) == ("unknown", "Failed to fetch")
