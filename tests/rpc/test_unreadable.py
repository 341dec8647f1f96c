"""Requests that cannot be decoded: one error, the same over every protocol that has it."""

from typing import Final

import httpx
import pytest
from connectrpc.errors import ConnectError
from protobuf import Message

from server.gen.google.rpc.error_details_pb import BadRequest
from server.gen.listings.v1.orders_pb import (
    FindOrderByPaymentRequest,
    GetOrderRequest,
    ListStuckPaymentsRequest,
    UpdateOrderPaymentRequest,
    WatchOrderPaymentsRequest,
)
from server.rpc.interceptors.validation import validate
from tests.support.callers import Call, Failure, path
from tests.support.raw import connected, http1, rest
from tests.support.reading import refused
from tests.support.refusals import GETS, STREAMING, UNARY, Way, refusal
from tests.support.schema import compiled
from tests.support.service import Service
from tests.support.waiting import eventually

LIMIT: Final = 64 * 1024
UPDATE: Final = path(UpdateOrderPaymentRequest())
GET: Final = path(GetOrderRequest())
WATCH: Final = path(WatchOrderPaymentsRequest())
STUCK: Final = path(ListStuckPaymentsRequest())

PREFIX: Final = "cannot read the request as "
JSON_HINT: Final = "JSON has the content type application/json or application/grpc+json"


def name(way: Way) -> str:
    return way.name


def bad(field: str, description: str, reason: str) -> BadRequest:
    violation = BadRequest.FieldViolation(field=field, description=description, reason=reason)
    return BadRequest(field_violations=[violation])


@pytest.mark.parametrize("way", [way for way in (*UNARY, *GETS) if way.is_json], ids=name)
class TestJSON:
    def test_a_field(self, running: Service, way: Way) -> None:
        description = 'expected seconds as in "3600s"; got "1h"'
        assert refusal(running.base_url, way, STUCK, b'{"olderThan": "1h"}') == Failure(
            "invalid_argument",
            f"{PREFIX}JSON: olderThan: {description}",
            (bad("older_than", description, "DURATION_EXPECTED"),),
        )

    @pytest.mark.parametrize(
        ("body", "problem"),
        [
            (b"", "it is empty"),
            (
                b"{\n  oops}",
                "expecting property name enclosed in double quotes at line 2, column 3",
            ),
            (b'{"orderId": 1', "expecting ',' delimiter at line 1, column 14"),
            (b'{"orderId": 1}}', "extra data at line 1, column 15"),
            (b"[1]", "it is not an object"),
            (b"null", "it is not an object"),
            (b"\x08\x01", "expecting value at line 1, column 1"),
            (b'{"orderId": "\xff"}', "it is not UTF-8: byte 14 is 0xff"),
            (b"\xef\xbb\xbf{}", "it begins with a byte order mark"),
            ('{"orderId": 1}'.encode("utf-16"), "it is not UTF-8: byte 1 is 0xff"),
            (b"[" * 101, "it is nested more than 100 levels deep"),
        ],
    )
    def test_no_json(self, running: Service, way: Way, body: bytes, problem: str) -> None:
        assert refusal(running.base_url, way, GET, body) == Failure(
            "invalid_argument",
            f'{PREFIX}JSON: {problem}; a request looks like {{"orderId": 42}}',
        )


@pytest.mark.parametrize("way", [way for way in STREAMING if way.is_json], ids=name)
def test_json_of_a_stream(running: Service, way: Way) -> None:
    description = 'expected an integer as in 42 or "42"; got null'
    assert refusal(running.base_url, way, WATCH, b'{"orderIds": [7, null]}') == Failure(
        "invalid_argument",
        f"{PREFIX}JSON: orderIds[1]: {description}",
        (bad("order_ids[1]", description, "INTEGER_EXPECTED"),),
    )


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        (b"\xff", "invalid varint"),
        (b"\x12\x05ab", "unexpected end of buffer: needed 5 bytes but only 2 available"),
        (b"\x32\x03\xed\xa0\x80", "a string in it is not UTF-8"),
        (b' {"orderId": 1}', "it looks like JSON"),
    ],
)
@pytest.mark.parametrize("way", [way for way in UNARY if not way.is_json], ids=name)
def test_broken_protobuf(running: Service, way: Way, body: bytes, problem: str) -> None:
    expected = "expected a listings.v1.UpdateOrderPaymentRequest in binary"
    assert refusal(running.base_url, way, UPDATE, body) == Failure(
        "invalid_argument", f"{PREFIX}protobuf: {problem}; {expected}; {JSON_HINT}"
    )


@pytest.mark.parametrize(
    ("way", "method", "kind"),
    [
        (way, method, kind)
        for ways, method, kind in (
            (GETS, GET, "GetOrder"),
            (STREAMING, WATCH, "WatchOrderPayments"),
        )
        for way in ways
        if not way.is_json
    ],
    ids=str,
)
def test_broken_protobuf_elsewhere(running: Service, way: Way, method: str, kind: str) -> None:
    failure = refusal(running.base_url, way, method, b"\xff")
    assert failure.code == "invalid_argument"
    assert f"expected a listings.v1.{kind}Request in binary" in failure.message


TOO_LARGE: Final = Failure(
    "resource_exhausted",
    "the request is larger than LISTINGS_MAX_REQUEST_BYTES, 65536 bytes after decompression",
)


@pytest.mark.parametrize("zipped", [False, True], ids=["plain", "zipped"])
@pytest.mark.parametrize("way", UNARY, ids=name)
def test_a_request_that_is_too_large(running: Service, way: Way, zipped: bool) -> None:
    body = b" " * (LIMIT + 1)
    assert refusal(running.base_url, way, UPDATE, body, zipped=zipped) == TOO_LARGE


@pytest.mark.parametrize("way", GETS, ids=name)
def test_a_query_that_is_too_large(running: Service, way: Way) -> None:
    body = b" " * (LIMIT + 1)
    assert refusal(running.base_url, way, GET, body, zipped=True) == TOO_LARGE


@pytest.mark.parametrize("way", STREAMING, ids=name)
def test_a_stream_that_is_too_large(running: Service, way: Way) -> None:
    assert refusal(running.base_url, way, WATCH, b" " * (LIMIT + 1)) == TOO_LARGE


@pytest.mark.parametrize("size", [LIMIT, LIMIT + 100])
@pytest.mark.parametrize(
    ("content_type", "answer"),
    [
        ("application/json", b'HTTP/1.1 429 Too Many Requests|{"code": "resource_exhausted", '),
        ("application/proto", b'HTTP/1.1 429 Too Many Requests|{"code": "resource_exhausted", '),
        ("application/grpc-web+proto", b"HTTP/1.1 200 OK|grpc-status: 8\r\n"),
    ],
)
def test_a_request_that_is_too_large_is_refused_before_it_is_sent(
    running: Service, content_type: str, answer: bytes, size: int, number: int
) -> None:
    """RFC 9110, section 10.1.1: a client that expects 100 gets the error in its place."""
    request_id = f"early-{number}"
    fields = [f"content-length: {size}", "expect: 100-continue", f"x-request-id: {request_id}"]
    with connected(running.port) as connection:
        request = http1(UPDATE, *fields).replace(b"application/json", content_type.encode())
        connection.sendall(request)
        if size == LIMIT:
            assert connection.recv(65_536) == b"HTTP/1.1 100 Continue\r\n\r\n"
            return
        received = rest(connection)
    status, reason = answer.split(b"|")
    assert received.startswith(status + b"\r\n")
    assert reason in received
    assert b"connection: close\r\n" in received
    assert TOO_LARGE.message.encode() in received.replace(b"%20", b" ")
    eventually(lambda: running.logged(request_id=request_id))
    (entry,) = running.logged(request_id=request_id)
    logged = entry["event"], entry["code"], entry["error"], entry["level"]
    assert logged == ("rpc", "resource_exhausted", TOO_LARGE.message, "info")


def test_a_length_may_begin_with_zeros(running: Service) -> None:
    """More of them than Python's int() takes."""
    body = b'{"orderId": 999999999}'
    with connected(running.port) as connection:
        length = f"content-length: {len(body):05000}"
        connection.sendall(http1(GET, length, "expect: x", "connection: close") + body)
        assert b"HTTP/1.1 404" in rest(connection)


@pytest.mark.parametrize("message", ["{}", "CAE!", "CA+E", "C", "CAEaa", "%ZZ"])
@pytest.mark.parametrize("way", GETS, ids=name)
def test_a_query_that_is_not_base64(running: Service, way: Way, message: str) -> None:
    encoding = "json" if way.is_json else "proto"
    query = f"connect=v1&encoding={encoding}&base64=1&message={message}"
    answer = httpx.get(f"{running.base_url}{GET}?{query}").json()
    assert answer["code"] == "invalid_argument"
    assert answer["message"].startswith("the query has base64=1, and its message is not base64url")


class TestOneof:
    """A oneof that is required names its members."""

    def test_of_the_contract(self, read: Call) -> None:
        failure = refused(read, FindOrderByPaymentRequest())
        description = (
            "is required: set one of payment_session_id, payment_intent_id, "
            "payment_transaction_id, payment_idempotency_key"
        )
        assert failure == Failure(
            "invalid_argument",
            f"reference {description}",
            (bad("reference", description, "REQUIRED"),),
        )

    def test_of_any_message(self) -> None:
        sample = compiled(
            """
            syntax = "proto3";
            package sample.rules;
            import "buf/validate/validate.proto";
            message Card {
              oneof number { option (buf.validate.oneof).required = true;
                string long = 1; string short = 2; }
            }
            message Pay {
              string number = 1 [(buf.validate.field).required = true];
              Card one = 2;
              repeated Card several = 3;
              map<string, Card> named = 4;
              oneof by { option (buf.validate.oneof).required = true;
                Card card = 5; Pay other = 6; }
            }
            """
        )
        pay = sample.messages[1].type
        for given in ('"one": {}', '"several": [{}]', '"named": {"a": {}}', '"card": {}'):
            field = given.partition('"')[2].partition('"')[0]
            wanted = [(f"{field}.number", "is required: set one of long, short")]
            if field != "card":
                wanted.append(("by", "is required: set one of card, other"))
            assert sorted(violated(pay.from_json(f'{{"number": "1", {given}}}'))) == sorted(wanted)
        ((field, description),) = violated(pay.from_json('{"card": {"long": "1"}}'))
        assert (field, "set one of" in description) == ("number", False)


def violated(request: Message) -> list[tuple[str, str]]:
    with pytest.raises(ConnectError) as caught:
        validate(request)
    (detail,) = caught.value.details
    found = detail.value()
    assert isinstance(found, BadRequest)
    return [(each.field, each.description) for each in found.field_violations]


def test_a_value_is_not_logged(running: Service) -> None:
    """The log has the field and the right form."""
    body = b'{"olderThan": "pi_unlogged", "pageSize": "cs_unlogged"}'
    assert "pi_unlogged" in refusal(running.base_url, UNARY[-1], STUCK, body).message
    logged = 'JSON: olderThan: expected seconds as in "3600s"; pageSize: expected an integer'
    eventually(lambda: [e for e in running.logged(event="rpc") if logged in e.get("error", "")])
    assert "unlogged" not in running.log.read_text()
