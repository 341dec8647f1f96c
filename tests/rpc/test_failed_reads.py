"""Errors of reads and updates on locked tables, over every protocol."""

from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from protobuf import Message, Oneof
from protobuf.wkt import Duration

from server.gen.listings.v1.orders_pb import (
    FindOrderByPaymentRequest,
    GetOrderRequest,
    ListOrderPaymentEventsRequest,
    ListOrderPaymentsRequest,
    ListOrdersRequest,
    ListRefusedPaymentEventsRequest,
    ListStuckPaymentsRequest,
    UpdateOrderPaymentRequest,
)
from tests.support import service
from tests.support.callers import CALLERS, READERS, Failure
from tests.support.service import Service

REFERENCE: Any = Oneof("payment_session_id", "cs_1")

READS: dict[str, Message[Any]] = {
    "get": GetOrderRequest(order_id=1),
    "find": FindOrderByPaymentRequest(reference=REFERENCE),
    "list": ListOrdersRequest(),
    "stuck": ListStuckPaymentsRequest(older_than=Duration(seconds=3_600)),
    "events": ListOrderPaymentEventsRequest(order_id=1),
    "payments": ListOrderPaymentsRequest(order_id=1),
    "refused": ListRefusedPaymentEventsRequest(),
}


@pytest.fixture(scope="module")
def locked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service whose tables are locked by another session."""
    log = tmp_path_factory.mktemp("reads") / "log"
    with (
        service.on_own_database(log, statement_timeout="0.3") as running,
        psycopg.connect(running.database_url) as holder,
    ):
        holder.execute("LOCK TABLE orders, order_payment_events, refused_payment_events")
        yield running
        holder.rollback()


@pytest.mark.parametrize("read", READS)
@pytest.mark.parametrize("caller", READERS)
def test_a_read_that_times_out(locked: Service, caller: str, read: str) -> None:
    with READERS[caller](locked.base_url) as call, pytest.raises(Failure) as caught:
        call(READS[read])
    assert caught.value.code == "deadline_exceeded"
    assert caught.value.message == "the database did not answer in time; try again"


@pytest.mark.parametrize("caller", CALLERS)
def test_an_update_that_times_out(locked: Service, caller: str) -> None:
    with CALLERS[caller](locked.base_url) as call, pytest.raises(Failure) as caught:
        call(UpdateOrderPaymentRequest(order_id=1, payment_status="paid"))
    assert caught.value.code == "deadline_exceeded"
    assert caught.value.message.endswith(
        "; an update may or may not have been made, and has no payment_idempotency_key; "
        "read the order before you send it again"
    )
