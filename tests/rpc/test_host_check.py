"""DNS rebinding: a request that names another host reads and pays nothing, by whatever way."""

import json
from collections.abc import Iterator
from datetime import datetime, timedelta
from itertools import pairwise
from pathlib import Path

import grpc
import httpx
import pytest

from server.gen.listings.v1.orders_pb import (
    GetOrderRequest,
    UpdateOrderPaymentRequest,
    WatchOrderPaymentsRequest,
)
from tests.support import service
from tests.support.bare_grpc import grpc_failure
from tests.support.callers import PATH, json_client, path
from tests.support.certificates import HOST, Issued, Trust
from tests.support.orders import Orders
from tests.support.raw import connected, rest
from tests.support.service import Service
from tests.support.tokens import Issuer
from tests.support.waiting import eventually

OTHER = "rebound.example"
NAMED = "listings.example"
WATCH = path(WatchOrderPaymentsRequest())
GET = path(GetOrderRequest())

TARGETS = [
    ("POST", PATH, "application/json"),
    ("POST", PATH, "application/proto"),
    ("POST", PATH, "application/grpc-web+proto"),
    ("POST", PATH, "application/grpc"),
    ("POST", GET, "application/json"),
    ("GET", f"{GET}?connect=v1&encoding=json&message=%7B%22orderId%22%3A1%7D", ""),
    ("POST", WATCH, "application/connect+json"),
    ("POST", "/grpc.health.v1.Health/Check", "application/json"),
    ("POST", "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo", "application/grpc"),
    ("GET", "/", ""),
    ("GET", "/metrics", ""),
    ("GET", "/livez/", ""),
    ("GET", "/nothing", ""),
]


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service without authentication."""
    log = tmp_path_factory.mktemp("hosts") / "log"
    with service.on_own_database(log, allowed_hosts=NAMED) as running:
        yield running
    assert "Traceback" not in log.read_text()


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize(("verb", "target", "content_type"), TARGETS)
def test_another_host_is_refused(
    local: Service, version: int, verb: str, target: str, content_type: str
) -> None:
    order_id = Orders(local.database_url).add()
    headers = {"host": OTHER, "content-type": content_type, "te": "trailers"}
    body = json.dumps({"orderId": order_id, "paymentStatus": "paid"}).encode()
    with httpx.Client(http1=version == 1, http2=version == 2, trust_env=False) as client:
        answer = client.request(verb, local.base_url + target, content=body, headers=headers)
        if ("grpc" in content_type and version == 2) or "grpc-web" in content_type:
            assert answer.status_code == 200
            assert answer.headers.get("grpc-status") == "7" or "grpc-status: 7" in answer.text
        elif content_type == "application/connect+json":
            assert b'"code": "permission_denied"' in answer.content
        else:
            assert answer.status_code == 403
            assert answer.json()["code"] == "permission_denied"
            assert "LISTINGS_ALLOWED_HOSTS" in answer.json()["message"]
    assert Orders(local.database_url).row(order_id)["payment_status"] == "pending"


@pytest.mark.parametrize("host", [OTHER, f"{NAMED}.{OTHER}", ""])
def test_the_fast_path(local: Service, host: str) -> None:
    """gRPC clients get the message; one that names an allowed host is served."""
    order_id = Orders(local.database_url).add()
    request = UpdateOrderPaymentRequest(order_id=order_id, payment_status="paid").to_binary()
    for authority in (host or NAMED, "localhost"):
        options = [("grpc.default_authority", authority)]
        with grpc.insecure_channel(f"127.0.0.1:{local.port}", options) as channel:
            if authority == host:
                code, text = grpc_failure(channel, request, PATH)
                assert code == "PERMISSION_DENIED"
                assert "LISTINGS_ALLOWED_HOSTS" in text
                assert Orders(local.database_url).row(order_id)["payment_status"] == "pending"
            else:
                channel.unary_unary(PATH)(request, timeout=20)
    assert Orders(local.database_url).row(order_id)["payment_status"] == "paid"


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("host", ["localhost", "127.0.0.1:1", "[::1]:1", NAMED.upper()])
def test_this_machine_and_the_named_host_are_served(
    local: Service, version: int, host: str
) -> None:
    order_id = Orders(local.database_url).add()
    with json_client(local.base_url, version) as client:
        answer = client.post(GET, json={"orderId": order_id}, headers={"host": host})
    assert answer.json()["order"]["id"] == str(order_id)


@pytest.mark.parametrize("target", ["/livez", "/readyz"])
def test_probes_name_any_host(local: Service, target: str) -> None:
    answer = httpx.get(local.base_url + target, headers={"host": "10.1.2.3"}, trust_env=False)
    assert answer.status_code == 200


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (f"POST {GET} HTTP/1.0", b"200"),  # without a host: no browser
        (f"POST {GET} HTTP/1.0\r\nhost: {OTHER}", b"403"),
        (f"POST {GET} HTTP/1.1\r\nhost: {OTHER}", b"403"),
        (f"POST {GET} HTTP/1.1\r\nHOST:\t{OTHER}", b"403"),
        (f"POST {GET} HTTP/1.1\r\nhost: localhost\r\nhost: {OTHER}", b"400"),
    ],
)
def test_what_http_clients_do_not_send(local: Service, head: str, status: bytes) -> None:
    order_id = Orders(local.database_url).add()
    body = json.dumps({"orderId": order_id})
    fields = f"content-type: application/json\r\ncontent-length: {len(body)}\r\nconnection: close"
    with connected(local.port) as connection:
        connection.sendall(f"{head}\r\n{fields}\r\n\r\n{body}".encode())
        assert rest(connection).split(b" ")[1] == status


def test_the_host_in_an_absolute_target_is_refused(local: Service) -> None:
    """The check is of that host and not of the field Host: RFC 9112, section 3.2.2."""
    order_id = Orders(local.database_url).add()
    body = json.dumps({"orderId": order_id, "paymentStatus": "paid"})
    with connected(local.port) as connection:
        connection.sendall(
            f"POST http://{OTHER}{PATH} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n"
            f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n{body}".encode()
        )
        assert rest(connection).startswith(b"HTTP/1.1 403 ")
    assert Orders(local.database_url).row(order_id)["payment_status"] == "pending"


def test_refusals_are_logged_once_a_second_and_counted(tmp_path: Path) -> None:
    with service.on_own_database(tmp_path / "log") as running:
        labels = {"code": "permission_denied", "protocol": "connect"}
        method = "listings.v1.OrderService/UpdateOrderPayment"
        with json_client(running.base_url) as client:
            for _ in range(200):
                client.post(PATH, json={}, headers={"host": OTHER + "x" * 500})
        assert running.metric("listings_rpcs_total", method=method, **labels) == 200

        def told() -> list[str]:
            return [each["event"] for each in running.logged(level="warning")]

        eventually(lambda: sum(int(each.split()[5].strip(",")) for each in told()) == 200)
        times = [
            datetime.fromisoformat(each["timestamp"]) for each in running.logged(level="warning")
        ]
        assert all(later - earlier > timedelta(seconds=0.9) for earlier, later in pairwise(times))
        assert all(OTHER in each and "LISTINGS_ALLOWED_HOSTS" in each for each in told())
        assert max(map(len, told())) < 300


def test_callers_that_are_authenticated_name_any_host(database_url: str, tmp_path: Path) -> None:
    """Nor is the host checked where the setting insecure leaves that to a proxy."""
    ca = Issued.ca()
    files = ca.issue(HOST).save(tmp_path, "server")
    tls = {
        "tls_cert": str(files.cert),
        "tls_key": str(files.key),
        "tls_client_ca": str(ca.save(tmp_path, "ca").cert),
    }
    for settings, trust, status in (
        (Issuer(tmp_path / "jwks.json").settings(), None, 401),
        (tls, Trust(ca, ca.issue("client").save(tmp_path, "client")), 404),
        ({"insecure": "1"}, None, 404),
    ):
        with (
            service.running(database_url, tmp_path / "log", **settings) as running,
            json_client(running.base_url, 1, trust) as client,
        ):
            answer = client.post(GET, json={"orderId": 1}, headers={"host": OTHER})
            assert answer.status_code == status
