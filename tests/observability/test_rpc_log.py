"""One log entry for each RPC, over every protocol."""

from collections.abc import Iterator
from typing import Any

import grpc
import httpx
import psycopg
import pytest
from protobuf import Message, Oneof
from psycopg import sql

from server.gen.listings.v1.orders_pb import (
    FindOrderByPaymentRequest,
    GetOrderRequest,
    UpdateOrderPaymentRequest,
    WatchOrderPaymentsRequest,
)
from tests.support import service
from tests.support.callers import CALLERS, PATH, PROTOCOLS, READERS, Call, Failure, path
from tests.support.orders import Orders
from tests.support.raw import connected, http1, rest
from tests.support.service import Service
from tests.support.waiting import eventually
from tests.support.watchers import WATCHERS

INVALID_ID = "x-request-id must be 1 to 128 visible ASCII characters"


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    log = tmp_path_factory.mktemp("logs") / "log"
    with service.on_own_database(log) as running:
        yield running


@pytest.fixture
def orders(running: Service) -> Orders:
    return Orders(running.database_url)


@pytest.fixture(scope="module", params=CALLERS)
def caller(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def call(caller: str, running: Service) -> Iterator[Call]:
    with READERS[caller](running.base_url) as call:
        yield call


def line(running: Service, **wanted: object) -> dict[str, Any]:
    """Wait for the log entry of an RPC, and return it."""
    eventually(lambda: running.logged(event="rpc", **wanted))
    (entry,) = running.logged(event="rpc", **wanted)
    return entry


def searched_by(session_id: str) -> FindOrderByPaymentRequest:
    reference: Any = Oneof("payment_session_id", session_id)
    return FindOrderByPaymentRequest(reference=reference)


def full_name(request: Message[Any]) -> str:
    return path(request).lstrip("/")


def test_a_successful_rpc(caller: str, call: Call, running: Service, orders: Orders) -> None:
    order_id = orders.add()
    request = UpdateOrderPaymentRequest(order_id=order_id, payment_status="paid")
    call(request)
    entry = line(running, order_id=order_id)
    assert entry["method"] == full_name(request)
    assert entry["protocol"] == PROTOCOLS.get(caller, "connect")
    assert (entry["code"], entry["level"]) == ("ok", "info")
    assert 0 < entry["duration_ms"] < 20_000
    assert entry["request_id"] == orders.value(
        f"SELECT request_id FROM order_payment_events WHERE order_id = {order_id}"
    )
    assert entry["caller"].startswith("127.0.0.1:")
    assert entry["timestamp"].endswith("Z")


def test_reads_by_get(running: Service, orders: Orders) -> None:
    order_id = orders.add()
    with READERS["connect-get"](running.base_url) as call:
        call(GetOrderRequest(order_id=order_id))
    assert line(running, order_id=order_id)["protocol"] == "connect"


def test_a_rejected_rpc(call: Call, running: Service, orders: Orders) -> None:
    order_id = orders.add(payment_status="refunded")
    with pytest.raises(Failure):
        call(UpdateOrderPaymentRequest(order_id=order_id, payment_status="pending"))
    entry = line(running, order_id=order_id)
    assert (entry["code"], entry["level"]) == ("failed_precondition", "info")
    assert entry["outcome"] == "status_refused"
    assert "which may not become" in entry["error"]
    (refusal,) = running.logged(event="payment event refused", order_id=order_id)
    assert (refusal["reason"], refusal["level"]) == ("PAYMENT_STATUS_REFUSED", "info")
    assert (refusal["state"], refusal["payment_status"]) == ("REFUNDED", "pending")
    assert refusal["request_id"] == entry["request_id"]


def test_an_invalid_request(caller: str, call: Call, running: Service) -> None:
    order_id = -1 - list(CALLERS).index(caller)
    with pytest.raises(Failure):
        call(UpdateOrderPaymentRequest(order_id=order_id, payment_status="paid"))
    assert line(running, order_id=order_id)["code"] == "invalid_argument"


def test_an_internal_error_is_logged_with_its_traceback(
    call: Call, running: Service, orders: Orders
) -> None:
    """Except identifiers, which PostgreSQL's messages quote."""
    key, order_id = "evt_1Nabcdefghijklmnop", orders.add()
    fail(orders, "XX000", f"broken by {key}", f"Key (payment_idempotency_key)=({key}) is odd.")
    with pytest.raises(Failure):
        call(
            UpdateOrderPaymentRequest(
                order_id=order_id, payment_status="fail", payment_idempotency_key=key
            )
        )
    entry = line(running, order_id=order_id)
    assert (entry["code"], entry["level"]) == ("internal", "error")
    assert "Traceback" in entry["exception"]
    assert "broken by evt_…mnop" in entry["exception"]
    assert key not in running.log.read_text()


def test_a_database_error_is_logged_with_its_cause(
    call: Call, running: Service, orders: Orders
) -> None:
    order_id = orders.add()
    fail(orders, "53100", "no room left", "")
    with pytest.raises(Failure):
        call(UpdateOrderPaymentRequest(order_id=order_id, payment_status="fail"))
    entry = line(running, order_id=order_id)
    assert (entry["code"], entry["level"]) == ("unavailable", "warning")
    assert entry["cause"] == "DiskFullError: no room left"
    assert "exception" not in entry


def fail(orders: Orders, sqlstate: str, message: str, detail: str) -> None:
    """Make an update to the status "fail" raise this error."""
    with psycopg.connect(orders.url, autocommit=True) as connection:
        connection.execute(
            sql.SQL(
                """
                CREATE OR REPLACE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS $$
                BEGIN RAISE EXCEPTION USING errcode = {}, message = {}, detail = {}; END $$;
                CREATE OR REPLACE TRIGGER fail BEFORE UPDATE ON orders
                FOR EACH ROW WHEN (new.payment_status = 'fail') EXECUTE FUNCTION fail()
                """
            ).format(sqlstate, message, detail)
        )


def test_a_deadline_has_no_cause(running: Service, orders: Orders) -> None:
    order_id = orders.add()
    with psycopg.connect(orders.url) as holder:
        holder.execute("SELECT FROM orders WHERE id = %s FOR UPDATE", (order_id,))
        body = {"orderId": order_id, "paymentStatus": "paid"}
        headers = {"connect-timeout-ms": "100"}
        httpx.post(running.base_url + PATH, json=body, headers=headers)
    entry = line(running, order_id=order_id)
    assert (entry["code"], entry["level"]) == ("deadline_exceeded", "warning")
    assert "cause" not in entry


def test_context_is_not_shared_between_pipelined_requests(running: Service, orders: Orders) -> None:
    """Even when they arrive in one packet, on one connection."""
    order_id = orders.add()
    body = b'{"orderId": %d, "paymentStatus": "paid", "paymentIdempotencyKey": "k-%d"}' % (
        order_id,
        order_id,
    )
    update = http1(PATH, f"content-length: {len(body)}") + body
    nowhere = http1("/nowhere/after-another", "content-length: 0", "connection: close")
    with connected(running.port) as connection:
        connection.sendall(update * 2 + nowhere)
        assert rest(connection).count(b"HTTP/1.1") == 3
    entry = line(running, method="nowhere/after-another")
    assert not {"order_id", "outcome", "request_id"} & entry.keys()


@pytest.mark.parametrize(
    "body",
    [
        b'[{"paymentIntentId": "pi_hidden"}]',
        b'"{\\"paymentIntentId\\": \\"pi_hidden\\"}"',
        b'{"orderId": "pi_hidden"}',
    ],
)
def test_malformed_requests_are_not_quoted(running: Service, body: bytes) -> None:
    headers = {"content-type": "application/json", "content-encoding": "identity"}
    assert httpx.post(running.base_url + PATH, content=body, headers=headers).status_code == 400
    headers["content-encoding"] = "pi_hidden"
    httpx.post(running.base_url + PATH, content=b"{}", headers=headers)
    eventually(lambda: running.logged(error="unknown compression"))
    assert "pi_hidden" not in running.log.read_text()


def test_lines_are_shorter_than_pipe_buf(running: Service) -> None:
    request_id = "a-long-path"
    headers = {"x-request-id": request_id, "content-type": "application/" + "x" * 3000}
    httpx.post(f"{running.base_url}/" + "%C5%82" * 2000, headers=headers)
    line(running, request_id=request_id)
    assert max(map(len, running.log.read_bytes().splitlines())) < 4096


def test_no_identifier_is_logged(call: Call, running: Service, orders: Orders) -> None:
    """Not even where callers use it as a request id."""
    order_id, other = orders.add(), orders.add()
    identifiers: dict[str, Any] = {
        "payment_session_id": f"cs_{order_id}_session",
        "payment_intent_id": f"pi_{order_id}_intent",
        "payment_idempotency_key": f"key_{order_id}_key",
        "payment_transaction_id": f"tx_{order_id}_transaction",
    }
    call(UpdateOrderPaymentRequest(order_id=order_id, **identifiers))
    call(UpdateOrderPaymentRequest(order_id=order_id, **identifiers))
    with pytest.raises(Failure):
        call(UpdateOrderPaymentRequest(order_id=other, **identifiers))
    call(searched_by(identifiers["payment_session_id"]))
    key = identifiers["payment_idempotency_key"]
    body = {"orderId": str(order_id), "paymentIdempotencyKey": key, "paymentStatus": "paid"}
    httpx.post(running.base_url + PATH, json=body, headers={"x-request-id": key})
    eventually(lambda: len(running.logged(event="rpc", order_id=order_id)) == 3)
    log = running.log.read_text()
    assert [each for each in identifiers.values() if each in log] == []


@pytest.mark.parametrize("watcher", WATCHERS)
def test_a_stream_is_logged_at_its_end(running: Service, orders: Orders, watcher: str) -> None:
    order_id = orders.add()
    before = len(running.logged(method=full_name(WatchOrderPaymentsRequest())))
    with WATCHERS[watcher](running.base_url) as watch:
        with watch(WatchOrderPaymentsRequest(order_ids=[order_id])) as stream:
            next(stream)
        eventually(
            lambda: len(running.logged(method=full_name(WatchOrderPaymentsRequest()))) == before + 1
        )
    entry = running.logged(method=full_name(WatchOrderPaymentsRequest()))[-1]
    assert (entry["code"], entry["level"]) == ("canceled", "info")


@pytest.mark.parametrize(
    ("where", "content_type", "code"),
    [
        ("listings.v1.OrderService/Updat", "application/json", "unimplemented"),
        ("nowhere/at\tall", "application/grpc-web+proto", "unimplemented"),
        (PATH.lstrip("/"), "text/plain", "invalid_argument"),
        (PATH.lstrip("/"), "application/grpc", "unimplemented"),
        (PATH.lstrip("/"), "application/grpc-web+thrift", "unimplemented"),
    ],
)
def test_unrouted_requests(running: Service, where: str, content_type: str, code: str) -> None:
    quoted = where.replace("\t", "%09")
    request_id = f"{where.partition('/')[0]}-{content_type}"
    headers = {"content-type": content_type, "x-request-id": request_id}
    httpx.post(f"{running.base_url}/{quoted}", headers=headers)
    entry = line(running, request_id=request_id)
    assert (entry["method"], entry["code"]) == (where, code)
    assert entry["error"]
    assert entry["caller"].startswith("127.0.0.1:")


def test_rejections_by_connectrpc_are_logged(running: Service) -> None:
    headers = {"connect-timeout-ms": "12345678901", "x-request-id": "too-long"}
    assert httpx.post(running.base_url + PATH, json={}, headers=headers).status_code == 400
    assert line(running, request_id="too-long")["code"] == "invalid_argument"
    with grpc.insecure_channel(running.base_url.removeprefix("http://")) as channel:
        metadata = [("grpc-timeout", "x"), ("x-request-id", "odd-timeout")]
        assert channel.unary_unary(PATH).future(b"", metadata=metadata).exception() is not None
    assert line(running, request_id="odd-timeout")["protocol"] == "grpc"
    headers = {"x-request-id": "by-get"}
    assert httpx.get(running.base_url + PATH, headers=headers).status_code == 405
    assert line(running, request_id="by-get")["code"] == "unimplemented"
    headers = {"x-request-id": "not found"}  # an invalid request id, which is not logged
    assert httpx.post(running.base_url + PATH, json={}, headers=headers).status_code == 400
    assert len(running.logged(error=INVALID_ID)) == 1


def test_probes_are_not_logged(running: Service) -> None:
    for _ in range(3):
        httpx.post(f"{running.base_url}/grpc.health.v1.Health/Check", json={})
        httpx.get(f"{running.base_url}/livez")
        httpx.get(f"{running.base_url}/metrics")
        httpx.get(f"{running.base_url}/favicon.ico")
    httpx.post(f"{running.base_url}/nowhere/after", json={})
    assert line(running, method="nowhere/after")
    assert not [
        each
        for each in running.logged()
        if each.get("method", "").startswith(("grpc.health", "livez", "metrics", "favicon"))
    ]
