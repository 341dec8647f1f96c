"""The embedded PostgreSQL is killed below a running service, and comes back with all it had."""

import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from server.gen.listings.v1.orders_pb import GetOrderRequest, WatchOrderPaymentsRequest
from tests.support import callers, service, watchers
from tests.support.callers import PATH, path
from tests.support.embedded import open_directory, postmaster, processes, signal_all
from tests.support.waiting import eventually

AGAIN = "the embedded PostgreSQL had ended, and was started again"


@pytest.fixture
def data_dir() -> Iterator[Path]:
    """A directory for an embedded database that the unprivileged account can reach."""
    directory = open_directory()
    yield directory / "data"
    shutil.rmtree(directory)


@pytest.mark.parametrize(
    ("victims", "workers"),
    [
        pytest.param(lambda data_dir: [postmaster(data_dir)], "2", id="postmaster"),
        pytest.param(processes, "1", id="everything"),
    ],
)
def test_updates_survive_and_a_watch_goes_on(
    tmp_path: Path, data_dir: Path, victims: Callable[[Path], list[int]], workers: str
) -> None:
    settings = {"data_dir": str(data_dir), "workers": workers}
    with (
        service.running("", tmp_path / "log", **settings) as running,
        callers.json_client(running.base_url) as http,
        watchers.grpcio(running.base_url) as watch,
        watch(WatchOrderPaymentsRequest(order_ids=[1])) as stream,
    ):

        def pay(transaction: str) -> httpx.Response:
            event = {"orderId": 1, "paymentStatus": "paid", "paymentTransactionId": transaction}
            return http.post(PATH, json=event | {"paymentIdempotencyKey": f"evt {transaction}"})

        def seen() -> str | None:
            found = (each.event.after for each in stream if each.event and each.event.after)
            return next(found).payment_transaction_id

        assert not next(stream).event  # it watches
        assert pay("txn_1").is_success
        assert seen() == "txn_1"
        for transaction in ("txn_2", "txn_3"):
            signal_all(victims(data_dir), signal.SIGKILL)
            eventually(lambda: pay(transaction).is_success)  # noqa: B023
            assert seen() == transaction
        order = http.post(path(GetOrderRequest()), json={"orderId": 1}).json()["order"]
        assert order["paymentTransactionId"] == "txn_3"
        assert pay("txn_1").json()["replayed"]
        assert len(running.logged(event=AGAIN)) == 2
        assert running.stop() == 0
