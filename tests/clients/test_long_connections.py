"""Very many calls over one gRPC channel: none fails, and none is executed twice."""

import asyncio
from pathlib import Path

import grpc
import psycopg
import pytest

from server.gen.listings.v1.orders_pb import (
    UpdateOrderPaymentRequest,
    UpdateOrderPaymentResponse,
)
from tests.support import service
from tests.support.callers import PATH
from tests.support.orders import Orders

pytestmark = pytest.mark.anyio

# Every execution of an update inserts its transaction id here.
EXECUTIONS = """
    CREATE UNLOGGED TABLE executions (transaction_id TEXT);
    CREATE FUNCTION log_execution() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$
    BEGIN INSERT INTO executions VALUES (new.payment_transaction_id); RETURN NULL; END $$;
    CREATE TRIGGER log_execution AFTER UPDATE ON orders
    FOR EACH ROW EXECUTE FUNCTION log_execution()
"""


async def call_many(address: str, order_ids: list[int], calls: int, concurrency: int) -> list[str]:
    """Make that many calls over one channel, and return their errors."""
    numbers = iter(range(calls))
    errors: list[str] = []

    async def caller(method: "grpc.aio.UnaryUnaryMultiCallable[bytes, bytes]") -> None:
        for number in numbers:
            request = UpdateOrderPaymentRequest(
                order_id=order_ids[number % len(order_ids)], payment_transaction_id=f"txn_{number}"
            )
            try:
                answer = await method(request.to_binary(), timeout=60)
                order = UpdateOrderPaymentResponse.from_binary(answer).order
                assert order is not None
                assert order.payment_transaction_id == f"txn_{number}"
            except grpc.aio.AioRpcError as error:
                errors.append(f"{number}: {error.code().name} {error.details()}")

    async with grpc.aio.insecure_channel(address) as channel:
        method = channel.unary_unary(PATH)
        await asyncio.gather(*(caller(method) for _ in range(concurrency)))
    return errors


@pytest.mark.parametrize(
    ("calls", "concurrency"),
    [
        (4_500, 100),  # more than the HTTP/2 engine lets one connection have
        pytest.param(100_000, 8, marks=pytest.mark.soak),
        pytest.param(100_000, 100, marks=pytest.mark.soak),
    ],
)
async def test_calls_over_one_channel(
    database_url: str, tmp_path: Path, calls: int, concurrency: int
) -> None:
    orders = Orders(database_url)
    order_ids = [orders.add() for _ in range(200)]
    with psycopg.connect(database_url) as connection:
        connection.execute(EXECUTIONS)

    with service.running(database_url, tmp_path / "log") as running:
        address = running.base_url.removeprefix("http://")
        errors = await call_many(address, order_ids, calls, concurrency)

    assert errors == []
    with psycopg.connect(database_url) as connection:
        found = connection.execute(
            "SELECT count(*), count(DISTINCT transaction_id) FROM executions"
        ).fetchone()
    assert found == (calls, calls)
