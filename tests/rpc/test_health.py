"""grpc.health.v1, /livez and /readyz: over every protocol, following the database."""

import os
import queue
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import grpc
import httpx
import psycopg
import pytest
from connectrpc.errors import ConnectError
from connectrpc.protocol import ProtocolType
from grpc_health.v1 import health_pb2, health_pb2_grpc
from pyqwest import HTTPVersion, SyncClient, SyncHTTPTransport

from persistence import embedded, migrations
from server.gen.grpc_health.v1.health_connect import HealthClientSync
from server.gen.grpc_health.v1.health_pb import (
    HealthCheckRequest,
    HealthCheckResponse,
    HealthListRequest,
)
from server.gen.listings.v1.orders_pb import UpdateOrderPaymentRequest
from tests.support import callers, service
from tests.support.callers import Failure
from tests.support.embedded import open_directory, postmaster, processes, signal_all
from tests.support.orders import Orders
from tests.support.service import Service
from tests.support.waiting import eventually, lock_waits

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
SERVICE_UNKNOWN = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
SERVICES = ["", "listings.v1.OrderService"]

# Seconds within which the status follows the database, on a loaded machine.
SEEN = 6.0


@contextmanager
def stub(running: Service) -> Iterator[health_pb2_grpc.HealthStub]:
    with grpc.insecure_channel(f"127.0.0.1:{running.port}") as channel:
        yield health_pb2_grpc.HealthStub(channel)


@pytest.mark.parametrize("name", SERVICES)
def test_check_watch_and_list_over_grpc(running: Service, name: str) -> None:
    """As grpc_health_probe and Kubernetes do."""
    request = health_pb2.HealthCheckRequest(service=name)
    with stub(running) as health:
        assert health.Check(request, timeout=10).status == SERVING
        watching = health.Watch(request, timeout=10)
        assert next(watching).status == SERVING
        watching.cancel()
        listed = health.List(health_pb2.HealthListRequest(), timeout=10).statuses
    assert {each: listed[each].status for each in listed} == dict.fromkeys(SERVICES, SERVING)


def test_an_unknown_service(running: Service) -> None:
    request = health_pb2.HealthCheckRequest(service="listings.v1.Nothing")
    with stub(running) as health:
        with pytest.raises(grpc.RpcError) as caught:
            health.Check(request, timeout=10)
        assert caught.value.code() == grpc.StatusCode.NOT_FOUND
        watching = health.Watch(request, timeout=10)
        assert next(watching).status == SERVICE_UNKNOWN
        assert watching.is_active(), "it may come to be known, so the stream goes on"
        watching.cancel()


@pytest.mark.parametrize(
    ("protocol", "version"),
    [
        (ProtocolType.GRPC, HTTPVersion.HTTP2),
        (ProtocolType.GRPC_WEB, HTTPVersion.HTTP1),
        (ProtocolType.GRPC_WEB, HTTPVersion.HTTP2),
        (ProtocolType.CONNECT, HTTPVersion.HTTP1),
        (ProtocolType.CONNECT, HTTPVersion.HTTP2),
    ],
)
def test_every_protocol(running: Service, protocol: ProtocolType, version: HTTPVersion) -> None:
    http_client = SyncClient(SyncHTTPTransport(http_version=version))
    serving = HealthCheckResponse.ServingStatus.SERVING
    with HealthClientSync(running.base_url, protocol=protocol, http_client=http_client) as health:
        assert health.check(HealthCheckRequest(), timeout_ms=10_000).status == serving
        assert set(health.list(HealthListRequest(), timeout_ms=10_000).statuses) == set(SERVICES)
        assert next(iter(health.watch(HealthCheckRequest(), timeout_ms=10_000))).status == serving
        with pytest.raises(ConnectError, match=r"there is no service x\.Y"):
            health.check(HealthCheckRequest(service="x.Y"), timeout_ms=10_000)


def test_livez_and_readyz(running: Service) -> None:
    for path in ("/livez", "/readyz"):
        response = httpx.get(running.base_url + path)
        assert (response.status_code, response.text) == (200, "ok\n")


def test_it_is_serving_while_the_pool_is_exhausted(database_url: str, tmp_path: Path) -> None:
    """More calls wait than the pool has connections: overload does not change the status."""
    order_id = Orders(database_url).add()
    request = UpdateOrderPaymentRequest(order_id=order_id, payment_status="paid")
    with (
        service.running(database_url, tmp_path / "log", pool_size="2") as running,
        psycopg.connect(database_url) as holder,
    ):
        holder.execute("SELECT FROM orders FOR UPDATE")

        def update() -> None:
            with callers.grpcio(running.base_url) as call, suppress(Failure):
                call(request)

        updating = [threading.Thread(target=update) for _ in range(20)]
        for each in updating:
            each.start()
        with stub(running) as health:
            eventually(lambda: lock_waits(database_url) == 2)
            for _ in range(25):  # for longer than the probe takes to find a fault
                started = time.monotonic()
                answer = health.Check(health_pb2.HealthCheckRequest(), timeout=2)
                assert answer.status == SERVING
                assert httpx.get(f"{running.base_url}/readyz").status_code == 200
                time.sleep(max(0.0, 0.1 - (time.monotonic() - started)))
        holder.rollback()
        for each in updating:
            each.join()


@pytest.fixture(scope="module")
def server_directory() -> Iterator[Path]:
    """The data directory of a PostgreSQL server that tests stop and kill."""
    directory = open_directory()
    yield directory / "data"
    shutil.rmtree(directory)


@pytest.fixture
def own_database(server_directory: Path) -> Iterator[str]:
    with embedded.running(server_directory) as url:
        migrations.up(url)
        yield url


class Watching:
    """The statuses of a Watch stream, and the response of /readyz."""

    def __init__(self, health: health_pb2_grpc.HealthStub, running: Service) -> None:
        self.stream = health.Watch(health_pb2.HealthCheckRequest())
        self._url = f"{running.base_url}/readyz"
        self._received: queue.Queue[int | grpc.RpcError | None] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        try:
            for response in self.stream:
                self._received.put(response.status)
        except grpc.RpcError as error:
            self._received.put(error)
        else:
            self._received.put(None)

    def next(self) -> object:
        return self._received.get(timeout=SEEN)

    def page(self) -> tuple[int, str]:
        response = httpx.get(self._url, timeout=2)
        return response.status_code, response.text


@pytest.mark.parametrize(
    ("how", "words"),
    [("stopped", "the database does not answer in time\n"), ("killed", "the database")],
)
def test_readiness_follows_the_database(
    own_database: str, server_directory: Path, tmp_path: Path, how: str, words: str
) -> None:
    with (
        service.running(own_database, tmp_path / "log") as running,
        stub(running) as health,
    ):
        watching = Watching(health, running)
        assert watching.next() == SERVING
        pids = processes(server_directory)
        undo: Callable[[], object]
        if how == "stopped":
            signal_all(pids, signal.SIGSTOP)

            def undo() -> None:
                signal_all(pids, signal.SIGCONT)

        else:
            os.kill(postmaster(server_directory), signal.SIGKILL)

            def undo() -> None:
                with embedded.running(server_directory):
                    pass

        try:
            assert watching.next() == NOT_SERVING
            started = time.monotonic()
            code, text = watching.page()
            check = health.Check(health_pb2.HealthCheckRequest(), timeout=2)
            assert time.monotonic() - started < 2, "it waited for the database"
            assert (code, check.status) == (503, NOT_SERVING)
            assert text.startswith(words)
            assert str(server_directory) not in text
            assert httpx.get(f"{running.base_url}/livez").status_code == 200
        finally:
            undo()
        assert watching.next() == SERVING
        assert watching.page() == (200, "ok\n")
        watching.stream.cancel()
        assert running.stop() == 0


def test_it_is_not_serving_while_every_call_fails(database_url: str, tmp_path: Path) -> None:
    """For a reason that PostgreSQL answers with, as for rights that were revoked."""
    order_id = Orders(database_url).add()
    request = UpdateOrderPaymentRequest(order_id=order_id, payment_status="paid")
    with (
        service.running(database_url, tmp_path / "log") as running,
        stub(running) as health,
        callers.grpcio(running.base_url) as call,
        psycopg.connect(database_url, autocommit=True) as owner,
    ):
        watching = Watching(health, running)
        assert watching.next() == SERVING
        owner.execute("ALTER TABLE orders RENAME TO gone")
        assert watching.next() == NOT_SERVING
        assert watching.page() == (
            503,
            "tables or functions are missing, or not on the search_path\n",
        )
        with pytest.raises(Failure):
            call(request)
        owner.execute("ALTER TABLE gone RENAME TO orders")
        assert watching.next() == SERVING
        call(request)
        watching.stream.cancel()
        (entry,) = running.logged(logger="persistence.health_probe", level="warning")
        assert entry["event"] == "tables or functions are missing, or not on the search_path"
        assert running.stop() == 0


def test_lost_connections_do_not_change_readiness(own_database: str, tmp_path: Path) -> None:
    """A restart of a pooler must not take all replicas out of service at once."""
    with (
        service.running(own_database, tmp_path / "log") as running,
        stub(running) as health,
    ):
        watching = Watching(health, running)
        assert watching.next() == SERVING
        with psycopg.connect(own_database, autocommit=True) as connection:
            for _ in range(3):
                connection.execute(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE backend_type = "
                    "'client backend' AND pid <> pg_backend_pid()"
                )
                time.sleep(0.7)
        watching.stream.cancel()
        assert isinstance(watching.next(), grpc.RpcError)  # and no NOT_SERVING before
        assert running.stop() == 0
        assert not running.logged(logger="persistence.health_probe")


def test_a_lasting_fault_is_logged_once(
    own_database: str, server_directory: Path, tmp_path: Path
) -> None:
    with service.running(own_database, tmp_path / "log") as running:
        os.kill(postmaster(server_directory), signal.SIGKILL)
        time.sleep(3)
        faults = running.logged(level="warning", logger="persistence.watch")
        assert 1 <= len(faults) <= 2  # at the first failure, and when it persists
        with embedded.running(server_directory):
            over = "no longer: not listening for changes of payments"
            eventually(lambda: running.logged(event=over))
            assert running.stop() == 0


def test_a_drain_ends_watches_with_not_serving(database_url: str, tmp_path: Path) -> None:
    order_id = Orders(database_url).add()
    with (
        service.running(database_url, tmp_path / "log") as running,
        stub(running) as health,
        callers.grpcio(running.base_url) as call,
        psycopg.connect(database_url) as holder,
        httpx.Client(base_url=running.base_url, http1=False, http2=True) as http,
    ):
        holder.execute("SELECT FROM orders FOR UPDATE")
        request = UpdateOrderPaymentRequest(order_id=order_id, payment_status="paid")
        updating = threading.Thread(target=call, args=(request,))
        updating.start()
        watching, unknown = (
            Watching(health, running),
            health.Watch(health_pb2.HealthCheckRequest(service="x.Y"), timeout=20),
        )
        assert watching.next() == SERVING
        assert next(unknown).status == SERVICE_UNKNOWN
        assert http.get("/readyz").status_code == 200
        running.process.terminate()
        assert watching.next() == NOT_SERVING
        assert watching.next() is None, "it ends well"
        assert list(unknown) == []
        holder.rollback()
        updating.join()
        assert running.process.wait(20) == 0
    assert Orders(database_url).row(order_id)["payment_status"] == "paid"
