"""The access log when logging itself fails."""

import asyncio
import logging
from collections.abc import Iterator
from typing import Any

import pytest
import structlog
from connectrpc.method import IdempotencyLevel, MethodInfo, StreamType
from connectrpc.request import Headers, RequestContext

from server.gen.listings.v1.orders_connect import OrderService
from server.gen.listings.v1.orders_pb import GetOrderRequest, GetOrderResponse
from server.observability.metrics import Metrics
from server.rpc.callers import TrustedProxies
from server.rpc.interceptors.access_log import AccessLog


@pytest.fixture
def broken_log() -> Iterator[None]:
    """Make every write to the log fail."""

    def broken(*_: object) -> Any:
        raise RuntimeError("broken")

    structlog.configure(processors=[broken])
    yield
    structlog.reset_defaults()


@pytest.mark.usefixtures("broken_log")
def test_a_failing_log_handler_fails_no_call(caplog: pytest.LogCaptureFixture) -> None:
    access_log = AccessLog(
        Metrics(), 1.0, (OrderService.desc(),), quiet="grpc.", proxies=TrustedProxies()
    )
    context: RequestContext[Any, Any] = RequestContext(
        method=MethodInfo(
            name="GetOrder",
            service_name="listings.v1.OrderService",
            input=GetOrderRequest,
            output=GetOrderResponse,
            stream_type=StreamType.UNARY,
            idempotency_level=IdempotencyLevel.NO_SIDE_EFFECTS,
        ),
        http_method="POST",
        request_headers=Headers(),
    )

    async def call() -> None:
        scope: dict[str, Any] = {"type": "http", "path": "/nowhere", "headers": [], "client": None}
        access_log.log_unrouted(scope, "unimplemented", "there is no such method")
        await access_log.on_end(await access_log.on_start(context), context, None)

    with caplog.at_level(logging.ERROR):
        asyncio.run(call())
    assert [each.getMessage() for each in caplog.records] == 2 * ["an RPC could not be logged"]
