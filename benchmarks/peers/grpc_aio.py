"""grpc.aio on uvloop with an asyncpg pool: what most would write in Python.

Run by the benchmark, with the directory of the code that ``prepare`` has generated. It has what its
users would do for speed: uvloop, one pool, statements that asyncpg keeps prepared, SQL text kept
for each set of fields. The rules are checked by hand, which is less work than the service does for
the ones in the proto. The pool is as asyncpg makes it, with a reset query at each release.
"""

import asyncio
import os
import signal
import sys
from collections.abc import Mapping
from datetime import datetime
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import asyncpg
import grpc
import uvloop

# Each with the most characters that it may have.
_PAYMENT_FIELDS = {
    "payment_provider": 50,
    "payment_session_id": 255,
    "payment_intent_id": 255,
    "payment_idempotency_key": 255,
    "payment_status": 50,
    "payment_transaction_id": 255,
}
_COLUMNS = (
    "id, order_number, buyer_id, storefront_id, status, payment_status, currency, subtotal_amount, "
    "shipping_amount, tax_amount, discount_amount, total_amount, created_at, updated_at, "
    "payment_provider, payment_session_id, payment_intent_id, payment_idempotency_key, "
    "payment_transaction_id"
)


def prepare(directory: Path) -> tuple[str, ...]:
    """Generate google.protobuf's and grpcio's code into ``directory``; return the command."""
    from proto.generate import own_protos, protoc

    directory.mkdir()
    outputs = (f"--python_out={directory}", f"--grpc_python_out={directory}")
    protoc(*outputs, *own_protos(), "buf/validate/validate.proto")
    return sys.executable, "-m", "benchmarks.peers.grpc_aio", str(directory)


class OrderServicer:
    """Implements ``UpdateOrderPayment`` of ``listings.v1.OrderService``, without a history."""

    def __init__(self, pool: "asyncpg.Pool[asyncpg.Record]", messages: Any) -> None:
        self._pool = pool
        self._messages = messages

    async def UpdateOrderPayment(  # noqa: N802 - the name that the generated code calls
        self, request: Any, context: "grpc.aio.ServicerContext[Any, Any]"
    ) -> Any:
        """Write the payment fields that are set in ``request``."""
        params = {
            name: getattr(request, name) for name in _PAYMENT_FIELDS if request.HasField(name)
        }
        if problem := _problem(request.order_id, params):
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, problem)
        sql = _update(tuple(params))
        try:
            row = await self._pool.fetchrow(sql, request.order_id, *params.values())
        except asyncpg.UniqueViolationError:
            await context.abort(
                grpc.StatusCode.ALREADY_EXISTS, "payment_idempotency_key belongs to another order"
            )
        if row is None:
            await context.abort(grpc.StatusCode.NOT_FOUND, f"there is no order {request.order_id}")
        order = self._messages.Order(**{k: v for k, v in row.items() if type(v) is not datetime})
        order.created_at.FromDatetime(row["created_at"])
        order.updated_at.FromDatetime(row["updated_at"])
        return self._messages.UpdateOrderPaymentResponse(success=True, order=order)


def _problem(order_id: int, params: Mapping[str, str]) -> str | None:
    if order_id <= 0:
        return "order_id must be greater than 0"
    if not params:
        return f"set at least one of {', '.join(_PAYMENT_FIELDS)}"
    for name, value in params.items():
        if not 1 <= len(value) <= _PAYMENT_FIELDS[name]:
            return f"{name} must have 1 to {_PAYMENT_FIELDS[name]} characters"
        if "\0" in value:
            return f"{name} must not contain U+0000"
    return None


@cache
def _update(columns: tuple[str, ...]) -> str:
    sets = "".join(f"{column} = ${number}, " for number, column in enumerate(columns, start=2))
    return (
        f"UPDATE orders SET {sets}"
        "updated_at = greatest(clock_timestamp(), updated_at + interval '1 microsecond') "
        f"WHERE id = $1 RETURNING {_COLUMNS}"
    )


async def _serve(generated: str) -> None:
    sys.path.insert(0, generated)
    messages = import_module("listings.v1.orders_pb2")
    services = import_module("listings.v1.orders_pb2_grpc")
    stopped = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopped.set)
    async with asyncpg.create_pool(
        os.environ["LISTINGS_DATABASE_URL"],
        min_size=1,
        max_size=int(os.environ["LISTINGS_POOL_SIZE"]),
        command_timeout=5,
    ) as pool:
        server = grpc.aio.server()
        # The generated class answers UNIMPLEMENTED to all that is not measured.
        servicer = type("Servicer", (OrderServicer, services.OrderServiceServicer), {})
        services.add_OrderServiceServicer_to_server(servicer(pool, messages), server)
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        print(f"Serving gRPC on http://127.0.0.1:{port}", flush=True)
        await stopped.wait()
        await server.stop(grace=5)


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve(sys.argv[1]))
