"""Without the private parts of connectrpc, or by its setting, the fast path is off.

Every call works.
"""

import asyncio
import logging
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import pytest

from server.gen.listings.v1.orders_connect import OrderService
from server.gen.listings.v1.orders_pb import GetOrderRequest, UpdateOrderPaymentRequest
from server.rpc.fast_path import create_fast_path
from server.rpc.load_shedding import LoadShedder
from tests.support import databases, service
from tests.support.callers import CALLERS, READERS
from tests.support.fast_path import both_ways, was_fast
from tests.support.orders import Orders
from tests.support.raw import envelope
from tests.support.service import Service

WARNING: Final = "gRPC fast path off: connectrpc is not as expected: "

# connectrpc's own modules have imported the name before it is deleted, as after a rename.
_SERVE: Final = """
import connectrpc.client, connectrpc.server, connectrpc._shared
del connectrpc._shared.decode_message
from server.cli import main
main()
"""


@contextmanager
def started(log: Path) -> Iterator[Service]:
    """Run a service in which the import of the fast path fails."""
    with databases.clone() as url, log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-c", _SERVE, "serve"],
            env=service.environment_on(url),
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        try:
            deadline = time.monotonic() + 30
            while not (found := re.search(r'"url": "(http://[^"]+)"', log.read_text())):
                assert process.poll() is None and time.monotonic() < deadline, log.read_text()
                time.sleep(0.02)
            yield Service(found[1], url, process, log)
        finally:
            process.kill()
            process.wait()


def test_a_failing_import_turns_the_fast_path_off(tmp_path: Path) -> None:
    with started(tmp_path / "log") as running:
        (entry,) = running.logged(logger="server.rpc.fast_path")
        assert entry["level"] == "warning"
        assert entry["event"].startswith(WARNING + "cannot import name 'decode_message'")
        orders = Orders(running.database_url)
        for caller in CALLERS.values():
            order_id = orders.add()
            with caller(running.base_url) as call:
                call(UpdateOrderPaymentRequest(order_id=order_id, payment_status="paid"))
            assert orders.row(order_id)["payment_status"] == "paid"
        for caller in READERS.values():
            with caller(running.base_url) as call:
                assert call(GetOrderRequest(order_id=order_id)).order.id == order_id
        assert running.stop() == 0
        assert running.logged(level="error") == []


def test_a_setting_turns_the_fast_path_off(tmp_path: Path) -> None:
    with service.on_own_database(tmp_path / "log", grpc_fast_path="off") as running:
        for method in OrderService.desc().methods:
            path = f"/{OrderService.desc().type_name}/{method.name}"
            for answer in asyncio.run(both_ways(running, path, [envelope(b"")])):
                assert not was_fast(answer)
        assert running.logged(logger="server.rpc.fast_path") == []


def test_missing_private_attributes_turn_the_fast_path_off(
    caplog: pytest.LogCaptureFixture,
) -> None:
    application: Any = object()
    with caplog.at_level(logging.WARNING):
        assert create_fast_path(application, LoadShedder(1, 1), 1) is None
    (record,) = caplog.records
    assert record.getMessage().startswith(WARNING)
    assert "_resolve_endpoints" in record.getMessage()
