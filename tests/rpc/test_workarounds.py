"""Canaries: faults of connectrpc, Starlette and protovalidate that the service works around.

Each test shows a fault of the library alone. When a test fails after an update of the library, its
workaround is no longer needed or has to change.
"""

import asyncio
import inspect
import json
import signal
import subprocess
import sys
from base64 import urlsafe_b64encode
from collections.abc import AsyncGenerator
from contextlib import suppress
from typing import Any

import protovalidate
import pytest
from connectrpc._interceptor_async import MetadataInterceptorsRun
from connectrpc._protocol_grpc import GRPCServerProtocol
from connectrpc._server_shared import EndpointUnary
from connectrpc._shared import decode_message
from connectrpc.codec import proto_json_codec
from connectrpc.interceptor import MetadataInterceptor
from connectrpc.server import ConnectASGIApplication
from starlette.applications import Starlette
from starlette.responses import Response
from starlette.routing import Mount
from starlette.types import Receive, Scope, Send

from server.gen.listings.v1.orders_connect import OrderService, OrderServiceASGIApplication
from server.gen.listings.v1.orders_pb import (
    FindOrderByPaymentRequest,
    FindOrderByPaymentResponse,
    GetOrderRequest,
    GetOrderResponse,
    ListStuckPaymentsRequest,
    UpdateOrderPaymentRequest,
    WatchOrderPaymentsRequest,
)
from tests.support import asgi
from tests.support.raw import envelope

GET = "/listings.v1.OrderService/GetOrder"
WATCH = "/listings.v1.OrderService/WatchOrderPayments"
FIND = "/listings.v1.OrderService/FindOrderByPayment"


class Orders(OrderService):
    """GetOrder fails; FindOrderByPayment records the requested reference."""

    reference = ""

    async def get_order(self, _request: GetOrderRequest, _ctx: object) -> GetOrderResponse:
        raise ValueError("host=db.example password=secret")

    async def find_order_by_payment(
        self, request: FindOrderByPaymentRequest, _ctx: object
    ) -> FindOrderByPaymentResponse:
        assert request.reference is not None
        self.reference = request.reference.value
        return FindOrderByPaymentResponse()


def ask(path: str, handler: Orders | None = None, **options: Any) -> asgi.Sent:
    """Send a request to the plain application of connectrpc."""
    application = OrderServiceASGIApplication(handler or Orders())

    async def quiet(scope: Scope, receive: Receive, send: Send) -> None:
        with suppress(ValueError):  # connectrpc raises the error after sending it
            await application(scope, receive, send)

    return asyncio.run(asgi.request(quiet, path, **options))


class TestFastPath:
    """The private parts of connectrpc that the fast path calls."""

    def test_names_and_parameters(self) -> None:
        def parameters(function: Any) -> list[str]:
            return list(inspect.signature(function).parameters)

        protocol = GRPCServerProtocol()
        assert parameters(MetadataInterceptorsRun) == ["interceptors", "ctx"]
        assert parameters(MetadataInterceptorsRun.end) == ["self", "error"]
        assert parameters(protocol.create_request_context) == [
            *("method", "http_method", "http_scheme", "headers", "client_address"),
        ]
        assert parameters(protocol.negotiate_stream_compression) == ["headers", "compressions"]
        assert parameters(decode_message) == ["codec", "data", "message_class"]

    def test_attributes(self) -> None:
        application = OrderServiceASGIApplication(Orders())
        service = application._service
        assert isinstance(service, Orders)
        endpoints = application._resolve_endpoints(service)
        assert isinstance(endpoints[GET], EndpointUnary)
        assert not isinstance(endpoints[WATCH], EndpointUnary)
        assert set(endpoints[GET].__dataclass_fields__) == {"method", "function"}
        assert set(application._compressions) == {"gzip", "identity"}
        assert list(application._metadata_interceptors) == []

    def test_there_is_no_public_way(self) -> None:
        public = {name for name in vars(ConnectASGIApplication) if not name.startswith("_")}
        assert public == {"path"}


class TestJSON:
    """The JSON codec of connectrpc, on protobuf-py."""

    def decoded(self, data: bytes) -> UpdateOrderPaymentRequest:
        decoded = proto_json_codec().decode(data, UpdateOrderPaymentRequest)
        assert isinstance(decoded, UpdateOrderPaymentRequest)
        return decoded

    def test_nested_brackets_overflow_the_stack(self) -> None:
        code = (
            "import resource\n"
            "resource.setrlimit(resource.RLIMIT_CORE, (0, 0))\n"
            "from connectrpc.codec import proto_json_codec\n"
            "from server.gen.listings.v1.orders_pb import UpdateOrderPaymentRequest as Request\n"
            "data = b'{\"orderId\":' + b'[' * 100_000 + b']' * 100_000 + b'}'\n"
            "proto_json_codec().decode(data, Request)\n"
        )
        ended = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
        assert ended.returncode == -signal.SIGSEGV

    def test_the_last_of_two_equal_names_counts(self) -> None:
        assert self.decoded(b'{"orderId": 1, "orderId": 2}').order_id == 2

    def test_the_last_of_two_members_of_a_oneof_counts(self) -> None:
        found = proto_json_codec().decode(
            b'{"paymentSessionId": "a", "paymentIntentId": "b"}', FindOrderByPaymentRequest
        )
        assert found.reference.field == "payment_intent_id"

    def test_the_text_of_an_error_quotes_the_value(self) -> None:
        with pytest.raises(ValueError, match="from JSON: 1h"):
            proto_json_codec().decode(b'{"olderThan": "1h"}', ListStuckPaymentsRequest)

    def test_unknown_names_are_dropped(self) -> None:
        assert self.decoded(b'{"orderId": 1, "paymentStatsu": "paid"}').order_id == 1

    def test_integers_are_read_as_python_reads_them(self) -> None:
        assert self.decoded(b'{"orderId": "1_0"}').order_id == 10


class TestErrors:
    """Errors of connectrpc without the interceptors and routes of the service."""

    def test_the_text_of_an_exception_is_sent(self) -> None:
        sent = ask(GET, body=b"{}")
        assert json.loads(sent.body)["code"] == "unknown"
        assert "secret" in json.loads(sent.body)["message"]

    @pytest.mark.parametrize(
        ("path", "options", "status"),
        [
            ("/listings.v1.OrderService/Nope", {}, 404),
            ("/listings.v1.OrderService/UpdateOrderPayment", {"method": "GET"}, 405),
            (GET, {"content_type": "text/plain"}, 415),
        ],
    )
    def test_refusals_have_no_message(
        self, path: str, options: dict[str, Any], status: int
    ) -> None:
        sent = ask(path, **options)
        assert (sent.status, sent.body) == (status, b"")
        assert b"content-type" not in sent.headers

    def test_a_header_that_is_not_text(self) -> None:
        sent = ask(GET, body=b"{}", headers=[(b"x-name", b"\xff")])
        assert "codec can't decode" in json.loads(sent.body)["message"]

    def test_a_query_that_is_not_text_is_changed(self) -> None:
        handler = Orders()
        query = b"connect=v1&encoding=json&message={%22paymentSessionId%22:%22%ff%22}"
        assert ask(FIND, handler, method="GET", query=query).status == 200
        assert handler.reference == "\ufffd"

    def test_base64_is_read_without_what_is_not_base64(self) -> None:
        handler = Orders()
        message = urlsafe_b64encode(b'{"paymentSessionId": "cs_1"}')
        query = b"connect=v1&encoding=json&base64=1&message=!" + message
        assert ask(FIND, handler, method="GET", query=query).status == 200
        assert handler.reference == "cs_1"

    def test_a_request_that_is_too_large_does_not_name_the_setting(self) -> None:
        sent = ask(GET, body=b" " * (4 * 1024 * 1024 + 1))
        assert json.loads(sent.body) == {
            "code": "resource_exhausted",
            "message": "message is larger than configured max 4194304",
        }

    def test_broken_protobuf_does_not_say_what_was_expected(self) -> None:
        sent = ask(GET, content_type="application/proto", body=b"\xff")
        assert json.loads(sent.body)["message"] == "unmarshal message: invalid varint"

    def test_a_compressed_message_without_a_header_is_internal(self) -> None:
        body = envelope(b"", flags=1)
        sent = ask(GET, content_type="application/grpc", body=body)
        assert sent.trailers[b"grpc-status"] == b"13"
        assert sent.trailers[b"grpc-message"].startswith(
            b"protocol%20error%3A%20sent%20compressed%20message"
        )

    def test_a_message_has_more_escapes_than_grpc_wants(self) -> None:
        """And there is no trailer by which a client would know when to call again."""
        sent = ask(GET, content_type="application/grpc", body=envelope(b""))
        assert sent.trailers == {
            b"grpc-status": b"2",
            b"grpc-message": b"host%3Ddb.example%20password%3Dsecret",
        }

    def test_grpc_without_trailers_fails(self) -> None:
        with pytest.raises(RuntimeError, match="trailers"):
            ask(GET, content_type="application/grpc", trailers=False)


class TestApplications:
    """Applications of connectrpc mounted in Starlette, and their interceptors."""

    def test_a_mounted_service_gets_no_lifespan(self) -> None:
        """So the server opens the resources of the service, instead of the application."""

        async def opened() -> AsyncGenerator[Orders]:
            yield Orders()

        async def call() -> None:
            application = OrderServiceASGIApplication(opened())
            app = Starlette(routes=[Mount(application.path, application)])
            async with app.router.lifespan_context(app):
                await asgi.request(app, GET, body=b"{}")

        with pytest.raises(RuntimeError, match="lifespan"):
            asyncio.run(call())

    def test_a_metadata_interceptor_needs_both_hooks(self) -> None:
        class Started:
            async def on_start(self, _ctx: object) -> None: ...

        assert not isinstance(Started(), MetadataInterceptor)

    def test_starlette_redirects_a_target_that_is_no_path(self) -> None:
        app = Starlette(routes=[Mount("/", Response(status_code=404))])
        with pytest.raises(UnicodeDecodeError):
            asyncio.run(asgi.request(app, "", method="GET", query=b"\xff"))


def test_each_element_of_a_list_that_is_too_long_is_checked() -> None:
    """Validation takes a second for the largest list that fits into a request."""
    request = WatchOrderPaymentsRequest(order_ids=[0] * 1_001)
    violations = protovalidate.collect_violations(request)
    assert violations[0].proto.rule_id == "repeated.max_items"
    assert len(violations) > 1_001


def test_a_oneof_that_is_required_does_not_name_its_members() -> None:
    (violation,) = protovalidate.collect_violations(FindOrderByPaymentRequest())
    assert violation.proto.message == "exactly one field is required in oneof"
