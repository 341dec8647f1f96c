"""Format, level and sampling of the log, by setting."""

import json
import os
import pty
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import IO, NamedTuple

import httpx
import psycopg
import pytest

from server.gen.listings.v1.orders_pb import (
    GetOrderRequest,
    UpdateOrderPaymentRequest,
    WatchOrderPaymentsRequest,
)
from server.http.sockets import base_url as base_url_of
from server.http.sockets import listen
from tests.support import service, watchers
from tests.support.callers import CALLERS, Failure, json_client
from tests.support.command_line import listings
from tests.support.orders import Orders
from tests.support.waiting import eventually

DROPPED = re.compile(r"dropped (\d+) log entries")


@pytest.mark.parametrize("workers", ["1", "2"])
def test_every_line_is_json_off_a_terminal(database_url: str, tmp_path: Path, workers: str) -> None:
    with service.running(database_url, tmp_path / "log", workers=workers) as running:
        with json_client(running.base_url) as client:
            client.send(client.build_request("BREW", "/"))
        assert running.stop() == 0
        entries = running.logged()  # parses every line
    assert {"timestamp", "level", "event", "pid"} <= set.intersection(
        *(set(each) for each in entries)
    )
    for event in ("stopping", "stopped"):
        assert len({each["pid"] for each in running.logged(event=event)}) == int(workers)


class OnTerminal(NamedTuple):
    process: subprocess.Popen[bytes]
    base_url: str
    rest: Callable[[], list[str]]
    """Stop the service by Ctrl-C, and return the lines it printed since it served."""


@contextmanager
def on_terminal(
    url: str, settings: Mapping[str, str] | None = None, **variables: str
) -> Iterator[OnTerminal]:
    """Run a service whose output is a pseudo-terminal."""
    master, terminal = pty.openpty()
    shown = b""
    with subprocess.Popen(
        [sys.executable, "-m", "server", "serve"],
        env=service.environment_on(url, settings) | {"TERM": "xterm", "COLUMNS": "200"} | variables,
        stdout=terminal,
        stderr=terminal,
    ) as process:
        os.close(terminal)
        while b"Ctrl-C stops the service" not in shown:
            shown += os.read(master, 65536)
        text = shown.decode()
        assert "Pay for order 1:" in text
        found = re.search(r"http://127\.0\.0\.1:\d+", text)
        assert found

        def rest() -> list[str]:
            output = b""
            process.send_signal(signal.SIGINT)
            try:
                while chunk := os.read(master, 65536):
                    output += chunk
            except OSError:  # EIO: the other end is closed
                pass
            assert process.wait(20) == 0
            return output.decode().splitlines()

        try:
            yield OnTerminal(process, found[0], rest)
        finally:
            process.terminate()
            os.close(master)


def test_a_call_is_one_short_line_on_a_terminal(database_url: str) -> None:
    orders = Orders(database_url)
    order_id, refunded = orders.add(), orders.add(payment_status="refunded")
    paid = UpdateOrderPaymentRequest(
        order_id=order_id, payment_status="paid", payment_idempotency_key="evt_1"
    )
    with on_terminal(database_url, TZ="IST-05:30") as running:
        with CALLERS["grpcio"](running.base_url) as call:
            call(paid)
            call(paid)
            with pytest.raises(Failure):
                call(GetOrderRequest(order_id=404))
            with pytest.raises(Failure):
                call(UpdateOrderPaymentRequest(order_id=refunded, payment_status="pending"))
        httpx.post(f"{running.base_url}/nowhere/a%1b%5b2J", json={})
        lines = running.rest()
    local = datetime.now(UTC) + timedelta(hours=5, minutes=30)
    assert "\x1b[2J" not in "".join(lines)
    plain = [re.sub(r"\x1b\[\d+m", "", each) for each in lines]
    assert plain != lines  # it is coloured
    moments = [each[:8] for each in plain if each.startswith(local.strftime("%H:"))]
    assert moments or local.minute == 0
    expected = (
        f"UpdateOrderPayment grpc ok # ms order={order_id}",
        f"UpdateOrderPayment grpc ok # ms order={order_id} replayed",
        'GetOrder grpc not_found # ms order=404 error="',
        "payment event refused reason=PAYMENT_STATUS_REFUSED payment_status=pending"
        f" state=REFUNDED order_id={refunded}",
        f'UpdateOrderPayment grpc failed_precondition # ms order={refunded} status_refused error="',
        r'nowhere/a\x1b[2J connect unimplemented error="',
    )
    seen = [re.sub(r" \d+\.\d ms", " # ms", each[9:]) for each in plain]
    for begin, line in zip(expected, [each for each in seen if "stopp" not in each], strict=True):
        assert line == begin or (begin.endswith('"') and line.startswith(begin))
    assert [each for each in seen if "stopp" in each] == ["stopping", "stopped"]


def test_details_are_shown_at_level_debug_only(database_url: str) -> None:
    order_id = Orders(database_url).add()
    with on_terminal(database_url, {"log_level": "debug"}, NO_COLOR="1") as running:
        with json_client(running.base_url) as client:
            body, headers = {"orderId": order_id}, {"x-request-id": "req-1"}
            client.post("/listings.v1.OrderService/GetOrder", json=body, headers=headers)
            client.post("/grpc.health.v1.Health/Check", json={})
        pid = running.process.pid
        lines = running.rest()
    assert "\x1b" not in "".join(lines)
    (read,) = [each for each in lines if "GetOrder" in each]
    head, *details = re.split(r" (?=caller=|request_id=|pid=)", read[9:])
    method = re.escape("listings.v1.OrderService/GetOrder")
    assert re.fullmatch(rf"{method} connect ok \d+\.\d ms order={order_id}", head)
    assert {each.partition("=")[0] for each in details} == {"caller", "request_id", "pid"}
    assert {"request_id=req-1", f"pid={pid}"} <= set(details)
    (check,) = [each for each in lines if "Health/Check" in each]
    assert check[8:].startswith(" debug grpc.health.v1.Health/Check connect ok ")


class Piped(NamedTuple):
    process: subprocess.Popen[bytes]
    output: IO[bytes]
    base_url: str
    shown: bytes
    """The output of the service until it served."""

    def rest(self) -> bytes:
        """Stop the service, and return the rest of its output."""
        self.process.terminate()
        rest = self.output.read()
        assert self.process.wait(20) == 0
        return rest


@contextmanager
def piped(url: str, settings: Mapping[str, str], **variables: str) -> Iterator[Piped]:
    """Run a service whose output is a pipe that the test reads."""
    with subprocess.Popen(
        [sys.executable, "-m", "server", "serve"],
        env=service.environment_on(url, settings) | variables,
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        shown = b""
        while not (found := re.search(rb"http://127\.0\.0\.1:\d+", shown)):
            line = process.stdout.readline()
            assert line, shown
            shown += line
        try:
            yield Piped(process, process.stdout, found[0].decode(), shown)
        finally:
            process.terminate()


def test_console_format_by_setting(database_url: str) -> None:
    with piped(database_url, {"log_format": "console"}) as running:
        rest = running.rest()
    assert not running.shown.startswith(b"{")
    assert b"Ctrl-C stops the service" in rest
    assert b"stopping" in rest
    assert b"\x1b" not in rest  # no colours off a terminal


def test_a_stop_logs_no_warnings(database_url: str, tmp_path: Path) -> None:
    order_id = Orders(database_url).add()
    with service.running(database_url, tmp_path / "log") as running:
        with (
            watchers.grpcio(running.base_url) as watch,
            watch(WatchOrderPaymentsRequest(order_ids=[order_id])) as stream,
        ):
            next(stream)
            running.process.terminate()
            with pytest.raises(Failure):
                next(stream)
        assert running.process.wait(20) == 0
    assert {each["level"] for each in running.logged()} == {"info"}
    assert len(running.logged(event="rpc", code="unavailable")) == 1


def test_calls_go_on_when_the_pipe_of_the_log_is_closed(database_url: str) -> None:
    order_id = Orders(database_url).add()
    with piped(database_url, {}) as running:
        running.output.close()
        for caller in CALLERS.values():
            with caller(running.base_url) as call:
                request = UpdateOrderPaymentRequest(order_id=order_id, payment_status="paid")
                assert call(request).success
        assert httpx.post(f"{running.base_url}/nowhere", json={}).status_code == 404


def test_calls_go_on_while_the_pipe_of_the_log_is_full(database_url: str) -> None:
    order_id = Orders(database_url).add()
    with piped(database_url, {}) as running:
        with CALLERS["grpcio"](running.base_url) as call:
            for _ in range(1_000):  # some 300 bytes each; a pipe holds 64 KiB
                call(GetOrderRequest(order_id=order_id))
            written = [json.loads(running.output.readline()) for _ in range(100)]
            assert {each["event"] for each in written} == {"rpc"}
            call(GetOrderRequest(order_id=order_id))
        lines = [json.loads(each) for each in running.rest().splitlines()]
    (dropped,) = [found[1] for each in lines if (found := DROPPED.search(each["event"]))]
    written += [each for each in lines if each["event"] == "rpc"]
    assert len(written) + int(dropped) == 1_001


@pytest.mark.parametrize("encoding", ["ascii", "utf-8"])
def test_control_characters_are_escaped(database_url: str, encoding: str) -> None:
    settings = {"log_format": "console"}
    with piped(database_url, settings, PYTHONIOENCODING=encoding) as running:
        assert httpx.post(f"{running.base_url}/a%1b%5b2J%C5%82", json={}).status_code == 404
        shown = running.rest()
    assert b"\x1b" not in shown
    assert rb"a\x1b[2J" in shown


def test_level_warning(database_url: str, tmp_path: Path) -> None:
    order_id = Orders(database_url).add()
    (listener,) = listen("127.0.0.1", 0)
    base_url = base_url_of(listener, "http")
    listener.close()
    settings = {"log_level": "warning", "port": base_url.rpartition(":")[2]}
    log = tmp_path / "log"
    with (
        log.open("wb") as output,
        subprocess.Popen(
            [sys.executable, "-m", "server", "serve"],
            env=service.environment_on(database_url, settings),
            stdout=output,
        ) as process,
    ):
        try:
            eventually(lambda: is_ready(base_url))
            with CALLERS["grpcio"](base_url) as call:
                call(GetOrderRequest(order_id=order_id))
                with psycopg.connect(database_url) as connection:
                    connection.execute("ALTER TABLE orders RENAME TO elsewhere")
                with pytest.raises(Failure):
                    call(GetOrderRequest(order_id=order_id))
        finally:
            process.terminate()
        assert process.wait(20) == 0
    (line,) = log.read_text().splitlines()
    assert json.loads(line)["level"] == "error"


def is_ready(base_url: str) -> bool:
    try:
        return httpx.get(f"{base_url}/readyz").is_success
    except httpx.ConnectError:
        return False


def test_level_debug(database_url: str, tmp_path: Path) -> None:
    with service.running(database_url, tmp_path / "log", log_level="debug") as running:
        with json_client(running.base_url) as client:
            client.post("/grpc.health.v1.Health/Check", json={})
        eventually(lambda: running.logged(method="grpc.health.v1.Health/Check", level="debug"))
        assert running.stop() == 0


def test_sampling_of_successful_calls(database_url: str, tmp_path: Path) -> None:
    """Failures and replays are always logged."""
    orders = Orders(database_url)
    order_id, replayed = orders.add(), orders.add()
    with service.running(database_url, tmp_path / "log", log_sample="0.25") as running:
        with CALLERS["grpcio"](running.base_url) as call:
            for _ in range(200):
                call(GetOrderRequest(order_id=order_id))
            for number in range(20):
                with pytest.raises(Failure):
                    call(GetOrderRequest(order_id=10**9 + number))
            for _ in range(21):
                call(
                    UpdateOrderPaymentRequest(
                        order_id=replayed, payment_status="paid", payment_idempotency_key="evt"
                    )
                )
        assert running.stop() == 0
    # Less likely than once in ten million runs, if a quarter is logged.
    assert 20 < len(running.logged(order_id=order_id)) < 85
    assert len(running.logged(code="not_found")) == 20
    assert len(running.logged(outcome="replayed")) == 20


@pytest.mark.parametrize(
    ("name", "value"), [("log_level", "loud"), ("log_format", "xml"), ("log_sample", "2")]
)
def test_an_invalid_setting(database_url: str, name: str, value: str) -> None:
    done = listings("serve", url=database_url, settings={name: value})
    assert done.returncode == 1
    assert f"LISTINGS_{name.upper()}" in done.stderr
