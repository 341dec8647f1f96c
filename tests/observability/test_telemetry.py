"""OpenTelemetry: off by default; traces from the caller to the SQL, and metrics."""

import socket
import subprocess
import sys
import time
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import grpc
import psycopg
import pytest

from server.gen.listings.v1.orders_pb import (
    GetOrderRequest,
    UpdateOrderPaymentRequest,
    WatchOrderPaymentsRequest,
)
from tests.support import databases, service, watchers
from tests.support.callers import CALLERS, PATH, Failure, json_client, path
from tests.support.collector import (
    CALLER_SPAN,
    ENDPOINT,
    ERROR,
    SPAN_OF_AN_UPDATE,
    TRACE,
    Collector,
    attributes,
    collecting,
)
from tests.support.command_line import listings
from tests.support.orders import Orders
from tests.support.tokens import READ, Issuer, bearer

TRACEPARENT = f"00-{TRACE}-{CALLER_SPAN}-01"


@pytest.mark.parametrize("protocol", ["grpc", "connect"])
def test_a_trace_spans_caller_call_and_sql(
    collector: Collector, database_url: str, tmp_path: Path, protocol: str
) -> None:
    order_id = Orders(database_url).add()
    with service.running(database_url, tmp_path / "log") as running:
        request = UpdateOrderPaymentRequest(order_id=order_id, payment_status="paid")
        if protocol == "grpc":
            with grpc.insecure_channel(running.base_url.removeprefix("http://")) as channel:
                metadata = [("traceparent", TRACEPARENT)]
                channel.unary_unary(PATH)(request.to_binary(), metadata=metadata)
        else:
            with json_client(running.base_url) as client:
                headers = {"traceparent": TRACEPARENT}
                client.post(PATH, content=request.to_json(), headers=headers)
        assert running.stop() == 0

    (called,) = collector.spans(SPAN_OF_AN_UPDATE)
    (statement,) = collector.spans("UPDATE")
    assert called.trace_id.hex() == statement.trace_id.hex() == TRACE
    assert called.parent_span_id.hex() == CALLER_SPAN
    assert statement.parent_span_id == called.span_id
    assert attributes(statement)["db.statement"].startswith('UPDATE "orders" SET')
    assert collector.metrics().keys() == {"rpc.server.call.duration"}
    assert collector.services() == {"listings"}
    (entry,) = running.logged(event="rpc")
    assert entry["trace_id"] == TRACE


def test_a_stream_is_a_span(collector: Collector, database_url: str, tmp_path: Path) -> None:
    order_id = Orders(database_url).add()
    with service.running(database_url, tmp_path / "log") as running:
        with (
            watchers.grpcio(running.base_url) as watch,
            watch(WatchOrderPaymentsRequest(order_ids=[order_id])) as stream,
        ):
            next(stream)
        assert running.stop() == 0
    assert len(collector.spans(path(WatchOrderPaymentsRequest()).lstrip("/"))) == 1
    assert [each["level"] for each in running.logged() if each["level"] != "info"] == []


def test_an_error_has_its_type_and_no_identifier(
    collector: Collector, database_url: str, tmp_path: Path
) -> None:
    orders = Orders(database_url)
    order_id, other = orders.add(), orders.add()
    identifiers: dict[str, Any] = {
        "payment_session_id": "cs_secret_session",
        "payment_intent_id": "pi_secret_intent",
        "payment_idempotency_key": "evt_secret_key",
        "payment_transaction_id": "tx_secret_transaction",
    }
    with service.running(database_url, tmp_path / "log") as running:
        with CALLERS["grpcio"](running.base_url) as call:
            call(UpdateOrderPaymentRequest(order_id=order_id, **identifiers))
            with pytest.raises(Failure):
                call(UpdateOrderPaymentRequest(order_id=other, **identifiers))
        assert running.stop() == 0
    failed = [span for span in collector.spans() if span.status.code == ERROR]
    assert [attributes(span)["error.type"] for span in failed] == ["UniqueViolationError"]
    codes = [attributes(each).get("rpc.response.status_code") for each in collector.spans()]
    assert "already_exists" in codes  # the fault of the caller, not an error of the service
    sent = b"".join(body for _, body in collector.bodies)
    assert [each for each in identifiers.values() if each.encode() in sent] == []


def test_tokens_are_not_sent(collector: Collector, database_url: str, tmp_path: Path) -> None:
    order_id = Orders(database_url).add()
    issuer = Issuer(tmp_path / "jwks.json")
    good, denied = issuer.token(READ), issuer.token("nothing")
    with service.running(database_url, tmp_path / "log", **issuer.settings()) as running:
        for token in (good, denied, "nonsense-nonsense"):
            for connect in CALLERS.values():
                with connect(running.base_url, **bearer(token)) as call, suppress(Failure):
                    call(GetOrderRequest(order_id=order_id))
        assert running.stop() == 0
    spans = collector.spans(path(GetOrderRequest()).lstrip("/"))
    assert len(spans) == len(CALLERS), "those that were let in"
    sent = b"".join(body for _, body in collector.bodies)
    for token in (good, denied, "nonsense-nonsense"):
        for part in token.split("."):
            assert part[:16].encode() not in sent
    traced = [entry for entry in running.logged(event="rpc") if "trace_id" in entry]
    assert {entry["subject"] for entry in traced} == {"somebody"}


def test_an_internal_error_sets_the_span_status(
    collector: Collector, database_url: str, tmp_path: Path
) -> None:
    with service.running(database_url, tmp_path / "log") as running:
        with psycopg.connect(database_url) as connection:
            connection.execute("ALTER TABLE orders RENAME TO elsewhere")
        with CALLERS["grpcio"](running.base_url) as call, pytest.raises(Failure):
            call(GetOrderRequest(order_id=1))
        assert running.stop() == 0
    (called,) = collector.spans(path(GetOrderRequest()).lstrip("/"))
    assert (called.status.code, called.status.message, len(called.events)) == (ERROR, "", 0)


def test_baggage_is_not_logged(collector: Collector, database_url: str, tmp_path: Path) -> None:
    with service.running(database_url, tmp_path / "log") as running:
        with json_client(running.base_url) as client:
            headers = {"baggage": "evt_secret,x,x,x", "traceparent": TRACEPARENT}
            client.post(path(GetOrderRequest()), json={"orderId": 404}, headers=headers)
        assert running.stop() == 0
    assert "evt_secret" not in running.log.read_text()
    assert {each["level"] for each in running.logged()} == {"info"}


def test_the_host_header_is_no_metric_attribute(
    collector: Collector, database_url: str, tmp_path: Path
) -> None:
    hosts = [f"made-up-{number}.example" for number in range(5)]
    settings = {"allowed_hosts": ",".join(hosts)}
    with service.running(database_url, tmp_path / "log", **settings) as running:
        with json_client(running.base_url) as client:
            for host in hosts:
                headers = {"host": host}
                client.post(path(GetOrderRequest()), json={"orderId": 404}, headers=headers)
        assert running.stop() == 0
    (series,) = collector.metrics()["rpc.server.call.duration"]
    assert series.count == 5


def test_statements_outside_of_calls_have_no_spans(
    collector: Collector, database_url: str, tmp_path: Path
) -> None:
    with service.running(database_url, tmp_path / "log") as running:
        deadline = time.monotonic() + 1.2  # time for two health probes of the database
        with CALLERS["grpcio"](running.base_url) as call:
            while time.monotonic() < deadline:
                with pytest.raises(Failure):
                    call(GetOrderRequest(order_id=404))
                time.sleep(0.1)
        assert running.stop() == 0
    spans = collector.spans()
    assert len({span.trace_id for span in spans}) == len(spans) / 2
    assert {span.name for span in spans} == {path(GetOrderRequest()).lstrip("/"), "SELECT"}


def test_each_worker_exports_its_spans(
    collector: Collector, database_url: str, tmp_path: Path
) -> None:
    order_id = Orders(database_url).add()
    with service.running(database_url, tmp_path / "log", workers="2") as running:
        for _ in range(20):
            with json_client(running.base_url) as client:
                client.post(PATH, json={"orderId": order_id, "paymentStatus": "paid"})
        assert running.stop() == 0
    assert len(collector.spans(SPAN_OF_AN_UPDATE)) == 20


@pytest.mark.parametrize("by", ["endpoint", "exporter"])
def test_traces_without_metrics(
    monkeypatch: pytest.MonkeyPatch, database_url: str, tmp_path: Path, by: str
) -> None:
    order_id = Orders(database_url).add()
    with collecting() as collector:
        if by == "endpoint":
            name = "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"
            monkeypatch.setenv(name, f"{collector.endpoint}/v1/traces")
        else:
            monkeypatch.setenv(ENDPOINT, collector.endpoint)
            monkeypatch.setenv("OTEL_METRICS_EXPORTER", "none")
        monkeypatch.setenv("OTEL_SERVICE_NAME", "shop-listings")
        with service.running(database_url, tmp_path / "log") as running:
            with CALLERS["grpcio"](running.base_url) as call:
                call(GetOrderRequest(order_id=order_id))
            assert running.stop() == 0
        assert collector.services() == {"shop-listings"}
        assert collector.metrics() == {}


def test_metrics_without_traces(
    monkeypatch: pytest.MonkeyPatch, collector: Collector, database_url: str, tmp_path: Path
) -> None:
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "none")
    with service.running(database_url, tmp_path / "log") as running:
        with CALLERS["grpcio"](running.base_url) as call, pytest.raises(Failure):
            call(GetOrderRequest(order_id=404))
        assert running.stop() == 0
    (series,) = collector.metrics()["rpc.server.call.duration"]
    assert series.count == 1
    assert collector.spans() == []


@pytest.mark.parametrize("silent", [True, False])
def test_an_unresponsive_collector_delays_neither_calls_nor_exit(
    monkeypatch: pytest.MonkeyPatch, database_url: str, tmp_path: Path, silent: bool
) -> None:
    order_id = Orders(database_url).add()
    with closing(socket.create_server(("127.0.0.1", 0))) as silent_server:
        endpoint = f"http://127.0.0.1:{silent_server.getsockname()[1]}"
        if not silent:
            silent_server.close()
        monkeypatch.setenv(ENDPOINT, endpoint)
        with service.running(database_url, tmp_path / "log") as running:
            with CALLERS["grpcio"](running.base_url) as call:
                for _ in range(20):
                    call(GetOrderRequest(order_id=order_id))
            began = time.monotonic()
            assert running.stop() == 0
            assert time.monotonic() - began < 10


WHAT_IS_LOADED = """
import sys
import server.cli, server.process.run, server.observability.telemetry
assert server.observability.telemetry.wanted() == {}
sys.exit(any(name.split(".")[0] in ("opentelemetry", "connectrpc_otel") for name in sys.modules))
"""


@pytest.mark.parametrize("disabled", [False, True])
def test_opentelemetry_is_not_imported_when_off(
    monkeypatch: pytest.MonkeyPatch, disabled: bool
) -> None:
    if disabled:
        monkeypatch.setenv(ENDPOINT, "http://127.0.0.1:4318")
        monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    subprocess.run([sys.executable, "-c", WHAT_IS_LOADED], check=True, timeout=30)


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc", "PROTOCOL: expected http/protobuf"),
        (ENDPOINT, "localhost:4318", f"{ENDPOINT}: expected http://"),
        (ENDPOINT, "http://:4318", f"{ENDPOINT}: expected http://"),
        (ENDPOINT, "http://localhost:99999", f"{ENDPOINT}: expected http://"),
        ("OTEL_TRACES_EXPORTER", "console", "OTEL_TRACES_EXPORTER: expected otlp or none"),
        ("OTEL_PROPAGATORS", "pigeon", "pigeon"),
    ],
)
def test_unsupported_settings_are_errors_at_start(
    monkeypatch: pytest.MonkeyPatch, database_url: str, name: str, value: str, words: str
) -> None:
    monkeypatch.setenv(ENDPOINT, "http://127.0.0.1:4318")
    monkeypatch.setenv(name, value)
    done = listings("serve", url=databases.for_service(database_url))
    assert done.returncode == 1
    assert words in done.stderr
    assert "Traceback" not in done.stderr


WITHOUT_PACKAGES = """
import sys
sys.modules["connectrpc_otel"] = None
from server.cli import main
main(["serve"])
"""


def test_missing_packages_are_an_error_at_start(
    monkeypatch: pytest.MonkeyPatch, database_url: str
) -> None:
    monkeypatch.setenv(ENDPOINT, "http://127.0.0.1:4318")
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_PACKAGES],
        env=service.environment_on(database_url),
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )
    assert done.returncode == 1
    assert 'pip install "listings[otel]"' in done.stderr
