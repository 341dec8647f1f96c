"""``server.asgi:app``: the service on another ASGI server."""

import asyncio
import logging
import re
import shutil
import signal
import subprocess
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
import structlog
from starlette.responses import Response
from starlette.types import Message, Scope
from starlette.websockets import WebSocketDisconnect

from persistence.roles import APPLICATION
from server.asgi import app
from server.gen.listings.v1.orders_pb import ListOrderPaymentEventsRequest
from server.process.hosted import Hosted
from server.settings import SettingsError
from tests.support import service
from tests.support.callers import PATH, path
from tests.support.embedded import open_directory, servers_below
from tests.support.orders import Orders
from tests.support.tokens import READ, Issuer, bearer
from tests.support.waiting import eventually

# Starlette prefers a fork of httpx, and works with httpx as well.
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from starlette.testclient import TestClient

_SECONDS = 30

_VARYING = ("date", "server", "x-request-id", "content-length", "transfer-encoding", "connection")
"""Headers that differ from request to request, or are the ASGI server's."""

LOCAL = "http://127.0.0.1"  # the address that a TestClient says it came to


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """An environment for the application in this process; restores logging at the end."""
    root, parts = logging.getLogger(), list(map(logging.getLogger, ("persistence", "server")))
    handlers, levels = root.handlers[:], [each.level for each in parts]
    with monkeypatch.context() as patch:
        patch.delenv("LISTINGS_DATABASE_URL", raising=False)
        patch.setenv("LISTINGS_LOG_LEVEL", "error")
        yield patch
    structlog.reset_defaults()
    root.handlers[:] = handlers
    for each, level in zip(parts, levels, strict=True):
        each.setLevel(level)


def use(environment: pytest.MonkeyPatch, database_url: str) -> None:
    """Set the environment of this process to the database at ``database_url``."""
    for name, value in service.environment_on(database_url).items():
        environment.setenv(name, value)


@contextmanager
def hosted(
    database_url: str, log: Path, **settings: str
) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """Run the application on plain uvicorn; yield its base URL and the process."""
    process = started(database_url, log, **settings)
    try:
        eventually(lambda: process.poll() is not None or "running on http" in log.read_text())
        found = re.search(r"running on (http://\S+)", log.read_text())
        assert found, log.read_text()
        yield found[1], process
    finally:
        process.kill()
        process.wait()


def started(database_url: str, log: Path, **settings: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "uvicorn", "server.asgi:app", "--port", "0"]
    with log.open("wb") as output:
        return subprocess.Popen(
            command,
            env=service.environment_on(database_url, settings),
            stdout=output,
            stderr=subprocess.STDOUT,
        )


def test_starlette_test_client_hosts_the_application(
    database_url: str, environment: pytest.MonkeyPatch
) -> None:
    use(environment, database_url)
    order_id = Orders(database_url).add()
    with TestClient(app, base_url=LOCAL) as client:
        body = {"orderId": order_id, "paymentProvider": "stripe", "paymentStatus": "paid"}
        assert client.post(PATH, json=body).json()["order"]["paymentStatus"] == "paid"
        assert client.get("/readyz").text == "ok\n"
        with pytest.raises(WebSocketDisconnect), client.websocket_connect("/"):
            pass
    assert Orders(database_url).row(order_id)["payment_status"] == "paid"
    with TestClient(
        app, base_url=LOCAL
    ) as client:  # each lifespan reads the settings and opens the pool
        assert client.get("/livez").status_code == 200


def test_plain_uvicorn_hosts_the_application(database_url: str, tmp_path: Path) -> None:
    log, issuer = tmp_path / "log", Issuer(tmp_path / "jwks.json")
    order_id = Orders(database_url).add()
    with hosted(database_url, log, **issuer.settings()) as (base_url, process):
        get = path(ListOrderPaymentEventsRequest())
        with httpx.Client(base_url=base_url, trust_env=False) as http:
            assert http.post(get, json={"orderId": order_id}).status_code == 401
            headers = bearer(issuer.token(READ))
            assert http.post(get, json={"orderId": order_id}, headers=headers).is_success
            # Files are polled every second, as by `serve`.
            issuer.jwks.write_text("{")
            eventually(lambda: "cannot use the JWK Set" in log.read_text())
        process.send_signal(signal.SIGTERM)
        # uvicorn raises the signal again when it has stopped.
        assert process.wait(_SECONDS) in (0, -signal.SIGTERM)
    assert "Application shutdown complete" in log.read_text()
    assert "Traceback" not in log.read_text()


def test_answers_are_those_of_serve(database_url: str, tmp_path: Path) -> None:
    order_id = Orders(database_url).add()
    requests = [
        ("POST", PATH, {"orderId": order_id, "paymentProvider": "stripe"}),
        ("POST", PATH, {"orderId": order_id, "paymentStatus": ""}),
        ("POST", PATH, {"orderId": order_id + 1, "paymentStatus": "paid"}),
        ("POST", PATH, {"orderId": "one"}),
        ("POST", "/listings.v1.OrderService/GetOrder", {"orderId": order_id}),
        ("POST", "/listings.v1.OrderService/GetOrders", {}),
        ("GET", PATH, None),
        ("POST", "/grpc.health.v1.Health/Check", {}),
        ("POST", "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo", {}),
        ("GET", "/livez", None),
        ("GET", "/readyz", None),
        ("GET", "/nothing", None),
        ("POST", "/nothing", {}),
    ]
    settings = {"cors_origins": "https://dashboard.example"}

    def answers(base_url: str) -> list[tuple[int, Mapping[str, str], str]]:
        with httpx.Client(base_url=base_url, trust_env=False) as http:
            http.headers["origin"] = "https://dashboard.example"
            first = http.post(PATH, json={"orderId": order_id, "paymentStatus": "pending"})
            assert first.is_success
            return [comparable(http.request(*each[:2], json=each[2])) for each in requests]

    def comparable(answer: httpx.Response) -> tuple[int, Mapping[str, str], str]:
        headers = {name: value for name, value in answer.headers.items() if name not in _VARYING}
        text = re.sub(r'"(updatedAt|paymentStatusSince|etag)":"[^"]+"', "", answer.text)
        return answer.status_code, headers, text

    with service.running(database_url, tmp_path / "served", **settings) as served:
        expected = answers(served.base_url)
        served_metrics = names_of_metrics(served.base_url)
        assert served.stop() == 0
    with hosted(database_url, tmp_path / "hosted", **settings) as (base_url, _):
        for request, found, right in zip(requests, answers(base_url), expected, strict=True):
            assert found == right, request
        assert names_of_metrics(base_url) == served_metrics
    assert {status for status, _, _ in expected} >= {200, 400, 404, 405, 415}


def names_of_metrics(base_url: str) -> list[str]:
    page = httpx.get(f"{base_url}/metrics", trust_env=False).text
    return [line for line in page.splitlines() if line.startswith("# TYPE")]


def test_the_embedded_database_is_started_and_stopped(tmp_path: Path) -> None:
    directory = open_directory()
    settings = {"data_dir": str(directory / "data")}
    with hosted("", tmp_path / "log", **settings) as (base_url, process):
        body = {"orderId": 1, "paymentStatus": "paid"}
        assert httpx.post(base_url + PATH, json=body, trust_env=False).is_success
        get = path(ListOrderPaymentEventsRequest())
        history = httpx.post(base_url + get, json={"orderId": 1}, trust_env=False).json()
        assert history["events"][-1]["databaseRole"] == APPLICATION
        process.send_signal(signal.SIGINT)
        assert process.wait(_SECONDS) in (0, -signal.SIGINT)
    assert not list(servers_below(directory))
    shutil.rmtree(directory)


def test_errors_that_stop_serve_fail_the_lifespan(
    database_url: str, empty_database_url: str, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    for url, settings, words in (
        (database_url, {"port": "http"}, "LISTINGS_PORT: Input should be a valid integer"),
        (database_url, {"jwks": "k"}, "LISTINGS_JWT_ISSUER: expected beside LISTINGS_JWKS"),
        ("postgresql://a:hunter2@127.0.0.1:1/b", {}, "Start PostgreSQL"),
        (empty_database_url, {}, "apply them with `listings migrate up`"),
    ):
        assert started(url, log, **settings).wait(_SECONDS) == 3
        assert words in log.read_text()
        assert "Application startup failed" in log.read_text()
        assert "hunter2" not in log.read_text()


@pytest.mark.parametrize("name", ["LISTINGS_POOL_SIZE", "LISTINGS_PAYMENT_STATUSES"])
def test_a_test_client_raises_the_error_of_the_lifespan(
    environment: pytest.MonkeyPatch, name: str
) -> None:
    environment.setenv(name, "0")  # no size, and no file
    with pytest.raises(SettingsError, match=name), TestClient(app, base_url=LOCAL):
        pass


def test_without_tokens_only_loopback_addresses_are_served(
    database_url: str, tmp_path: Path, environment: pytest.MonkeyPatch
) -> None:
    use(environment, database_url)
    order_id = Orders(database_url).add()
    body = {"orderId": order_id, "paymentStatus": "paid"}
    hosts = ("127.0.0.1", "[::1]", "localhost", "192.0.2.1", "[2001:db8::1]", "db.example")

    def statuses() -> list[int]:
        with TestClient(app, base_url=LOCAL) as client:
            return [client.post(f"http://{each}{PATH}", json=body).status_code for each in hosts]

    assert statuses() == [200] * 2 + [403] * 4
    environment.setenv("LISTINGS_INSECURE", "1")
    assert statuses() == [200] * 6
    environment.delenv("LISTINGS_INSECURE")
    for name, value in Issuer(tmp_path / "jwks.json").settings().items():
        environment.setenv(f"LISTINGS_{name.upper()}", value)
    assert statuses() == [401] * 6


@pytest.mark.parametrize(
    ("server", "status"),
    [
        (("/run/listings.sock", None), 200),
        (("10.0.0.1", None), 403),
        (("localhost", 8080), 403),
        (("127.0.0.1", 8080), 200),
        (None, 403),
    ],
)
def test_the_address_that_a_server_reports(
    server: tuple[str, int | None] | None, status: int
) -> None:
    sent: list[Message] = []

    async def receive() -> Message:
        return {"type": "http.request"}

    async def send(message: Message) -> None:
        sent.append(message)

    application = Hosted(Response(), loopback_only=True)
    scope: Scope = {
        "type": "http",
        "method": "GET",
        "path": "/",
        "headers": [],
        "server": server,
    }
    asyncio.run(application(scope, receive, send))
    assert sent[0]["status"] == status


def test_settings_left_to_the_asgi_server_are_logged(database_url: str, tmp_path: Path) -> None:
    log = tmp_path / "log"
    with hosted(database_url, log, shutdown_timeout="3", host="192.0.2.1"):
        for name in ("LISTINGS_HOST", "LISTINGS_SHUTDOWN_TIMEOUT"):
            assert f'"setting left to the ASGI server", "name": "{name}"' in log.read_text()


def test_a_request_without_a_lifespan_raises_an_error() -> None:
    client = TestClient(app, base_url=LOCAL)  # not entered
    with pytest.raises(RuntimeError, match="lifespan"):
        client.get("/livez")
