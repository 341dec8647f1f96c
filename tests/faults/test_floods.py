"""Floods of frames, bodies and connections: other clients are served, and memory is bounded."""

import gzip
import resource
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import grpc
import psutil
import psycopg
import pytest

from server.gen.listings.v1.orders_pb import GetOrderRequest, UpdateOrderPaymentRequest
from server.http.h2_flow import ENHANCE_YOUR_CALM
from tests.support import databases, service
from tests.support.callers import PATH, READERS, Call, Failure, grpc_failure
from tests.support.http2 import (
    CANCEL,
    END_STREAM,
    HEADERS,
    PING,
    RST_STREAM,
    SETTINGS,
    WINDOW_UPDATE,
)
from tests.support.orders import Orders
from tests.support.raw import (
    PREFACE,
    connected,
    data,
    envelope,
    frame,
    goaway_codes,
    head,
    http1,
    push,
    rest,
)
from tests.support.service import Service
from tests.support.trial import Trial

MEBIBYTE = 2**20
MOST_GROWTH = 48 * MEBIBYTE  # of the process's resident memory, in any flood
SLOWEST = 2.0  # seconds for a call by another client
LIMIT = 64 * 1024  # LISTINGS_MAX_REQUEST_BYTES


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    log = tmp_path_factory.mktemp("floods") / "log"
    with service.on_own_database(log) as running:
        yield running
    assert "Traceback" not in log.read_text()


class Bystander:
    """Another client, which sends one call after the other and retries RESOURCE_EXHAUSTED."""

    def __init__(self, running: Service) -> None:
        self.answers = 0
        self.failures: list[str] = []
        self.slowest = 0.0
        self._running = running
        self._order_id = Orders(running.database_url).add()
        self._over = threading.Event()

    def ask(self) -> None:
        with READERS["grpcio"](self._running.base_url) as call:
            while not self._over.is_set():
                began = time.monotonic()
                try:
                    while not self._is_answered(call):
                        time.sleep(0.02)
                    self.answers += 1
                except Exception as error:
                    self.failures.append(repr(error))
                self.slowest = max(self.slowest, time.monotonic() - began)

    def _is_answered(self, call: Call) -> bool:
        try:
            call(GetOrderRequest(order_id=self._order_id))
        except Failure as failure:
            if failure.code == "resource_exhausted":
                return False
            raise
        return True

    def stop(self) -> None:
        self._over.set()


@contextmanager
def unharmed(running: Service, trial: Trial) -> Iterator[list[int]]:
    """Check that another client is served and memory is bounded; yield a list for counts."""
    process, bystander, counts = psutil.Process(running.process.pid), Bystander(running), [0]
    asking = threading.Thread(target=bystander.ask)
    before = process.memory_info().rss
    asking.start()
    try:
        yield counts
        growth = process.memory_info().rss - before
        answered = bystander.answers
        while (
            bystander.answers == answered and not bystander.failures
        ):  # until one more call is complete
            time.sleep(0.001)
    finally:
        bystander.stop()
        asking.join()
    trial.report(
        sum(counts),
        len(bystander.failures),
        f"{bystander.answers} other calls, the slowest took {bystander.slowest:.2f} s; "
        f"{growth / MEBIBYTE:+.0f} MiB",
    )
    assert bystander.failures == []
    assert bystander.slowest < SLOWEST
    assert growth < MOST_GROWTH


# Frames


def begun(stream_id: int = 1) -> bytes:
    """A call whose request is not complete."""
    return head(stream_id, PATH)


NOTHING_ASKED = {
    "ping": frame(PING, payload=bytes(8)),
    "settings": frame(SETTINGS),
    "window-update": frame(WINDOW_UPDATE, payload=(1).to_bytes(4)),
    "data": data(1, b"x"),
}
DROPPED = {
    "empty-data": data(1),
    "priority": frame(0x2, 0, 1, bytes(4) + b"\1"),
    "unknown": frame(0xBB, 0, 1, b"?"),
}


@pytest.mark.parametrize("kind", NOTHING_ASKED)
def test_a_flood_of_frames_without_requests_ends_the_connection(
    running: Service, trial: Trial, kind: str
) -> None:
    chunk = NOTHING_ASKED[kind] * 500
    with unharmed(running, trial) as tried:
        for _ in range(trial.times(2, 50)):
            with connected(running.port) as connection:
                connection.sendall(PREFACE + begun())
                received = bytearray()
                reader = threading.Thread(target=lambda c=connection, r=received: r.extend(rest(c)))
                reader.start()
                tried.append(500 * push(connection, chunk, 10_000))
                reader.join()
            assert tried[-1] < 500 * 10_000
            # The GOAWAY may be lost: the kernel sends RST when more data arrives after the close.
            assert set(goaway_codes(bytes(received))) <= {ENHANCE_YOUR_CALM}
    assert "too many frames besides requests" in running.log.read_text()


@pytest.mark.parametrize("where", [PATH, "/nowhere"])
def test_a_body_in_tiny_chunks(running: Service, trial: Trial, where: str) -> None:
    """For a method, until the limit is exceeded, or for a path without a route."""
    with unharmed(running, trial) as tried:
        for _ in range(trial.times(1, 5)):
            with connected(running.port) as connection:
                connection.sendall(http1(where, "transfer-encoding: chunked"))
                began = time.monotonic()
                tried.append(5_000 * push(connection, b"1\r\nx\r\n" * 5_000, 1_000_000))
                assert time.monotonic() - began < 5


@pytest.mark.parametrize("kind", DROPPED)
def test_a_flood_of_frames_that_are_ignored(running: Service, trial: Trial, kind: str) -> None:
    with unharmed(running, trial) as tried, connected(running.port) as connection:
        connection.sendall(PREFACE + begun())
        tried.append(500 * push(connection, DROPPED[kind] * 500, trial.times(1_000, 20_000)))


def test_a_client_that_sends_pings_and_never_reads(running: Service, trial: Trial) -> None:
    chunk = frame(PING, payload=bytes(8)) * 500
    with unharmed(running, trial) as tried, ExitStack() as stack:
        for _ in range(trial.times(5, 50)):
            connection = stack.enter_context(connected(running.port, seconds=0.5))
            connection.sendall(PREFACE)
            tried.append(push(connection, chunk, 10_000) * 500)
            assert tried[-1] < 500 * 10_000


def test_a_client_that_sends_requests_and_never_reads(running: Service, trial: Trial) -> None:
    """Responses fill the send buffers: the client opens streams and reads nothing."""
    order_id = Orders(running.database_url).add(payment_session_id="s" * 255)
    message = GetOrderRequest(order_id=order_id).to_binary()
    path = PATH.replace("UpdateOrderPayment", "GetOrder")
    window = frame(SETTINGS, payload=b"\0\4" + (2**31 - 1).to_bytes(4))
    window += frame(WINDOW_UPDATE, payload=(2**31 - 1 - 65535).to_bytes(4))
    with unharmed(running, trial) as tried, ExitStack() as stack:
        for _ in range(trial.times(3, 20)):
            connection = stack.enter_context(connected(running.port, seconds=0.5))
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            connection.sendall(PREFACE + window)
            try:
                for number in range(1, 4_000, 2):
                    call = head(number, path) + data(number, envelope(message), END_STREAM)
                    tried.append(push(connection, call, 1))
            except TimeoutError:
                pass


@pytest.mark.parametrize("version", [1, 2])
def test_a_header_section_without_an_end(running: Service, trial: Trial, version: int) -> None:
    chunk = b"x-%s: %s\r\n" % (b"n" * 20, b"v" * 900)
    start = b"POST / HTTP/1.1\r\n"
    if version == 2:
        literal = b"\x00\x01n\x7f\x00" + b"v" * 127
        chunk = frame(0x9, 0, 1, literal)  # CONTINUATION
        start = PREFACE + frame(HEADERS, 0, 1, literal)
    with unharmed(running, trial) as tried:
        for _ in range(trial.times(20, 500)):
            with connected(running.port) as connection:
                connection.sendall(start)
                tried.append(push(connection, chunk, 50_000))
                assert tried[-1] < 50_000  # far more than the buffers of two sockets


def test_a_header_list_over_the_limit(running: Service, trial: Trial) -> None:
    literal = b"\x00\x01n\x7f\x00" + b"v" * 127
    block = literal * 600
    frames = [block[at : at + 16_000] for at in range(0, len(block), 16_000)]
    request = frame(HEADERS, 0, 1, frames[0])
    request += b"".join(frame(0x9, 0, 1, part) for part in frames[1:-1])
    request += frame(0x9, 0x4, 1, frames[-1])
    with unharmed(running, trial) as tried:
        for _ in range(trial.times(20, 500)):
            with connected(running.port) as connection:
                connection.sendall(PREFACE + request)
                assert goaway_codes(rest(connection)) == [ENHANCE_YOUR_CALM]
                tried.append(1)


def test_rapid_reset(running: Service, trial: Trial) -> None:
    order_id = Orders(running.database_url).add()
    message = UpdateOrderPaymentRequest(order_id=order_id, payment_status="paid").to_binary()
    with unharmed(running, trial) as tried:
        for _ in range(trial.times(10, 200)):
            with connected(running.port) as connection:
                connection.sendall(PREFACE)
                for number in range(1, 2_000, 2):
                    call = head(number, PATH) + data(number, envelope(message), END_STREAM)
                    call += frame(RST_STREAM, 0, number, CANCEL.to_bytes(4))
                    if not push(connection, call, 1):
                        break
                    tried.append(1)
                connection.shutdown(socket.SHUT_WR)
                rest(connection)


# Bodies

TOO_LONG = {
    "content-length": (
        http1(PATH, f"content-length: {2**40}"),
        b"x" * 65536,
    ),
    "chunked": (http1(PATH, "transfer-encoding: chunked"), b"8000\r\n" + b"x" * 0x8000 + b"\r\n"),
    "json-http2": (
        PREFACE + head(1, PATH, content_type=b"application/json"),
        data(1, b"x" * 16384),
    ),
    "grpc": (
        PREFACE + begun() + data(1, envelope(b"", announced=2**32 - 1)),
        data(1, b"x" * 16384),
    ),
    "grpc-messages": (PREFACE + begun(), data(1, envelope(b"x" * 16379))),
}


@pytest.mark.parametrize("kind", TOO_LONG)
def test_bodies_over_the_limit(running: Service, trial: Trial, kind: str) -> None:
    """Many concurrent clients, which go on sending after the request has been rejected."""
    start, chunk = TOO_LONG[kind]
    with unharmed(running, trial) as tried, ExitStack() as stack:
        clients = [
            stack.enter_context(connected(running.port, seconds=0.2))
            for _ in range(trial.times(20, 100))
        ]
        for client in clients:
            client.sendall(start)
        for _ in range(trial.times(20, 200)):
            for client in clients:
                try:
                    tried.append(push(client, chunk, 1))
                except TimeoutError:  # the server does not read the connection
                    tried.append(1)


@pytest.mark.parametrize("caller", ["grpc", "connect"])
def test_gzip_bombs(running: Service, trial: Trial, caller: str) -> None:
    """The limit applies to decompressed bytes, and decompression stops there."""
    bomb = gzip.compress(bytes(50 * MEBIBYTE), 9)
    assert len(bomb) < LIMIT
    with unharmed(running, trial) as tried, ExitStack() as stack:
        for _ in range(trial.times(5, 200)):
            if caller == "connect":
                client = stack.enter_context(connected(running.port))
                length = f"content-length: {len(bomb)}"
                client.sendall(http1(PATH, "content-encoding: gzip", length, "connection: close"))
                client.sendall(bomb)
                answer = rest(client)
                assert b"resource_exhausted" in answer
                assert b"larger than LISTINGS_MAX_REQUEST_BYTES, 65536 bytes" in answer
            else:
                # A connection of its own: grpcio does not buffer so long a request for the
                # transparent retry that it needs when a shared connection is being replaced.
                channel = stack.enter_context(
                    grpc.insecure_channel(
                        running.base_url.removeprefix("http://"),
                        options=[("grpc.use_local_subchannel_pool", 1)],
                    )
                )
                method = channel.unary_unary(PATH)
                with pytest.raises(grpc.RpcError) as caught:
                    # Its content is zeros, which compress best.
                    method(bytes(3 * MEBIBYTE), compression=grpc.Compression.Gzip, timeout=20)
                assert grpc_failure(caught.value).code == "resource_exhausted"
            tried.append(1)


def test_pipelined_requests(running: Service, trial: Trial) -> None:
    """Over HTTP/1.1, pipelined requests are buffered in memory until the response is sent."""
    url = running.database_url
    order_id = Orders(url).add()
    body = b'{"orderId": %d, "paymentStatus": "paid"}' % order_id
    with unharmed(running, trial) as tried, ExitStack() as stack, psycopg.connect(url) as holder:
        holder.execute("SELECT FROM orders WHERE id = %s FOR UPDATE", (order_id,))
        for _ in range(trial.times(8, 8)):
            client = stack.enter_context(connected(running.port))
            request = http1(PATH, f"content-length: {len(body)}") + body
            client.sendall(request)
            tried.append(push(client, request * 500, 100))
            assert tried[-1] < 100


# Connections


def test_a_thousand_idle_connections(running: Service, trial: Trial) -> None:
    """Half of them speak HTTP/2. Each of those took 30 KiB, one that is silent 3."""
    with unharmed(running, trial) as tried, ExitStack() as stack:
        for number in range(1_000):
            connection = stack.enter_context(connected(running.port))
            if number % 2:
                connection.sendall(PREFACE)
                assert connection.recv(1)
            tried.append(1)


def test_without_free_file_descriptors_open_connections_are_served(
    tmp_path: Path, trial: Trial
) -> None:
    """New connections wait, without a busy loop or a flood of log lines, until one is free."""
    with databases.clone() as url, service.running(url, tmp_path / "log") as running:
        pid = running.process.pid
        files = psutil.Process(pid).num_fds()
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (files + 40, files + 40))
        order_id = Orders(url).add()
        with READERS["grpcio"](running.base_url) as call:
            call(GetOrderRequest(order_id=order_id))
            with ExitStack() as stack:
                for _ in range(trial.times(100, 1_000)):
                    connection = stack.enter_context(connected(running.port))
                    connection.sendall(PREFACE)
                for _ in range(20):
                    call(GetOrderRequest(order_id=order_id))
                began = psutil.Process(pid).cpu_times().user
                time.sleep(1)
                assert psutil.Process(pid).cpu_times().user - began < 0.5
        with READERS["connect-json-http1"](running.base_url) as call:
            assert call(GetOrderRequest(order_id=order_id)).order.id == order_id
        assert running.stop() == 0
        assert len(running.log.read_bytes()) < MEBIBYTE
    trial.report(trial.times(100, 1_000), 0, "")
