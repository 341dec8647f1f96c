"""UnreadInterceptor replaces two errors of connectrpc, and no error of a method."""

import asyncio
from typing import Any
from urllib.parse import unquote

import pytest
from connectrpc.code import Code
from connectrpc.errors import ConnectError

from server.gen.google.rpc.error_details_pb import ErrorInfo
from server.gen.listings.v1.orders_connect import OrderService, OrderServiceASGIApplication
from server.gen.listings.v1.orders_pb import GetOrderRequest, GetOrderResponse
from server.rpc.error_encoding import GRPC_STATUS
from server.rpc.interceptors.unread import UnreadInterceptor
from tests.support import asgi
from tests.support.raw import envelope

GET = "/listings.v1.OrderService/GetOrder"
LIMIT = 1000


class Failing(OrderService):
    def __init__(self, error: Exception) -> None:
        self.error = error

    async def get_order(self, _request: GetOrderRequest, _ctx: object) -> GetOrderResponse:
        raise self.error


def answered(error: Exception, body: bytes) -> tuple[int, str]:
    """Return the status and the message of a call over gRPC to a method that raises ``error``."""
    application = OrderServiceASGIApplication(
        Failing(error), interceptors=[UnreadInterceptor(LIMIT)], read_max_bytes=LIMIT
    )
    sent = asyncio.run(asgi.request(application, GET, content_type="application/grpc", body=body))
    return int(sent.trailers[b"grpc-status"]), unquote(sent.trailers[b"grpc-message"].decode())


@pytest.mark.parametrize("code", Code)
@pytest.mark.parametrize("details", [[], [ErrorInfo(reason="R", domain="d")]])
def test_errors_of_a_method_stay(code: Code, details: list[Any]) -> None:
    error = ConnectError(code, "its own words", details)
    assert answered(error, envelope(b"")) == (GRPC_STATUS[code], "its own words")


@pytest.mark.parametrize(
    ("body", "code", "words"),
    [
        (envelope(b"", flags=1), Code.INTERNAL, "marked as compressed"),
        (envelope(bytes(LIMIT + 1)), Code.RESOURCE_EXHAUSTED, "LISTINGS_MAX_REQUEST_BYTES"),
    ],
)
def test_requests_that_no_method_sees(body: bytes, code: Code, words: str) -> None:
    status, message = answered(AssertionError("it is not called"), body)
    assert status == GRPC_STATUS[code]
    assert words in message
