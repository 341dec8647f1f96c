"""grpcio with the documented service config: it sends again what may be sent again, and no more."""

import json
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

import grpc
import psycopg
import pytest
from protobuf import Message
from psycopg import sql

from server.gen.listings.v1.orders_pb import (
    GetOrderRequest,
    ListOrdersRequest,
    UpdateOrderPaymentRequest,
    WatchOrderPaymentsRequest,
)
from tests.support import databases, pooler, service
from tests.support.callers import path, response_type
from tests.support.markdown import ROOT
from tests.support.orders import Orders
from tests.support.service import Service
from tests.support.waiting import eventually, lock_waits

CONFIG: Final = (ROOT / "proto/listings/v1/orders_grpc_service_config.json").read_text()
MOST: Final = json.loads(CONFIG)["methodConfig"][0]["retryPolicy"]["maxAttempts"]


class Client:
    """A channel with the service config."""

    def __init__(self, channel: grpc.Channel) -> None:
        self._channel = channel

    def begin(self, request: Message[Any], request_id: str) -> Any:
        """Begin a call of the method that takes ``request``."""
        method = self._channel.unary_unary(
            path(request),
            request_serializer=type(request).to_binary,
            response_deserializer=response_type(request).from_binary,
        )
        return method.future(request, timeout=30, metadata=[("x-request-id", request_id)])


@contextmanager
def client_of(running: Service) -> Iterator[Client]:
    options = [("grpc.service_config", CONFIG), ("grpc.use_local_subchannel_pool", 1)]
    address = running.base_url.removeprefix("http://")
    with grpc.insecure_channel(address, options=options) as channel:
        yield Client(channel)


def attempts(running: Service, request_id: str) -> list[str]:
    """Return the codes of the attempts at a call, by the log."""
    return [each["code"] for each in running.logged(event="rpc", request_id=request_id)]


def paid(order_id: int, key: str | None = None) -> UpdateOrderPaymentRequest:
    request = UpdateOrderPaymentRequest(order_id=order_id, payment_status="paid")
    if key is not None:
        request.payment_idempotency_key = key
    return request


def times_paid(orders: Orders, order_id: int) -> Any:
    return orders.value(
        "SELECT count(*) FROM order_payment_events"
        f" WHERE order_id = {order_id} AND payment_status_after = 'paid'"
    )


@contextmanager
def away(url: str) -> Iterator[None]:
    """Have PostgreSQL end all sessions of a database, and take no others within the context."""
    server, name = databases.server_and_name(url)
    allow = sql.SQL("ALTER DATABASE {} ALLOW_CONNECTIONS {}")
    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute(allow.format(sql.Identifier(name), sql.Literal(False)))
        # Those that wait for a lock go first: without its holder, their updates would be made.
        for some in ("wait_event_type = 'Lock'", "true"):
            connection.execute(
                "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity"
                f" WHERE datname = %s AND {some}".encode(),
                (name,),
            )
        try:
            yield
        finally:
            connection.execute(allow.format(sql.Identifier(name), sql.Literal(True)))


@pytest.mark.skipif(pooler.is_used(), reason="PgBouncer holds its clients until PostgreSQL is back")
def test_postgresql_is_away_for_a_moment(database_url: str, tmp_path: Path) -> None:
    """Updates wait for it in PostgreSQL when it goes, and others come while it is away.

    Where it is not known whether an update was made, only one with a key is sent again.
    """
    orders = Orders(database_url)
    keyed, unkeyed, late, late_unkeyed = (orders.add() for _ in range(4))
    with (
        service.running(database_url, tmp_path / "log") as running,
        client_of(running) as client,
    ):
        # The session that holds the locks ends, too.
        with suppress(psycopg.OperationalError), orders.locked(keyed, unkeyed):
            calls = {
                "keyed": client.begin(paid(keyed, "evt_1"), "keyed"),
                "unkeyed": client.begin(paid(unkeyed), "unkeyed"),
            }
            eventually(lambda: lock_waits(database_url) == 2)
            with away(database_url):
                calls["late"] = client.begin(paid(late, "evt_2"), "late")
                calls["late unkeyed"] = client.begin(paid(late_unkeyed), "late-unkeyed")
                eventually(lambda: len(attempts(running, "late")) == 2)  # a second later

        assert calls["keyed"].result().success
        assert calls["late"].result().success
        assert calls["late unkeyed"].result().success, "nothing was written"
        assert calls["unkeyed"].code() is grpc.StatusCode.UNAVAILABLE
        assert attempts(running, "unkeyed") == ["unavailable"]
        for request_id in ("keyed", "late", "late-unkeyed"):
            *failed, last = attempts(running, request_id)
            assert (set(failed), last) == ({"unavailable"}, "ok")
            assert 1 < len(failed) + 1 <= MOST
        assert [times_paid(orders, each) for each in (keyed, late, late_unkeyed)] == [1, 1, 1]
        assert times_paid(orders, unkeyed) == 0


def test_a_call_that_was_rejected_for_overload(tmp_path: Path) -> None:
    settings = {"pool_size": "1", "queue_size": "0", "statement_timeout": "60"}
    with (
        databases.clone() as url,
        service.running(url, tmp_path / "log", **settings) as running,
        client_of(running) as client,
    ):
        orders = Orders(url)
        first, second = orders.add(), orders.add()
        with orders.locked(first):
            waiting = client.begin(paid(first), "first")
            eventually(lambda: lock_waits(url) == 1)
            rejected = client.begin(paid(second), "second")
            eventually(lambda: running.metric("listings_queue_drops_total") == 1)
        assert waiting.result().success
        assert rejected.result().success
        assert running.metric("listings_queue_drops_total") == 1, "it came after the delay"


@pytest.mark.parametrize(
    ("request_", "code"),
    [
        (paid(1, "k" * 65_536), "resource_exhausted"),
        (paid(2**62), "not_found"),
        (GetOrderRequest(), "invalid_argument"),
        (ListOrdersRequest(order_number="n" * 65_536), "resource_exhausted"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_a_call_that_must_not_be_sent_again(
    running: Service, number: int, request_: Message[Any], code: str
) -> None:
    request_id = f"once-{number}"
    with client_of(running) as client:
        call = client.begin(request_, request_id)
        assert call.code().name.lower() == code
    assert attempts(running, request_id) == [code]


def test_the_service_config_names_the_service() -> None:
    (method,) = json.loads(CONFIG)["methodConfig"]
    (name,) = method["name"]
    assert path(WatchOrderPaymentsRequest()).startswith(f"/{name['service']}/")
