"""Pages of another origin call by TLS, with tokens, in Chromium."""

from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from server.gen.google.rpc.error_details_pb import ErrorInfo
from server.gen.listings.v1.orders_pb import (
    GetOrderRequest,
    UpdateOrderPaymentRequest,
    WatchOrderPaymentsRequest,
)
from tests.support import bundles, service
from tests.support.callers import Failure
from tests.support.certificates import Issued
from tests.support.chromium import Chromium
from tests.support.client_table import assert_documented
from tests.support.orders import Orders
from tests.support.page_clients import CONNECT, GOOGLE, GRPC_WEB, PageClient
from tests.support.service import Service
from tests.support.tokens import READ, WRITE, Issuer, bearer


@pytest.fixture(scope="module")
def secured(
    browser: Chromium, issuer: Issuer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Service]:
    directory = tmp_path_factory.mktemp("secured")
    files = Issued.ca().issue().save(directory, "leaf")
    settings = {
        "tls_cert": str(files.cert),
        "tls_key": str(files.key),
        "cors_origins": browser.origin,
        **issuer.settings(),
    }
    with service.on_own_database(directory / "log", **settings) as secured:
        yield secured


@pytest.mark.parametrize("name", [*CONNECT, *GRPC_WEB, *GOOGLE])
def test_calls_with_tokens(name: str, browser: Chromium, secured: Service, issuer: Issuer) -> None:
    orders = Orders(secured.database_url)
    order_id = orders.add()
    update = UpdateOrderPaymentRequest(order_id=order_id, payment_status="paid")
    with browser.page(bundles.clients(), trusting=True) as page:
        client = PageClient(page, name, secured.base_url)
        refusals = {
            ("unauthenticated", "TOKEN_MISSING"): {},
            ("unauthenticated", "TOKEN_INVALID"): bearer("x"),
            ("permission_denied", "PERMISSION_MISSING"): bearer(issuer.token(READ)),
        }
        for expected, headers in refusals.items():
            with pytest.raises(Failure) as raised:
                client(update, headers)
            (info,) = raised.value.details
            assert isinstance(info, ErrorInfo)
            assert (raised.value.code, info.reason) == expected
        assert client(update, bearer(issuer.token(WRITE))).order.id == order_id
    assert orders.row(order_id)["payment_status"] == "paid"
    assert_documented(client.row, {"TLS": True})


@pytest.mark.parametrize("name", [CONNECT[0], GRPC_WEB[0], GOOGLE[0]])
def test_many_watches_share_a_connection(
    name: str, browser: Chromium, secured: Service, issuer: Issuer
) -> None:
    """TLS brings HTTP/2, where a browser has no limit of six."""
    orders = Orders(secured.database_url)
    order_id = orders.add()
    headers = bearer(issuer.token(READ))
    with browser.page(bundles.clients(), trusting=True) as page, ExitStack() as stack:
        client = PageClient(page, name, secured.base_url)
        request = WatchOrderPaymentsRequest(order_ids=[order_id])
        streams = [stack.enter_context(client.watch(request, headers)) for _ in range(20)]
        for stream in streams:
            assert next(stream).event is None
        assert client(GetOrderRequest(order_id=order_id), headers).order.id == order_id
        orders.change(order_id, payment_status="paid")
        for stream in streams:
            assert next(stream).event is not None


def test_a_certificate_that_is_not_trusted(browser: Chromium, secured: Service) -> None:
    with browser.page(bundles.clients()) as page:
        client = PageClient(page, CONNECT[0], secured.base_url)
        with pytest.raises(Failure) as raised:
            client(GetOrderRequest(order_id=1))
    assert (raised.value.code, raised.value.message) == ("unknown", "Failed to fetch")
