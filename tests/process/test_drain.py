"""SIGTERM: calls in flight end within a limit, and no connection is lost."""

import asyncio
import shutil
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest

from persistence import embedded, migrations
from server.gen.listings.v1.orders_pb import (
    UpdateOrderPaymentRequest,
    UpdateOrderPaymentResponse,
    WatchOrderPaymentsRequest,
)
from tests.support import callers, service, watchers
from tests.support.callers import PATH, Failure, json_client, path
from tests.support.embedded import open_directory, suspended
from tests.support.http2 import (
    HEADERS,
    SETTINGS,
    Peer,
    grpc_call,
    header_block,
)
from tests.support.orders import Orders
from tests.support.raw import PREFACE, frame, head, http1
from tests.support.service import Service
from tests.support.waiting import eventually, lock_waits

INITIAL_WINDOW_SIZE = b"\x00\x04"  # RFC 9113, section 6.5.2

STOPPED = 20  # seconds; far below shutdown_timeout in tests of what must not delay the exit


def request_bytes(order_id: int) -> bytes:
    body = f'{{"orderId": {order_id}, "paymentStatus": "paid"}}'.encode()
    return http1(PATH, f"content-length: {len(body)}") + body


def connected(running: Service) -> socket.socket:
    return socket.create_connection(("127.0.0.1", running.port), timeout=STOPPED)


@contextmanager
def locked(url: str, order_id: int) -> Iterator[psycopg.Connection]:
    """Lock the row of an order until the yielded connection is rolled back."""
    with psycopg.connect(url) as holder:
        holder.execute("SELECT FROM orders WHERE id = %s FOR UPDATE", (order_id,))
        yield holder


class Updating(threading.Thread):
    """An update in the background, over gRPC."""

    def __init__(self, call: callers.Call, order_id: int) -> None:
        super().__init__()
        self._call, self._order_id = call, order_id
        self.failure: Failure | None = None
        self.start()

    def run(self) -> None:
        try:
            self._call(UpdateOrderPaymentRequest(order_id=self._order_id, payment_status="paid"))
        except Failure as failure:
            self.failure = failure


def test_calls_are_cancelled_after_shutdown_timeout(database_url: str, tmp_path: Path) -> None:
    order_id = Orders(database_url).add()
    settings = {"shutdown_timeout": "1", "statement_timeout": "600"}
    with (
        service.running(database_url, tmp_path / "log", **settings) as running,
        callers.grpcio(running.base_url) as call,
        locked(database_url, order_id),
    ):
        updating = Updating(call, order_id)
        eventually(lambda: lock_waits(database_url))
        running.process.terminate()
        assert running.process.wait(STOPPED) == 0
        updating.join(STOPPED)
        assert updating.failure is not None
        assert "drain ended before its calls: 1 calls cancelled, " in (running.log.read_text())


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_second_sigint_ends_the_drain(database_url: str, tmp_path: Path, workers: str) -> None:
    order_id = Orders(database_url).add()
    settings = {"shutdown_timeout": "300", "statement_timeout": "600", "workers": workers}
    with (
        service.running(database_url, tmp_path / "log", **settings) as running,
        callers.grpcio(running.base_url) as call,
        locked(database_url, order_id),
    ):
        updating = Updating(call, order_id)
        eventually(lambda: lock_waits(database_url))
        running.process.send_signal(signal.SIGINT)
        eventually(lambda: running.log.read_text().count("stopping") >= int(workers))
        assert running.process.poll() is None
        running.process.send_signal(signal.SIGINT)
        assert running.process.wait(STOPPED) == 0
        updating.join(STOPPED)
        assert updating.failure is not None


@pytest.fixture
def directory() -> Iterator[Path]:
    """The data directory of a PostgreSQL server that the test suspends."""
    directory = open_directory()
    yield directory / "data"
    shutil.rmtree(directory)


def test_a_hanging_database_does_not_delay_the_exit(directory: Path, tmp_path: Path) -> None:
    with embedded.running(directory) as url:
        migrations.up(url)
        order_id = Orders(url).add()
        with (
            service.running(
                url, tmp_path / "log", shutdown_timeout="2", statement_timeout="60"
            ) as running,
            callers.grpcio(running.base_url) as call,
        ):
            call(UpdateOrderPaymentRequest(order_id=order_id, payment_provider="stripe"))
            with suspended(directory):
                updating = Updating(call, order_id)
                running.process.terminate()
                assert running.process.wait(STOPPED) == 0
            updating.join(STOPPED)


@pytest.mark.parametrize("workers", ["1", "2"])
def test_connections_in_the_backlog_are_served(
    database_url: str, tmp_path: Path, workers: str
) -> None:
    order_id = Orders(database_url).add()
    with service.running(database_url, tmp_path / "log", workers=workers) as running:
        stopped = running.serving_processes()
        for process in stopped:
            process.suspend()
        clients = [connected(running) for _ in range(40)]
        silent, late = clients[:2]
        for client in clients[2:]:
            client.sendall(request_bytes(order_id))
        running.process.terminate()
        for process in stopped:
            process.resume()
        assert b"200 OK" in clients[2].recv(65536)
        time.sleep(0.1)  # By now the drain has reached the other connections.
        late.sendall(request_bytes(order_id))
        for client in [*clients[3:], late]:
            assert b"200 OK" in client.recv(65536)
        assert silent.recv(1) == b""
        assert running.process.wait(STOPPED) == 0
        with pytest.raises(ConnectionRefusedError):
            connected(running)
        for client in clients:
            client.close()


@pytest.mark.parametrize("workers", ["1", "2"])
def test_connections_made_during_shutdown_are_served(
    database_url: str, tmp_path: Path, workers: str
) -> None:
    order_id = Orders(database_url).add()
    answers: list[bytes] = []
    with service.running(database_url, tmp_path / "log", workers=workers) as running:

        def connect_again_and_again() -> None:
            while True:
                try:
                    client = connected(running)
                except ConnectionRefusedError:
                    return
                with client:
                    try:
                        client.sendall(request_bytes(order_id))
                        answers.append(client.recv(65536))
                    except OSError as error:
                        answers.append(str(error).encode())

        threads = [threading.Thread(target=connect_again_and_again) for _ in range(8)]
        for thread in threads:
            thread.start()
        while len(answers) < 100:
            time.sleep(0.001)
        running.process.terminate()
        assert running.process.wait(STOPPED) == 0
        for thread in threads:
            thread.join(STOPPED)
    assert [answer for answer in answers if b"200 OK" not in answer] == []


INCOMPLETE = {
    "preface": b"PRI * HT",
    "head": b"POST / HTTP/1.1\r\nHost:",
    "body": request_bytes(1)[:-1],
    "http2-frame": PREFACE + b"\0\0",
    "http2-header-list": PREFACE + frame(HEADERS, 0, 1, header_block(PATH.encode())),
    "http2-body": PREFACE + head(1, PATH),
}


@pytest.mark.parametrize("kind", INCOMPLETE)
def test_an_incomplete_request_does_not_delay_the_exit(
    database_url: str, tmp_path: Path, kind: str
) -> None:
    with (
        service.running(database_url, tmp_path / "log", shutdown_timeout="300") as running,
        connected(running) as client,
        json_client(running.base_url) as other,
    ):
        client.sendall(INCOMPLETE[kind])
        assert other.get("/livez").text == "ok\n"  # the incomplete request has arrived
        running.process.terminate()
        assert running.process.wait(STOPPED) == 0
        assert "cut off" not in running.log.read_text()


@pytest.mark.anyio
async def test_a_watcher_that_does_not_read_does_not_delay_the_exit(
    database_url: str, tmp_path: Path
) -> None:
    """Other calls on its connection are answered."""
    orders = Orders(database_url)
    watched, order_id = orders.add(), orders.add()
    settings = {"shutdown_timeout": "300", "statement_timeout": "60"}
    with (
        service.running(database_url, tmp_path / "log", **settings) as running,
        watchers.grpcio(running.base_url) as watch,
        watch(WatchOrderPaymentsRequest(order_ids=[watched])) as read,
        locked(database_url, order_id) as holder,
    ):
        peer = await http2_peer(running, window=16_384)
        watched_order = WatchOrderPaymentsRequest(order_ids=[watched])
        grpc_call(peer, 1, path(watched_order), watched_order)
        update = UpdateOrderPaymentRequest(order_id=order_id, payment_status="paid")
        grpc_call(peer, 3, PATH, update)
        await peer.until(lambda: 1 in peer.messages)
        eventually(lambda: lock_waits(database_url))

        assert next(read).event is None
        fill(database_url, watched, 300)
        for _ in range(300):
            next(read)
        running.process.terminate()
        with pytest.raises(Failure) as ended:
            next(read)
        assert ended.value.code == "unavailable"
        async with asyncio.timeout(STOPPED):
            await peer.until(lambda: 1 in peer.resets)
            holder.rollback()
            await peer.until(lambda: 3 in peer.answered)
        assert UpdateOrderPaymentResponse.from_binary(peer.messages[3][5:]).success
        assert await asyncio.to_thread(running.process.wait, STOPPED) == 0
        assert "cut off" not in running.log.read_text()
        peer.writer.close()


@pytest.mark.anyio
async def test_a_response_that_is_not_read_does_not_delay_the_exit(
    database_url: str, tmp_path: Path
) -> None:
    order_id = Orders(database_url).add()
    with service.running(database_url, tmp_path / "log", shutdown_timeout="300") as running:
        peer = await http2_peer(running, window=0)
        update = UpdateOrderPaymentRequest(order_id=order_id, payment_status="paid")
        grpc_call(peer, 1, PATH, update)
        async with asyncio.timeout(STOPPED):
            while Orders(database_url).row(order_id)["payment_status"] != "paid":  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        running.process.terminate()
        assert await asyncio.to_thread(running.process.wait, STOPPED) == 0
        peer.writer.close()


async def http2_peer(running: Service, *, window: int) -> Peer:
    """Connect a client whose flow-control window is that many bytes for each stream."""
    peer = Peer(*await asyncio.open_connection("127.0.0.1", running.port))
    peer.writer.write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
    peer.send(SETTINGS, payload=INITIAL_WINDOW_SIZE + window.to_bytes(4))
    return peer


def fill(url: str, order_id: int, count: int) -> None:
    """Change the payment of an order ``count`` times, with long values."""
    with psycopg.connect(url) as connection:
        for number in range(count):
            connection.execute(
                "UPDATE orders SET payment_session_id = %s, payment_intent_id = %s WHERE id = %s",
                (f"{number:0255}", f"{number:0255}", order_id),
            )
