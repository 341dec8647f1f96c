"""Each client library calls a service with a certificate of a private CA, and with tokens."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from server.gen.google.rpc.error_details_pb import ErrorInfo
from server.gen.listings.v1.orders_pb import (
    GetOrderRequest,
    UpdateOrderPaymentRequest,
    WatchOrderPaymentsRequest,
)
from tests.support import service
from tests.support.callers import Failure
from tests.support.certificates import Issued
from tests.support.client_table import documented
from tests.support.orders import Orders
from tests.support.real_clients import Library, Options
from tests.support.service import Service
from tests.support.tokens import READ, WRITE, Issuer


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a CA, "ca.pem", and of the service's certificate."""
    directory = tmp_path_factory.mktemp("authority")
    ca = Issued.ca()
    ca.save(directory, "ca")
    ca.issue().save(directory, "server")
    return directory


@pytest.fixture(scope="session")
def secured(authority: Path, issuer: Issuer) -> Iterator[Service]:
    """A service that takes TLS and tokens alone."""
    with service.on_own_database(
        authority / "log",
        public="none",
        tls_cert=str(authority / "server.pem"),
        tls_key=str(authority / "server.key"),
        **issuer.settings(),
    ) as secured:
        yield secured


def test_tls_and_token(library: Library, secured: Service, authority: Path, issuer: Issuer) -> None:
    order_id = Orders(secured.database_url).add()
    update = UpdateOrderPaymentRequest(order_id=order_id, payment_status="paid")
    read = GetOrderRequest(order_id=order_id)
    watch = WatchOrderPaymentsRequest(order_ids=[order_id])
    ca = str(authority / "ca.pem")
    writer = Options(secured.base_url, ca, issuer.token(WRITE, READ))
    with documented(library.name, "TLS"):
        with library.connected(writer) as client:
            assert client(update).message().order.payment_status == "paid"
            assert next(client(watch)).event is None
            assert client(read).message().order.id == order_id
        with library.connected(Options(secured.base_url, ca)) as client:
            with pytest.raises(Failure) as caught:
                client(update).message()
            assert caught.value.code == "unauthenticated"
            (info,) = caught.value.details
            assert isinstance(info, ErrorInfo)
            assert info.reason == "TOKEN_MISSING"


def test_another_ca(library: Library, secured: Service, tmp_path: Path, issuer: Issuer) -> None:
    """The client refuses a certificate of an unknown CA."""
    other = Issued.ca("other").save(tmp_path, "other").cert
    options = Options(secured.base_url, str(other), issuer.token(READ))
    with (
        documented(library.name, "TLS"),
        library.connected(options) as client,
        pytest.raises(Failure) as caught,
    ):
        client(GetOrderRequest(order_id=1), deadline=5).message()
    assert caught.value.code in {"unavailable", "internal", "unknown", "deadline_exceeded"}
