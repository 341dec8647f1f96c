"""The service over TLS: client certificates, and the replacement of certificates under load."""

import shutil
import signal
import socket
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Self

import httpx
import psycopg
import pytest

from server.gen.listings.v1.orders_pb import UpdateOrderPaymentRequest
from tests.support import service
from tests.support.callers import CALLERS, PATH, Call, Caller, Failure
from tests.support.certificates import HOST, Files, Issued, Trust, rsa_key
from tests.support.command_line import listings
from tests.support.orders import Orders
from tests.support.raw import http1
from tests.support.service import Service
from tests.support.waiting import eventually, lock_waits

SECONDS = 20


@pytest.fixture(scope="module")
def ca() -> Issued:
    return Issued.ca()


@pytest.fixture
def files(ca: Issued, tmp_path: Path) -> Files:
    return ca.issue(key=rsa_key()).save(tmp_path, "server")


@contextmanager
def running(
    database_url: str, files: Files, *, client_ca: Path | None = None, workers: int = 1
) -> Iterator[Service]:
    """Serve with a certificate. The service must exit with 0 and log no traceback."""
    log = files.cert.with_name("log")
    settings = {"tls_cert": str(files.cert), "tls_key": str(files.key), "workers": str(workers)}
    if client_ca:
        settings["tls_client_ca"] = str(client_ca)
    with service.running(database_url, log, **settings) as running:
        yield running
        assert running.stop() == 0
    assert "Traceback" not in log.read_text()


def serial(running: Service, trust: Trust) -> str:
    """Connect, and return the serial number of the server's certificate."""
    with (
        socket.create_connection((HOST, running.port), timeout=SECONDS) as plain,
        trust.context().wrap_socket(plain, server_hostname=HOST) as client,
    ):
        return str((client.getpeercert() or {})["serialNumber"])


def all_present(issued: Issued, running: Service, trust: Trust) -> bool:
    """Whether new connections get a certificate from every process."""
    return {serial(running, trust) for _ in range(12)} == {issued.serial}


class Updating(threading.Thread):
    """Updates an order in a loop over one connection."""

    def __init__(self, call: Call, order_id: int) -> None:
        super().__init__()
        self._call, self._order_id = call, order_id
        self.calls = 0
        self.failures: list[Failure] = []
        self._enough = threading.Event()

    def __enter__(self) -> Self:
        self.start()
        self.wait_for_calls()
        return self

    def __exit__(self, *_: object) -> None:
        self._enough.set()
        self.join(SECONDS)

    def wait_for_calls(self) -> None:
        """Wait until more calls have ended."""
        enough = self.calls + 5
        eventually(lambda: self.calls > enough)

    def run(self) -> None:
        while not self._enough.is_set():
            request = UpdateOrderPaymentRequest(order_id=self._order_id, payment_status="pending")
            try:
                self._call(request)
            except Failure as failure:
                self.failures.append(failure)
            self.calls += 1
            # Fewer calls than those after which a connection is replaced, however long it takes.
            self._enough.wait(0.02)


@contextmanager
def load(running: Service, trust: Trust, order_id: int) -> Iterator[None]:
    """Call over every protocol in the background. No call may fail."""
    with ExitStack() as stack:
        callers = []
        for connect in CALLERS.values():
            call = stack.enter_context(connect(running.base_url, trust))
            callers.append(stack.enter_context(Updating(call, order_id)))
        yield
        for caller in callers:
            caller.wait_for_calls()
    assert [failure for caller in callers for failure in caller.failures] == []


@pytest.mark.parametrize("workers", [1, 2])
def test_a_certificate_is_replaced_under_load(
    database_url: str, ca: Issued, files: Files, workers: int
) -> None:
    trust, order_id = Trust(ca), Orders(database_url).add()
    with running(database_url, files, workers=workers) as served:
        assert served.base_url.startswith("https://")
        with load(served, trust, order_id):
            # When the files change, here to a key of another type.
            first = ca.issue()
            first.save(files.cert.parent, "server")
            eventually(lambda: all_present(first, served, trust))

            # A certificate without its key is not used; the pair is, once it is complete.
            second = ca.issue()
            files.cert.write_bytes(second.cert_pem())
            eventually(lambda: len(logged_with(served, "is not the key of")) == workers)
            assert all_present(first, served, trust)
            files.key.write_bytes(second.key_pem())
            eventually(lambda: all_present(second, served, trust))
            assert len(logged_with(served, "is not the key of")) == workers

            # On SIGHUP, even if the files have not changed.
            before = len(logged_with(served, "TLS with the certificate for 127.0.0.1"))
            served.process.send_signal(signal.SIGHUP)
            eventually(
                lambda: (
                    len(logged_with(served, "TLS with the certificate for 127.0.0.1"))
                    == before + workers
                )
            )
            assert len(logged_with(served, "SIGHUP: reloading files: 1")) == workers


def logged_with(running: Service, words: str) -> list[str]:
    return [entry["event"] for entry in running.logged() if words in entry["event"]]


def test_files_replaced_through_symlinks(database_url: str, ca: Issued, tmp_path: Path) -> None:
    """As Kubernetes does: the files link through a directory link that is replaced atomically."""
    versions = []
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        versions.append(ca.issue())
        versions[-1].save(tmp_path / name, "tls")
    data = tmp_path / "..data"
    data.symlink_to("first")
    files = Files(tmp_path / "tls.pem", tmp_path / "tls.key")
    for file in files:
        file.symlink_to(f"..data/{file.name}")
    with running(database_url, files) as served:
        assert serial(served, Trust(ca)) == versions[0].serial
        (tmp_path / "new").symlink_to("second")
        (tmp_path / "new").rename(data)
        eventually(lambda: serial(served, Trust(ca)) == versions[1].serial)


def test_clients_need_a_certificate(
    database_url: str, ca: Issued, files: Files, tmp_path: Path
) -> None:
    ours, theirs = Issued.ca("ours"), Issued.ca("theirs")
    trusted = tmp_path / "clients.pem"
    trusted.write_bytes(ours.cert_pem())
    right = Trust(ca, ours.issue().save(tmp_path, "right"))
    wrong = Trust(ca, theirs.issue().save(tmp_path, "wrong"))
    order_id = Orders(database_url).add()
    with running(database_url, files, client_ca=trusted) as served:
        with load(served, right, order_id):
            for trust in (Trust(ca), wrong):
                for connect in CALLERS.values():
                    assert not is_accepted(connect, served, trust)
            # Open connections stay open when the client CA is replaced.
            trusted.write_bytes(theirs.cert_pem())
            eventually(lambda: is_accepted(CALLERS["connect-binary"], served, wrong))
        assert not is_accepted(CALLERS["connect-binary"], served, right)


def is_accepted(connect: Caller, running: Service, trust: Trust) -> bool:
    """Whether an update succeeds. The error of a rejected client differs among protocols."""
    orders = Orders(running.database_url)
    order_id = orders.add()
    request = UpdateOrderPaymentRequest(order_id=order_id, payment_status="paid")
    with suppress(Failure, httpx.TransportError), connect(running.base_url, trust) as call:
        call(request)
    return bool(orders.row(order_id)["payment_status"] == "paid")


@pytest.fixture
def directory() -> Iterator[Path]:
    """A directory for files, whose path fits into a log entry and needs quotes."""
    with tempfile.TemporaryDirectory(prefix="a b", dir="/tmp") as directory:
        yield Path(directory)


@pytest.mark.parametrize("names", [[HOST], ["*.example", "pay.example"]])
@pytest.mark.parametrize("issued", [False, True])
def test_the_example_in_the_log_works(
    database_url: str,
    directory: Path,
    monkeypatch: pytest.MonkeyPatch,
    names: list[str],
    issued: bool,
) -> None:
    """For certificates from a CA or self-signed, with the address or other names."""
    if not shutil.which("curl"):
        pytest.skip("no curl on this machine")
    Orders(database_url).add()
    ca = Issued.ca()
    (directory / "ca.pem").write_bytes(ca.cert_pem())
    monkeypatch.setenv("CURL_CA_BUNDLE", str(directory / "ca.pem"))
    files = (ca.issue(*names) if issued else Issued.self_signed(*names)).save(directory, "own")
    with running(database_url, files) as served:
        (line,) = served.logged(url=served.base_url)
        done = subprocess.run(
            line["example"], shell=True, capture_output=True, text=True, check=True
        )
        assert '"paymentStatus":"paid"' in done.stdout


@pytest.mark.parametrize("workers", [1, 2])
def test_shutdown_loses_no_call(database_url: str, ca: Issued, files: Files, workers: int) -> None:
    """On open connections, on new ones, and on those whose handshakes are not complete."""
    trust, order_id = Trust(ca), Orders(database_url).add()
    body = b'{"orderId": %d, "paymentStatus": "paid"}' % order_id
    request = http1(PATH, f"content-length: {len(body)}") + body
    answers: list[bytes] = []

    def connect_again_and_again() -> None:
        context = trust.context()
        while True:
            try:
                plain = socket.create_connection((HOST, served.port), timeout=SECONDS)
            except ConnectionRefusedError:
                return
            try:
                with context.wrap_socket(plain, server_hostname=HOST) as client:
                    client.sendall(request)
                    answers.append(client.recv(65_536))
            except OSError as error:
                answers.append(repr(error).encode())

    threads = [threading.Thread(target=connect_again_and_again) for _ in range(8)]
    with (
        running(database_url, files, workers=workers) as served,
        psycopg.connect(database_url) as holder,
        ThreadPoolExecutor() as executor,
        ExitStack() as stack,
    ):
        held = Orders(database_url).add()
        holder.execute("SELECT FROM orders WHERE id = %s FOR UPDATE", (held,))
        update = UpdateOrderPaymentRequest(order_id=held, payment_status="paid")
        calls = [
            executor.submit(stack.enter_context(connect(served.base_url, trust)), update)
            for name, connect in CALLERS.items()
            if name != "connect-json-http2"  # httpx fails its calls when it receives GOAWAY
        ]
        eventually(lambda: lock_waits(database_url) == len(calls))
        for thread in threads:
            thread.start()
        eventually(lambda: len(answers) > 100)
        served.process.terminate()
        eventually(lambda: len(served.logged(event="stopping")) == workers)
        holder.rollback()
        assert all(call.result(SECONDS).success for call in calls)
        assert served.process.wait(SECONDS) == 0
        for thread in threads:
            thread.join(SECONDS)
    assert [answer for answer in answers if b"200 OK" not in answer] == []


def test_unusable_files_prevent_the_start(database_url: str, tmp_path: Path) -> None:
    settings = {"tls_cert": str(tmp_path / "missing.pem"), "tls_key": "k", "workers": "2"}
    done = listings("serve", url=database_url, settings=settings)
    assert done.returncode == 1
    assert done.stderr == (
        f"Error: LISTINGS_TLS_CERT: {tmp_path}/missing.pem: No such file or directory; "
        "expected a PEM file with a certificate that is valid now\n"
    )
