"""The same Connect runtime on hypercorn, with a plain handler on asyncpg.

It is tuned as its users would: uvloop, one pool, statements that asyncpg keeps prepared,
SQL text kept for each set of fields, and no middleware.
"""

import asyncio
import sys
from pathlib import Path
from typing import Any

import asyncpg
from connectrpc.code import Code
from connectrpc.errors import ConnectError
from connectrpc.request import RequestContext
from hypercorn.asyncio import serve
from hypercorn.config import Config
from protobuf.wkt import Timestamp

from benchmarks.peers import payments, serving
from server.gen.listings.v1.orders_connect import OrderService, OrderServiceASGIApplication
from server.gen.listings.v1.orders_pb import (
    Order,
    UpdateOrderPaymentRequest,
    UpdateOrderPaymentResponse,
)

_TIMES = ("created_at", "updated_at")


def prepare(_directory: Path) -> tuple[str, ...]:
    """Return the command; there is nothing to prepare."""
    return sys.executable, "-m", "benchmarks.peers.connect_hypercorn"


class Orders(OrderService):
    """Implements ``UpdateOrderPayment``, without a history."""

    def __init__(self, pool: "asyncpg.Pool[asyncpg.Record]") -> None:
        self._pool = pool

    async def update_order_payment(
        self, request: UpdateOrderPaymentRequest, ctx: RequestContext[Any, Any]
    ) -> UpdateOrderPaymentResponse:
        """Write the payment fields that are set in ``request``."""
        fields = payments.PAYMENT_FIELDS
        has_field: Any = request.has_field  # its type accepts only literal names
        params = {name: getattr(request, name) for name in fields if has_field(name)}
        if problem := payments.problem(request.order_id, params):
            raise ConnectError(Code.INVALID_ARGUMENT, problem)
        sql = payments.update(tuple(params))
        try:
            row = await self._pool.fetchrow(sql, request.order_id, *params.values())
        except asyncpg.UniqueViolationError:
            raise ConnectError(Code.ALREADY_EXISTS, payments.KEY_TAKEN) from None
        if row is None:
            raise ConnectError(Code.NOT_FOUND, f"there is no order {request.order_id}")
        times = {name: Timestamp.from_datetime(row[name]) for name in _TIMES}
        return UpdateOrderPaymentResponse(success=True, order=Order(**dict(row) | times))


async def _serve(port: int, started: serving.Started, stopped: asyncio.Event) -> None:
    async with serving.pool() as pool:
        with serving.reusable_socket(port) as listener:
            config = Config()
            listener.listen(config.backlog)
            started()
            config.bind = [f"fd://{listener.detach()}"]  # hypercorn closes the descriptor
            # By default it closes a connection after some requests, with those in flight.
            config.keep_alive_max_requests = sys.maxsize
            config.accesslog = None
            config.loglevel = "WARNING"  # otherwise each worker logs its address
            app: Any = OrderServiceASGIApplication(Orders(pool))
            await serve(app, config, shutdown_trigger=stopped.wait)


if __name__ == "__main__":
    serving.run(_serve)
