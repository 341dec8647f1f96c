"""Malformed bodies of requests: each gets a clear error, and the process does not crash."""

import asyncio
import gzip
import json
import struct
import time
from typing import Any

import grpc
import httpx
import pytest
from protobuf import DescMethod

from server.gen.google.rpc.error_details_pb import BadRequest
from server.gen.grpc_health.v1.health_pb import HealthCheckRequest
from server.gen.listings.v1.orders_pb import UpdateOrderPaymentRequest, WatchOrderPaymentsRequest
from tests.support import exchange
from tests.support.bare_grpc import grpc_failure
from tests.support.callers import PATH, Failure, json_failure, path
from tests.support.hostile_requests import METHODS, name, protocols
from tests.support.orders import Orders
from tests.support.raw import envelope
from tests.support.service import Service
from tests.support.waiting import eventually

LIMIT = 64 * 1024


def grpc_web(http: httpx.Client, payload: bytes, *, flags: int = 0) -> tuple[str, str]:
    body = struct.pack(">BI", flags, len(payload)) + payload
    headers = {"content-type": "application/grpc-web+proto", "grpc-encoding": "gzip"}
    response = http.post(PATH, content=body, headers=headers)
    assert response.status_code == 200
    flag, length = struct.unpack(">BI", response.content[:5])
    assert flag == 0x80
    trailers = dict(
        line.split(": ", 1) for line in response.content[5 : 5 + length].decode().splitlines()
    )
    return trailers["grpc-status"], trailers["grpc-message"]


def post(http: httpx.Client, body: str | bytes) -> Failure:
    response = http.post(PATH, content=body)
    assert response.status_code >= 400
    assert response.headers["content-type"] == "application/json"
    return json_failure(response)


@pytest.mark.parametrize(
    "body", [b"\xff", b"\x08", b"\x12\x05ab", b"\x08\x01\x32\x03\xed\xa0\x80", b"\x0f" * 100]
)
class TestMalformedBodies:
    def test_grpc(self, channel: grpc.Channel, body: bytes) -> None:
        code, message = grpc_failure(channel, body)
        assert code == "INVALID_ARGUMENT"
        assert message

    def test_grpc_web(self, http: httpx.Client, body: bytes) -> None:
        status, message = grpc_web(http, body)
        assert status == "3"
        assert message

    def test_connect(self, http: httpx.Client, body: bytes) -> None:
        response = http.post(PATH, content=body, headers={"content-type": "application/proto"})
        assert response.status_code == 400
        assert json_failure(response).code == "invalid_argument"

    def test_json(self, http: httpx.Client, body: bytes) -> None:
        assert post(http, body).code == "invalid_argument"


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ('{"orderId": "1_0", "paymentStatus": "paid"}', "order_id"),
        ('{"orderId": "\u0663", "paymentStatus": "paid"}', "order_id"),
        ('{"orderId": "+1", "paymentStatus": "paid"}', "order_id"),
        ('{"orderId": " 1", "paymentStatus": "paid"}', "order_id"),
        ('{"orderId": "", "paymentStatus": "paid"}', "order_id"),
        ('{"orderId": true, "paymentStatus": "paid"}', "order_id"),
        ('{"orderId": [1], "paymentStatus": "paid"}', "order_id"),
        ('{"orderId": 9007199254740993.0, "paymentStatus": "paid"}', "order_id"),
        ('{"orderId": 1e400, "paymentStatus": "paid"}', "order_id"),
        ('{"orderId": 1.9999999999999999999, "paymentStatus": "paid"}', "order_id"),
        ('{"orderId": "1.9999999999999999999", "paymentStatus": "paid"}', "order_id"),
        ('{"orderId": 1e99999999999999999999, "paymentStatus": "paid"}', "order_id"),
        ('{"orderId": 1, "order_id": 2, "paymentStatus": "paid"}', "order_id"),
        ('{"orderId": 1, "paymentStatus": 5}', "payment_status"),
        ('{"orderId": 1, "paymentStatus": {"a": 1}}', "payment_status"),
        ('{"orderId": 1, "paymentStatsu": "paid"}', "paymentStatsu"),
        ('{"orderId": 1, "orderId": 2, "paymentStatus": "paid"}', "order_id"),
        ('{"orderId": 9223372036854775808, "paymentStatus": "paid"}', "order_id"),
        ('{"orderId": 1.5, "paymentStatus": "paid"}', "order_id"),
        ('{"orderId": 1, "paymentStatus": "\\ud800"}', "payment_status"),
        ('{"orderId": 1, "\\ud800": 1}', r"\ud800"),
        ('{"orderId": 1, "paymentStatus": NaN}', "payment_status"),
        ('{"orderId": 1, "paymentStatus": "paid",}', None),
        ("{'orderId': 1}", None),
        ("[]", None),
        ("null", None),
        ("", None),
        ("{", None),
        ("\ufeff{}", None),
    ],
)
def test_invalid_json_requests(http: httpx.Client, body: str, field: str | None) -> None:
    failure = post(http, body)

    assert failure.code == "invalid_argument"
    assert failure.message.startswith("cannot read the request as JSON")
    assert "<class" not in failure.message
    if field:
        (detail,) = failure.details
        assert isinstance(detail, BadRequest)
        assert [each.field for each in detail.field_violations] == [field]
        spelled = {"order_id": "orderId", "payment_status": "paymentStatus"}.get(field, field)
        assert any(f": {each}: " in failure.message for each in (spelled, field))


def test_json_in_another_encoding(http: httpx.Client) -> None:
    assert post(http, '{"orderId": 1}'.encode("utf-16")).code == "invalid_argument"


@pytest.mark.parametrize("order_id", ["{id}", '"{id}"', "{id}.0", "{id}e0", '"{id}e0"'])
@pytest.mark.parametrize("names", ["orderId paymentStatus", "order_id payment_status"])
def test_json_spellings_of_a_request(
    http: httpx.Client, orders: Orders, order_id: str, names: str
) -> None:
    order, (first, second) = orders.add(), names.split()
    body = (
        f'{{"{first}": {order_id.format(id=order)}, "{second}": "paid", "paymentProvider": null}}'
    )

    response = http.post(PATH, content=body)

    assert response.status_code == 200
    assert response.json()["order"]["id"] == str(order)
    row = orders.row(order)
    assert (row["payment_status"], row["payment_provider"]) == ("paid", None)


@pytest.mark.parametrize(
    "body",
    [
        "[" * 20_000,
        '{"a":' * 10_000,
        '{"orderId":' + "[" * 14_000 + "]" * 14_000 + "}",
        '{"paymentStatus":"x","' + "[" * 200 + '":' + "[" * 101 + "]" * 101 + "}",
    ],
)
def test_nesting_is_checked_before_decoding(http: httpx.Client, body: str) -> None:
    failure = post(http, body)

    assert failure.code == "invalid_argument"
    assert "nested more than 100 levels" in failure.message


def test_brackets_within_a_string_do_not_count(http: httpx.Client, orders: Orders) -> None:
    order_id = orders.add()
    value = '[{"\\' * 60
    body = json.dumps({"orderId": order_id, "paymentIntentId": value})

    assert http.post(PATH, content=body).status_code == 200
    assert orders.row(order_id)["payment_intent_id"] == value


@pytest.mark.parametrize(
    "body", ['"' + '\\"' * 32_000, "[" * 101 + '"' + "\\" * 32_000, '"' * 65_000]
)
def test_a_hostile_body_is_scanned_in_linear_time(http: httpx.Client, body: str) -> None:
    started = time.perf_counter()
    assert post(http, body).code == "invalid_argument"
    assert time.perf_counter() - started < 1  # a scan that is not linear takes many seconds


class TestErrorsFitIntoTrailers:
    """grpcio accepts some KiB of trailers; it reports longer ones as another error."""

    def test_many_broken_rules(self, channel: grpc.Channel) -> None:
        ids = WatchOrderPaymentsRequest(order_ids=[0] * 1_000)
        code, message = grpc_failure(channel, ids.to_binary(), path(ids))
        assert (code, message[:35]) == ("INVALID_ARGUMENT", "order_ids must be greater than 0; o")

    def test_too_many_elements(self, channel: grpc.Channel) -> None:
        ids = WatchOrderPaymentsRequest(order_ids=[0] * 60_000)
        assert grpc_failure(channel, ids.to_binary(), path(ids)) == (
            "INVALID_ARGUMENT",
            "order_ids must contain no more than 1000 item(s)",
        )

    def test_a_long_service_name_is_truncated(self, channel: grpc.Channel) -> None:
        message = HealthCheckRequest(service="\u20ac" * 20_000).to_binary()
        assert grpc_failure(channel, message, "/grpc.health.v1.Health/Check") == (
            "NOT_FOUND",
            "there is no service " + "\u20ac" * 200,
        )


class TestTooLarge:
    body = UpdateOrderPaymentRequest(order_id=1, payment_status="x" * LIMIT).to_binary()

    def test_grpc(self, channel: grpc.Channel) -> None:
        code, message = grpc_failure(channel, self.body)
        assert (code, str(LIMIT) in message) == ("RESOURCE_EXHAUSTED", True)

    def test_grpc_web(self, http: httpx.Client) -> None:
        assert grpc_web(http, self.body)[0] == "8"

    def test_connect_and_json(self, http: httpx.Client) -> None:
        response = http.post(PATH, content=self.body, headers={"content-type": "application/proto"})
        assert json_failure(response).code == "resource_exhausted"
        assert post(http, b" " * (LIMIT + 1)).code == "resource_exhausted"

    def test_the_limit_counts_decompressed_bytes(self, http: httpx.Client) -> None:
        bomb = gzip.compress(bytes(60 * 1024 * 1024))
        assert len(bomb) < LIMIT
        small = gzip.compress(bytes(LIMIT + 1))
        for body in (bomb, small):
            response = http.post(PATH, content=body, headers={"content-encoding": "gzip"})
            assert json_failure(response).code == "resource_exhausted"
        assert grpc_web(http, small, flags=1)[0] == "8"

    def test_the_largest_request_passes(self, http: httpx.Client) -> None:
        body = b'{"orderId": 9223372036854775807, "paymentStatus": "paid"}'.ljust(LIMIT)
        assert post(http, body).code == "not_found"


def test_damaged_compression(http: httpx.Client) -> None:
    response = http.post(PATH, content=b"not gzip", headers={"content-encoding": "gzip"})
    assert json_failure(response).code == "invalid_argument"


def test_unknown_compression(http: httpx.Client) -> None:
    response = http.post(PATH, content=b"{}", headers={"content-encoding": "br"})
    failure = json_failure(response)
    assert (failure.code, "gzip" in failure.message) == ("unimplemented", True)


@pytest.mark.parametrize("method", METHODS, ids=name)
def test_a_compressed_message_without_an_encoding_header(
    running: Service, method: DescMethod
) -> None:
    """The gRPC specification has INTERNAL here; it is logged as the fault of the caller."""
    body = envelope(gzip.compress(b""), flags=1)
    requests = [
        protocol.post(name(method), body) for protocol in protocols(method) if protocol.is_enveloped
    ]

    before = len(running.logged(event="rpc", code="internal"))

    def logged() -> list[dict[str, Any]]:
        return running.logged(event="rpc", code="internal")[before:]

    assert set(asyncio.run(exchange.send(running, requests))) == {"internal"}
    eventually(lambda: len(logged()) == len(requests))
    for entry in logged():
        assert entry["level"] == "info"
        assert entry["error"].startswith("a message is marked as compressed")
        assert "exception" not in entry
