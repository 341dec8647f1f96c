"""The command line, run as a process."""

import json
import os
import re
import select
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from persistence.roles import APPLICATION
from persistence.schema import migration_ids
from server.gen.listings.v1.orders_pb import ListOrderPaymentEventsRequest
from tests.support import databases, fork_server, service
from tests.support.callers import PATH, json_client, path
from tests.support.command_line import listings
from tests.support.embedded import open_directory, servers_below
from tests.support.orders import Orders
from tests.support.terminal import terminal
from tests.support.waiting import eventually, lock_waits

JUSTW = Path(__file__).parents[1] / "justw"
REREAD = "SIGHUP: reloading files: 0"


@pytest.fixture
def no_fork() -> Iterator[None]:
    """Start a new Python for each command, not a fork: at least one test of each command."""
    with fork_server.avoided():
        yield


def count(url: str) -> int:
    with psycopg.connect(url) as connection:
        row = connection.execute("SELECT count(*) FROM orders").fetchone()
    assert row is not None
    return int(row[0])


@pytest.mark.usefixtures("no_fork")
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], ["serve", "migrate", "seed", "LISTINGS_DATABASE_URL"]),
        (["serve"], ["--host", "--port", "--workers", "SIGTERM"]),
        (["doctor"], ["configuration", "database", "schema", "port"]),
        (["migrate"], ["up", "down", "status"]),
        (["migrate", "down"], ["VERSION", "--yes"]),
        (["seed"], ["--orders", "--yes"]),
    ],
)
def test_help(arguments: list[str], words: list[str]) -> None:
    done = listings(*arguments, "--help")
    assert done.returncode == 0
    assert all(word in done.stdout for word in words)


@pytest.mark.usefixtures("no_fork")
def test_serve_prints_a_curl_line_that_works(database_url: str, tmp_path: Path) -> None:
    if not shutil.which("curl"):
        pytest.skip("no curl on this machine")
    order_id = Orders(database_url).add()
    assert order_id == 1
    with service.running(database_url, tmp_path / "log") as running:
        (line,) = (each for each in running.log.read_text().splitlines() if "curl" in each)
        done = subprocess.run(
            json.loads(line)["example"], shell=True, capture_output=True, text=True, check=True
        )
        assert '"paymentStatus":"paid"' in done.stdout
        assert Orders(database_url).row(1)["payment_provider"] == "stripe"
        assert running.stop() == 0


@pytest.mark.usefixtures("no_fork")
def test_sigterm_lets_a_request_finish(database_url: str, tmp_path: Path) -> None:
    order_id = Orders(database_url).add()
    with (
        service.running(database_url, tmp_path / "log") as running,
        psycopg.connect(database_url) as holder,
    ):
        holder.execute("SELECT FROM orders FOR UPDATE")
        body = f'{{"orderId": {order_id}, "paymentStatus": "paid"}}'.encode()
        with socket.create_connection(("127.0.0.1", running.port)) as client:
            head = (
                f"POST {PATH} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
                f"Content-Length: {len(body)}\r\n\r\n"
            )
            client.sendall(head.encode() + body)
            eventually(lambda: lock_waits(database_url))
            running.process.terminate()
            holder.rollback()
            assert b"200 OK" in client.recv(65536)
        assert running.process.wait(20) == 0
    assert Orders(database_url).row(order_id)["payment_status"] == "paid"


@pytest.fixture
def data_dir() -> Iterator[Path]:
    """A directory for an embedded database that the unprivileged account can reach."""
    directory = open_directory()
    yield directory / "data"
    shutil.rmtree(directory)


def test_the_embedded_database_survives_restarts(tmp_path: Path, data_dir: Path) -> None:
    settings = {"data_dir": str(data_dir)}
    # Stopped by SIGTERM, then by closing the terminal.
    for expected in ("pending", "paid"):
        with (
            terminal() as (name, close),
            service.running("", tmp_path / "log", terminal=name, **settings) as running,
            json_client(running.base_url) as http,
        ):
            response = http.post(PATH, content='{"orderId": 1, "paymentProvider": "stripe"}')
            assert response.json()["order"]["paymentStatus"] == expected
            http.post(PATH, content='{"orderId": 1, "paymentStatus": "paid"}')
            history = http.post(path(ListOrderPaymentEventsRequest()), content='{"orderId": 1}')
            assert history.json()["events"][-1]["databaseRole"] == APPLICATION
            assert http.post(
                PATH, content='{"orderId": 100, "paymentTransactionId": "x"}'
            ).is_success
            assert http.post(PATH, content='{"orderId": 101, "paymentTransactionId": "x"}').is_error
            if expected == "pending":
                running.process.terminate()
            else:
                close()
            assert running.process.wait(20) == 0
        assert not list(servers_below(data_dir))


@pytest.mark.parametrize("workers", ["1", "2"])
def test_sighup_ends_the_service_only_with_its_terminal(
    database_url: str, tmp_path: Path, workers: str
) -> None:
    log = tmp_path / "log"
    with (
        terminal() as (name, close),
        service.running(database_url, log, terminal=name, workers=workers) as running,
    ):
        processes = running.serving_processes()
        for number in (1, 2):
            running.process.send_signal(signal.SIGHUP)
            expected = number * int(workers)
            eventually(lambda expected=expected: len(running.logged(event=REREAD)) == expected)  # type: ignore[misc]
        assert running.serving_processes() == processes
        close()
        assert running.process.wait(20) == 0
        assert len(running.logged(event="stopping")) == int(workers)


@pytest.mark.usefixtures("no_fork")
def test_sighup_without_a_terminal_does_not_stop_the_service(
    database_url: str, tmp_path: Path
) -> None:
    with service.running(database_url, tmp_path / "log") as running:
        running.process.send_signal(signal.SIGHUP)
        eventually(lambda: running.logged(event=REREAD))
        assert running.stop() == 0


def test_serve_without_migrations_is_an_error(empty_database_url: str) -> None:
    done = listings("serve", url=empty_database_url)
    assert done.returncode == 1
    assert "listings migrate up" in done.stderr
    assert "Traceback" not in done.stderr + done.stdout


def test_an_unreachable_database_is_an_error() -> None:
    for command in (["serve"], ["migrate", "up"], ["seed", "--orders", "1"]):
        done = listings(*command, url="postgresql://a:hunter2@127.0.0.1:1/b")
        assert done.returncode == 1
        assert re.match(r"Error: .+", done.stderr)
        assert "Traceback" not in done.stderr + done.stdout
        assert "hunter2" not in done.stderr + done.stdout


def test_an_invalid_database_url_is_an_error() -> None:
    for command in (["serve"], ["migrate", "up"], ["seed", "--orders", "1"]):
        done = listings(*command, url="postgresql://u:hun%zzter2@h/db")
        assert done.returncode == 1
        assert re.match(r"Error: .*expected postgresql://", done.stderr)
        assert "Traceback" not in done.stderr + done.stdout
        assert "ter2" not in done.stderr + done.stdout


def test_a_port_in_use_is_an_error(database_url: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = listings("serve", "--port", str(port), url=database_url)
    assert done.returncode == 1
    assert f"cannot listen on 127.0.0.1 port {port}: Address already in use" in done.stderr


def test_an_unusable_address_is_refused_before_the_database_is_created(data_dir: Path) -> None:
    settings = {"data_dir": str(data_dir)}
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        for wrong, words in (
            ({"host": "0.0.0.0"}, "LISTINGS_INSECURE=1"),
            ({"host": "host.invalid"}, "cannot listen on host.invalid"),
            ({"port": port}, "Address already in use"),
            ({"port": port, "workers": "2"}, "Address already in use"),
        ):
            done = listings("serve", settings=settings | wrong)
            assert done.returncode == 1
            assert words in done.stderr
            assert "Traceback" not in done.stderr
            assert not data_dir.exists()


def test_ctrl_c_ends_justw_without_an_error(database_url: str) -> None:
    ours, theirs = os.openpty()
    # The first terminal that a session leader opens becomes its controlling terminal.
    command = ["sh", "-c", 'exec "$@" <"$0" >"$0" 2>&1', os.ttyname(theirs), str(JUSTW), "serve"]
    environment = service.environment_on(database_url) | {"TERM": "xterm"}
    with subprocess.Popen(command, env=environment, start_new_session=True) as process:
        shown = b""
        while b"Ctrl-C stops the service" not in shown:
            assert select.select([ours], [], [], 30)[0], shown
            shown += os.read(ours, 65_536)
        os.close(theirs)
        os.write(ours, b"\x03")
        try:
            while chunk := os.read(ours, 65_536):
                shown += chunk
        except OSError:  # EIO: the process has closed the terminal
            pass
        assert process.wait(20) == 0, shown
    os.close(ours)
    assert b"error" not in shown.lower()
    assert b"Aborted" not in shown


def test_a_wrong_setting_stops_the_start(database_url: str) -> None:
    done = listings("serve", url=database_url, settings={"port": "http"})
    assert done.returncode == 1
    assert "LISTINGS_PORT" in done.stderr
    assert "integer" in done.stderr


def test_migrate(empty_database_url: str) -> None:
    url, ids = empty_database_url, migration_ids()
    assert listings("migrate", "status", url=url).stdout.count("pending") == len(ids)
    applied = listings("migrate", "up", url=url).stdout.splitlines()
    assert applied == [f"Applied {each}" for each in ids]
    assert listings("migrate", "up", url=url).stdout == "Nothing to do.\n"
    assert listings("migrate", "status", url=url).stdout.count("applied 2") == len(ids)

    refused = listings("migrate", "down", "20251220000001", url=url, answer="n\n")
    assert refused.returncode == 1
    assert listings("migrate", "status", url=url).stdout.count("applied 2") == len(ids)

    done = listings("migrate", "down", "20251220000001", "--yes", url=url)
    assert done.stdout.splitlines() == [f"Rolled back {each}" for each in reversed(ids[1:])]
    unknown = listings("migrate", "down", "7", "--yes", url=url)
    assert (unknown.returncode, "there is no migration 7" in unknown.stderr) == (1, True)


def test_an_unknown_version_is_refused_without_a_prompt(data_dir: Path) -> None:
    done = listings(
        "migrate", "down", "nonsense", answer="y\n", settings={"data_dir": str(data_dir)}
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert "there is no migration nonsense" in done.stderr
    assert not data_dir.exists()


def test_migrate_and_seed_use_migration_database_url(
    empty_database_url: str, tmp_path: Path
) -> None:
    url = databases.with_role(empty_database_url, APPLICATION)
    for arguments in (("migrate", "up"), ("seed", "--orders", "3")):
        done = listings(*arguments, url=url)
        assert done.returncode == 1
        assert "Traceback" not in done.stderr
        done = listings(
            *arguments, url=url, settings={"migration_database_url": empty_database_url}
        )
        assert done.returncode == 0, done.stderr
    owned = {"migration_database_url": "postgresql://nobody@127.0.0.1:1/nothing"}
    assert listings("migrate", "status", url=url, settings=owned).returncode == 1
    with service.running(empty_database_url, tmp_path / "log", **owned) as running:
        with json_client(running.base_url) as http:
            assert http.post(PATH, content='{"orderId": 1, "paymentStatus": "x"}').is_success
        assert running.stop() == 0


@pytest.mark.usefixtures("no_fork")
def test_serve_without_privileges_on_its_tables_is_an_error(database_url: str) -> None:
    """As in a database without the migration that grants them."""
    listings("migrate", "down", "20261123000002", "--yes", url=database_url)
    done = listings("serve", url=databases.with_role(database_url, APPLICATION))
    assert done.returncode == 1
    assert "listings_app lacks SELECT ON orders, UPDATE (" in done.stderr
    assert "listings migrate up" in done.stderr
    assert "Traceback" not in done.stderr + done.stdout


def test_seed(database_url: str) -> None:
    done = listings("seed", "--orders", "25000", url=database_url)
    assert (done.returncode, count(database_url)) == (0, 25_000), done.stderr
    assert Orders(database_url).row(1)["payment_status"] == "pending"

    refused = listings("seed", "--orders", "10", url=database_url, answer="n\n")
    assert (refused.returncode, count(database_url)) == (1, 25_000)

    again = listings("seed", "--orders", "10", "--yes", url=database_url)
    assert (again.returncode, count(database_url)) == (0, 25_010), again.stderr
    assert Orders(database_url).add() == 25_011

    with psycopg.connect(database_url) as connection:
        connection.execute("DELETE FROM orders WHERE id > 25000")
    listings("seed", "--orders", "10", "--yes", url=database_url)
    assert Orders(database_url).add() == 25_022, "the number of a deleted order was given again"


@pytest.mark.usefixtures("no_fork")
def test_seed_without_migrations_is_an_error(empty_database_url: str) -> None:
    done = listings("seed", "--orders", "1", "--yes", url=empty_database_url)
    assert (done.returncode, "listings migrate up" in done.stderr) == (1, True)
