"""Watches by pages of another origin, in Chromium: restarts of the service, many at a time."""

import itertools
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from queue import Queue

import pytest

from server.gen.listings.v1.orders_pb import (
    GetOrderRequest,
    WatchOrderPaymentsRequest,
    WatchOrderPaymentsResponse,
)
from tests.support import bundles, service
from tests.support.callers import Failure
from tests.support.chromium import Chromium
from tests.support.client_table import assert_documented
from tests.support.orders import Orders
from tests.support.page_clients import CONNECT, GOOGLE, GRPC_WEB, PageClient
from tests.support.waiting import eventually


def statuses(messages: Iterator[WatchOrderPaymentsResponse]) -> list[str]:
    return [each.event.after.payment_status for each in messages if each.event and each.event.after]


@pytest.mark.parametrize("name", [*CONNECT[:2], *GRPC_WEB, GOOGLE[0]])
def test_a_watch_goes_on_after_a_restart(
    name: str, browser: Chromium, database_url: str, tmp_path: Path
) -> None:
    orders = Orders(database_url)
    order_id = orders.add()
    with browser.page(bundles.clients()) as page:
        cors = browser.origin
        with service.running(database_url, tmp_path / "1", cors_origins=cors) as first:
            client = PageClient(page, name, first.base_url)
            request = WatchOrderPaymentsRequest(order_ids=[order_id])
            with client.watch(request) as stream:
                assert next(stream).event is None
                orders.change(order_id, payment_status="processing")
                last = next(stream)
                assert statuses(iter([last])) == ["processing"]
                assert first.stop() == 0
                with pytest.raises(Failure) as ended:
                    next(stream)
                assert ended.value.code == "unavailable"
        orders.change(order_id, payment_status="authorized")
        settings = {"cors_origins": cors, "port": str(first.port)}
        with service.running(database_url, tmp_path / "2", **settings):
            request.last_event_id = last.event_id
            with client.watch(request) as stream:
                assert next(stream).event is None
                orders.change(order_id, payment_status="paid")
                assert statuses(islice(stream, 2)) == ["authorized", "paid"]
    assert_documented(client.row, {"watch": True})


def test_the_binary_mode_of_grpc_web_hands_messages_over_at_the_end(
    browser: Chromium, database_url: str, tmp_path: Path
) -> None:
    orders = Orders(database_url)
    order_id = orders.add()
    request = WatchOrderPaymentsRequest(order_ids=[order_id])
    with (
        browser.page(bundles.clients()) as page,
        browser.page(bundles.clients()) as other,
        service.running(database_url, tmp_path / "log", cors_origins=browser.origin) as running,
    ):
        binary = PageClient(page, GOOGLE[1], running.base_url)
        text = PageClient(other, GOOGLE[0], running.base_url)
        with binary.watch(request) as late, text.watch(request) as live:
            eventually(lambda: running.metric("listings_watchers") == 2)
            orders.change(order_id, payment_status="paid")
            assert statuses(islice(live, 2)) == ["paid"]
            assert binary.received() == 0
            assert running.stop() == 0
            assert statuses(islice(late, 2)) == ["paid"]
    assert_documented(binary.row, {"watch": False})


def test_the_documented_watch_goes_on_after_restarts(
    browser: Chromium, database_url: str, tmp_path: Path
) -> None:
    """Also when the service is killed. With changes before, while it is away, and after."""
    orders = Orders(database_url)
    order_id = orders.add(id=1)
    logged: Queue[str] = Queue()
    changes = map("change {}".format, itertools.count())

    def change() -> str:
        orders.change(order_id, payment_status=(status := next(changes)))
        return f"order {order_id}: {status}"

    def assert_logged(*lines: str) -> None:
        assert [logged.get(timeout=20) for _ in lines] == list(lines)

    settings = {"cors_origins": browser.origin}
    with ExitStack() as stack:
        missed: list[str] = []
        for restart in range(3):
            log = tmp_path / str(restart)
            with service.running(database_url, log, **settings) as running:
                if restart == 0:
                    settings["port"] = str(running.port)
                    script = bundles.documented()[0].replace(
                        b"http://127.0.0.1:8080", running.base_url.encode()
                    )
                    stack.enter_context(browser.page(script, console=logged.put))
                    number = orders.row(order_id)["order_number"]
                    assert_logged(f"{number} pending", f"order {order_id}: pending")
                    eventually(lambda: running.metric("listings_watchers") == 1)
                assert_logged(*missed, change())
                assert_logged(change())
                if restart != 1:  # which is killed
                    assert running.stop() == 0
            missed = [change(), change()]
    assert logged.empty()


def test_six_watches_over_http_1_1_leave_no_connection(browser: Chromium, tmp_path: Path) -> None:
    with ExitStack() as stack:
        log = tmp_path / "log"
        running = stack.enter_context(service.on_own_database(log, cors_origins=browser.origin))
        page = stack.enter_context(browser.page(bundles.clients()))
        client = PageClient(page, CONNECT[0], running.base_url)
        request = WatchOrderPaymentsRequest(order_ids=[1])
        for _ in range(5):
            next(stack.enter_context(client.watch(request)))
        with client.watch(request) as sixth:
            next(sixth)
            with pytest.raises(Failure) as raised:
                client(GetOrderRequest(order_id=1), timeout_ms=500)
            assert raised.value.code == "deadline_exceeded"
            assert not running.logged(method="GetOrder")
        with pytest.raises(Failure) as raised:
            client(GetOrderRequest(order_id=1), timeout_ms=20_000)
        assert raised.value.code == "not_found"
