"""Several processes on one port: replaced when they are killed, stopped with the service."""

import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx
import psutil
import psycopg
import pytest

from server.gen.listings.v1.orders_pb import ListOrdersRequest, UpdateOrderPaymentRequest
from tests.support import callers, databases, service
from tests.support.callers import PATH
from tests.support.embedded import open_directory, servers_below
from tests.support.orders import Orders
from tests.support.service import Service
from tests.support.tokens import READ, Issuer, bearer
from tests.support.waiting import eventually, lock_waits

SECONDS = 20


def connections(process: psutil.Process) -> int:
    """The number of client connections that a worker has accepted."""
    try:
        found = process.net_connections("tcp")
    except psutil.NoSuchProcess:
        return 0
    return sum(each.status == psutil.CONN_ESTABLISHED for each in found)


def gone(process: psutil.Process) -> bool:
    return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


class Client(threading.Thread):
    """Updates an order in a loop, and reconnects when its connection is closed."""

    def __init__(self, running: Service, order_id: int) -> None:
        super().__init__()
        self._running, self._json = running, {"orderId": order_id, "paymentStatus": "paid"}
        self.calls = 0
        self.errors: list[str] = []
        self.enough = threading.Event()
        self.start()

    def run(self) -> None:
        http = callers.json_client(self._running.base_url)
        while not self.enough.is_set():
            try:
                response = http.post(PATH, json=self._json)
            except httpx.TransportError:
                http.close()
                http = callers.json_client(self._running.base_url)
                try:
                    response = http.post(PATH, json=self._json)
                except httpx.TransportError as error:
                    self.errors.append(repr(error))
                    continue
            if not response.is_success:
                self.errors.append(response.text)
            self.calls += 1
        http.close()


CANNOT_START = """
from server.http.sockets import listen
from server.process.metric_files import shared_metrics
from server.process.supervisor import serve_with_workers

def work(listener, ready, lifeline):
    raise SystemExit(3)

with shared_metrics():
    serve_with_workers(work, listen("127.0.0.1", 0, 2), lambda: print("Serving"), limit=30)
"""


def test_workers_that_fail_before_serving_end_the_service() -> None:
    done = subprocess.run(
        [sys.executable, "-c", CANNOT_START],
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    assert done.returncode == 1
    assert done.stdout == ""
    assert "ended with exit code 3 before it served" in done.stderr.splitlines()[-1]


@contextmanager
def load(running: Service, order_ids: list[int]) -> Iterator[list[Client]]:
    clients = [Client(running, order_id) for order_id in order_ids]
    try:
        yield clients
    finally:
        for client in clients:
            client.enough.set()
        for client in clients:
            client.join(SECONDS)


def test_a_worker_that_is_killed_is_replaced(database_url: str, tmp_path: Path) -> None:
    orders = Orders(database_url)
    order_ids = [orders.add() for _ in range(8)]
    with service.running(database_url, tmp_path / "log", workers="2") as running:
        assert running.log.read_text().count("Serving gRPC") == 1
        with load(running, order_ids) as clients:
            eventually(lambda: all(client.calls > 5 for client in clients))
            first, second = running.serving_processes()
            assert connections(first) + connections(second) >= len(clients)
            first.kill()
            eventually(lambda: len(running.serving_processes()) == 2)
            before = [client.calls for client in clients]
            eventually(
                lambda: all(
                    client.calls > count + 5 for client, count in zip(clients, before, strict=True)
                )
            )
            assert first not in running.serving_processes()
            assert second in running.serving_processes()
        assert [error for client in clients for error in client.errors] == []
        # Each worker gets some of 40 connections; none at all is improbable.
        with ExitStack() as stack:
            for _ in range(40):
                http = stack.enter_context(callers.json_client(running.base_url))
                assert http.get("/livez").is_success
            assert all(connections(each) > 0 for each in running.serving_processes())
        assert f"worker {first.pid} was killed by SIGKILL" in running.log.read_text()
        assert running.stop() == 0
        assert "Traceback" not in running.log.read_text()


def test_unaccepted_connections_are_served_by_the_replacement(
    database_url: str, tmp_path: Path
) -> None:
    """Connections that the killed workers had not accepted stay in the backlog."""
    with service.running(database_url, tmp_path / "log", workers="2") as running:
        workers = running.serving_processes()
        for worker in workers:
            worker.suspend()
        answers: list[int] = []

        def get() -> None:
            with callers.json_client(running.base_url) as http:
                answers.append(http.get("/livez").status_code)

        threads = [threading.Thread(target=get) for _ in range(20)]
        for thread in threads:
            thread.start()
        eventually(lambda: connections_to(running.port) == len(threads))
        for worker in workers:
            worker.kill()
        for thread in threads:
            thread.join(SECONDS)
        assert answers == [200] * len(threads)
        assert running.stop() == 0


def connections_to(port: int) -> int:
    """The number of client connections to the port, accepted or not."""
    return sum(
        each.status == psutil.CONN_ESTABLISHED and each.raddr.port == port
        for each in psutil.net_connections("tcp")
        if each.raddr
    )


def test_restarts_of_a_crashing_worker_are_delayed(database_url: str, tmp_path: Path) -> None:
    with service.running(database_url, tmp_path / "log", workers="2") as running:
        pauses = []
        for _ in range(3):
            *_, last = running.serving_processes()
            last.kill()
            message = f"worker {last.pid} was killed by SIGKILL; restarting in "
            eventually(lambda message=message: message in running.log.read_text())  # type: ignore[misc]
            pauses.append(float(running.log.read_text().partition(message)[2].split(" ")[0]))
            eventually(lambda: len(running.serving_processes()) == 2)
        assert pauses[0] == 0 < pauses[1] < pauses[2]
        assert running.stop() == 0


def test_workers_are_replaced_while_the_database_is_unreachable(
    database_url: str, tmp_path: Path
) -> None:
    server, name = databases.server_and_name(database_url)
    with (
        service.running(database_url, tmp_path / "log", workers="2") as running,
        psycopg.connect(server, autocommit=True) as admin,
    ):
        admin.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS false")
        admin.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", (name,)
        )
        workers = running.serving_processes()
        for worker in workers:
            worker.kill()

        def readiness() -> int:
            with callers.json_client(running.base_url) as http:
                return http.get("/readyz").status_code

        assert readiness() == 503
        admin.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS true")
        eventually(lambda: readiness() == 200)
        assert set(workers).isdisjoint(running.serving_processes())
        assert running.stop() == 0


def test_workers_are_replaced_while_their_files_are_malformed(
    database_url: str, tmp_path: Path
) -> None:
    """With the keys that were read at the start, until the file is valid again."""
    issuer = Issuer(tmp_path / "jwks.json")
    headers = bearer(issuer.token(READ))

    def answered(process: psutil.Process) -> bool:
        """Call once; return whether that worker has answered a call so far."""
        with callers.CALLERS["connect-binary"](running.base_url, **headers) as call:
            call(ListOrdersRequest())
        return bool(running.logged(event="rpc", code="ok", pid=process.pid))

    with service.running(
        database_url, tmp_path / "log", workers="2", **issuer.settings()
    ) as running:
        issuer.jwks.write_text("{")
        before = running.serving_processes()
        for process in before:
            process.kill()
        eventually(lambda: len(set(running.serving_processes()) - set(before)) == 2)
        for process in set(running.serving_processes()) - set(before):
            eventually(lambda process=process: answered(process))  # type: ignore[misc]
        assert running.stop() == 0


def test_workers_end_when_their_parent_is_killed(database_url: str, tmp_path: Path) -> None:
    order_id = Orders(database_url).add()
    request = UpdateOrderPaymentRequest(order_id=order_id, payment_status="paid")
    with (
        service.running(database_url, tmp_path / "log", workers="2") as running,
        callers.grpcio(running.base_url) as call,
        psycopg.connect(database_url) as holder,
    ):
        workers = running.serving_processes()
        call(UpdateOrderPaymentRequest(order_id=order_id, payment_provider="stripe"))
        holder.execute("SELECT FROM orders FOR UPDATE")
        answers: list[object] = []
        updating = threading.Thread(target=lambda: answers.append(call(request).success))
        updating.start()
        eventually(lambda: lock_waits(database_url))
        running.process.kill()
        running.process.wait()
        eventually(lambda: running.log.read_text().count("parent process ended") == 2)
        holder.rollback()
        updating.join(SECONDS)
        assert answers == [True], "what was under way is finished"
        eventually(lambda: all(gone(worker) for worker in workers))


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_all_workers(
    database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: signal.Signals
) -> None:
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setenv("TMPDIR", str(temporary))
    with service.running(database_url, tmp_path / "log", workers="3") as running:
        workers = running.serving_processes()
        assert len(workers) == 3
        assert list(temporary.iterdir()), "what they count is put together in files"
        running.process.send_signal(how)
        assert running.process.wait(SECONDS) == 0
        assert all(gone(worker) for worker in workers)
    assert list(temporary.iterdir()) == []


@pytest.mark.parametrize("victims", ["parent", "all"])
def test_files_of_metrics_are_removed_when_processes_were_killed(
    database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, victims: str
) -> None:
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setenv("TMPDIR", str(temporary))
    with ExitStack() as stack:
        log = tmp_path / "others.log"
        others = stack.enter_context(service.running(database_url, log, workers="2"))
        (theirs,) = temporary.iterdir()
        log = tmp_path / "log"
        running = stack.enter_context(service.running(database_url, log, workers="2"))
        assert len(list(temporary.iterdir())) == 2
        workers = running.serving_processes()
        if victims == "all":
            for each in workers:
                each.suspend()
        running.process.kill()
        running.process.wait()
        if victims == "all":
            for each in workers:
                each.kill()
        eventually(lambda: all(gone(worker) for worker in workers))
        if victims == "all":
            assert len(list(temporary.iterdir())) == 2
            with service.running(database_url, tmp_path / "next.log", workers="2") as following:
                assert following.stop() == 0
        assert list(temporary.iterdir()) == [theirs]
        assert others.stop() == 0
    assert list(temporary.iterdir()) == []


def test_the_embedded_database_stops_with_its_last_user(tmp_path: Path) -> None:
    directory = open_directory()
    settings = {"data_dir": str(directory / "data"), "workers": "2"}
    with service.running("", tmp_path / "log", **settings) as running:
        first, _ = running.serving_processes()
        first.kill()  # must not stop the database or release its lock
        eventually(lambda: first not in running.serving_processes())
        eventually(lambda: len(running.serving_processes()) == 2)
        # Another user of the database starts and ends.
        status = [sys.executable, "-m", "server", "migrate", "status"]
        subprocess.run(status, env=service.environment("", settings), check=True)
        with callers.json_client(running.base_url) as http:
            assert http.post(PATH, json={"orderId": 1, "paymentStatus": "paid"}).is_success
        assert list(servers_below(directory))
        assert running.stop() == 0
        assert not list(servers_below(directory))

    # Workers whose parent is killed keep the lock of the database until they exit.
    with service.running("", tmp_path / "log", **settings) as running:
        workers = running.serving_processes()
        for worker in workers:
            worker.suspend()
        running.process.kill()
        running.process.wait()
        subprocess.run(status, env=service.environment("", settings), check=True)
        assert list(servers_below(directory))
        for worker in workers:
            worker.resume()
        eventually(lambda: all(gone(worker) for worker in workers))
    subprocess.run(status, env=service.environment("", settings), check=True)
    assert not list(servers_below(directory)), "the last user stops it"
    shutil.rmtree(directory)


def test_one_worker_for_each_core_by_default(database_url: str, tmp_path: Path) -> None:
    with service.running(database_url, tmp_path / "log", workers="") as running:
        cores = len(os.sched_getaffinity(0))
        assert len(running.serving_processes()) == cores
        assert running.stop() == 0
