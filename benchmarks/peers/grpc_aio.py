"""grpc.aio on uvloop with an asyncpg pool: the usual choice for gRPC in Python.

Run by the benchmark, with the directory of the code that ``prepare`` has generated. It is tuned
as its users would: uvloop, one pool, statements that asyncpg keeps prepared, SQL text kept
for each set of fields. The rules are checked by hand, which is less work than the service does for
the ones in the proto.
"""

import asyncio
import sys
from datetime import datetime
from importlib import import_module
from pathlib import Path
from typing import Any

import asyncpg
import grpc

from benchmarks.peers import payments, serving


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
        fields = payments.PAYMENT_FIELDS
        params = {name: getattr(request, name) for name in fields if request.HasField(name)}
        if problem := payments.problem(request.order_id, params):
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, problem)
        sql = payments.update(tuple(params))
        try:
            row = await self._pool.fetchrow(sql, request.order_id, *params.values())
        except asyncpg.UniqueViolationError:
            await context.abort(grpc.StatusCode.ALREADY_EXISTS, payments.KEY_TAKEN)
        if row is None:
            await context.abort(grpc.StatusCode.NOT_FOUND, f"there is no order {request.order_id}")
        return response(self._messages, row)


def response(messages: Any, row: "asyncpg.Record") -> Any:
    """Return the response with the order in ``row``, as a message of google.protobuf."""
    order = messages.Order(**{k: v for k, v in row.items() if type(v) is not datetime})
    order.created_at.FromDatetime(row["created_at"])
    order.updated_at.FromDatetime(row["updated_at"])
    return messages.UpdateOrderPaymentResponse(success=True, order=order)


async def _serve(port: int, started: serving.Started, stopped: asyncio.Event) -> None:
    messages = import_module("listings.v1.orders_pb2")
    services = import_module("listings.v1.orders_pb2_grpc")
    async with serving.pool() as pool:
        server = grpc.aio.server(options=[("grpc.so_reuseport", 1)])
        # The generated class answers UNIMPLEMENTED to the methods that are not measured.
        servicer = type("Servicer", (OrderServicer, services.OrderServiceServicer), {})
        services.add_OrderServiceServicer_to_server(servicer(pool, messages), server)
        server.add_insecure_port(f"127.0.0.1:{port}")
        await server.start()
        started()
        await stopped.wait()
        await server.stop(grace=5)


if __name__ == "__main__":
    sys.path.insert(0, sys.argv[1])
    serving.run(_serve)
