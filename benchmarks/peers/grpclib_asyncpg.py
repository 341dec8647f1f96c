"""grpclib on uvloop with an asyncpg pool: gRPC in Python alone, on h2.

Run by the benchmark, with the directory of the code that ``prepare`` has generated. It is
``grpc_aio`` on another implementation of gRPC.
"""

import asyncio
import sys
from collections.abc import Callable, Coroutine
from importlib import import_module
from pathlib import Path
from typing import Any

import asyncpg
from grpclib import GRPCError, Status
from grpclib.const import Cardinality, Handler
from grpclib.server import Server, Stream

from benchmarks.peers import payments, serving
from benchmarks.peers.grpc_aio import response


def prepare(directory: Path) -> tuple[str, ...]:
    """Generate google.protobuf's code into ``directory``; return the command."""
    from proto.generate import own_protos, protoc

    directory.mkdir()
    protoc(f"--python_out={directory}", *own_protos(), "buf/validate/validate.proto")
    return sys.executable, "-m", "benchmarks.peers.grpclib_asyncpg", str(directory)


class Orders:
    """Implements ``UpdateOrderPayment`` of ``listings.v1.OrderService``, without a history."""

    def __init__(self, pool: "asyncpg.Pool[asyncpg.Record]", messages: Any) -> None:
        self._pool = pool
        self._messages = messages

    async def update_order_payment(self, stream: "Stream[Any, Any]") -> None:
        """Write the payment fields that are set in the request."""
        request = await stream.recv_message()
        if request is None:
            raise GRPCError(Status.UNIMPLEMENTED, "a request has one message")
        fields = payments.PAYMENT_FIELDS
        params = {name: getattr(request, name) for name in fields if request.HasField(name)}
        if problem := payments.problem(request.order_id, params):
            raise GRPCError(Status.INVALID_ARGUMENT, problem)
        sql = payments.update(tuple(params))
        try:
            row = await self._pool.fetchrow(sql, request.order_id, *params.values())
        except asyncpg.UniqueViolationError:
            raise GRPCError(Status.ALREADY_EXISTS, payments.KEY_TAKEN) from None
        if row is None:
            raise GRPCError(Status.NOT_FOUND, f"there is no order {request.order_id}")
        await stream.send_message(response(self._messages, row))

    def __mapping__(self) -> dict[str, Any]:
        """Return the methods by their paths, as grpclib's generated code does."""
        method: Callable[[Stream[Any, Any]], Coroutine[Any, Any, None]] = self.update_order_payment
        return {
            "/listings.v1.OrderService/UpdateOrderPayment": Handler(
                method,
                Cardinality.UNARY_UNARY,
                self._messages.UpdateOrderPaymentRequest,
                self._messages.UpdateOrderPaymentResponse,
            )
        }


async def _serve(port: int, started: serving.Started, stopped: asyncio.Event) -> None:
    async with serving.pool() as pool:
        server = Server([Orders(pool, import_module("listings.v1.orders_pb2"))])
        await server.start("127.0.0.1", port, reuse_port=True)
        started()
        await stopped.wait()
        server.close()
        await server.wait_closed()


if __name__ == "__main__":
    sys.path.insert(0, sys.argv[1])
    serving.run(_serve)
