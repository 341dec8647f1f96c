"""gRPC-Web in base64. The fixtures ``call`` and ``watch`` cover what it shares with the others."""

import base64
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import pairwise
from types import FrameType
from urllib.parse import unquote

import httpx
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from starlette.responses import Response

from server.gen.listings.v1.orders_pb import (
    GetOrderRequest,
    GetOrderResponse,
    UpdateOrderPaymentRequest,
    WatchOrderPaymentsRequest,
)
from server.rpc.grpc_web_text import Base64Decoder, GrpcWebTextMiddleware
from server.rpc.unreadable import UnreadableRequest
from tests.support import asgi
from tests.support.callers import PATH, path
from tests.support.grpc_web_text import CONTENT_TYPE, StatusError, messages, read
from tests.support.orders import Orders
from tests.support.raw import envelope
from tests.support.service import Service
from tests.support.waiting import eventually

BINARY = "application/grpc-web+proto"
LIMIT = 64 * 1024
GET = path(GetOrderRequest())


def split(text: bytes, cuts: Iterable[int]) -> list[bytes]:
    """Return ``text`` in chunks; cuts beyond its end do nothing."""
    at = sorted({0, len(text), *(cut for cut in cuts if cut < len(text))})
    return [text[begin:end] for begin, end in pairwise(at)]


def decoded(chunks: Iterable[bytes]) -> bytes:
    decoder = Base64Decoder()
    found = b"".join(map(decoder.decode, chunks))
    decoder.end()
    return found


def right_groups(text: bytes) -> int:
    """Return how many characters are right groups of four, each by itself."""
    alphabet = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
    for at in range(0, len(text), 4):
        group = text[at : at + 4]
        characters = group.removesuffix(b"=").removesuffix(b"=")
        if len(group) < 4 or len(characters) < 2 or characters.strip(alphabet):
            return at
    return len(text)


def calls(text: bytes) -> int:
    """Return how many calls of functions decode ``text`` in one chunk."""
    found = 0

    def count(_frame: FrameType, event: str, _function: object) -> None:
        nonlocal found
        found += event in ("call", "c_call")

    decoder = Base64Decoder()
    before = sys.getprofile()
    sys.setprofile(count)
    try:
        decoder.decode(text)
    finally:
        sys.setprofile(before)
    return found


CUTS = st.lists(st.integers(0, 200), max_size=20)
# Of few characters, so that much of it is right.
TEXTS = st.lists(st.sampled_from([b"AAAA", b"AAA=", b"AA==", b"A", b"=", b"-"]), max_size=12)


class TestDecoder:
    @given(parts=st.lists(st.binary(max_size=20), max_size=8), cuts=CUTS)
    def test_padding_may_follow_any_part_and_chunks_end_anywhere(
        self, parts: Sequence[bytes], cuts: Sequence[int]
    ) -> None:
        text = b"".join(map(base64.b64encode, parts))
        assert decoded(split(text, cuts)) == b"".join(parts)

    @pytest.mark.parametrize("part", [b"A", b"AB", b"ABC", b"ABCD", b"ABCABCABCAB"])
    def test_the_number_of_parts_does_not_cost_calls(self, part: bytes) -> None:
        text = base64.b64encode(part)
        assert calls(text * 2) == calls(text * 1_000)

    @example([b"AAAA", b"=", b"=", b"=", b"="], [])
    @example([b"AAAA", b"AA==", b"A"], [])
    @given(texts=TEXTS, cuts=CUTS)
    def test_an_error_says_after_how_many_characters(
        self, texts: Sequence[bytes], cuts: Sequence[int]
    ) -> None:
        text = b"".join(texts)
        right = right_groups(text)
        if right == len(text):
            decoded(split(text, cuts))
            return
        with pytest.raises(UnreadableRequest, match=f"not base64 after {right} characters"):
            decoded(split(text, cuts))


def in_text(*parts: bytes) -> bytes:
    """Return parts of a body, each of them padded."""
    return b"".join(map(base64.b64encode, parts))


def post(
    http: httpx.Client, url: str, content: bytes | Iterator[bytes], **headers: str
) -> list[bytes]:
    """Return the messages of a response. Raises StatusError."""
    sent = {"content-type": CONTENT_TYPE} | {
        name.replace("_", "-"): value for name, value in headers.items()
    }
    with http.stream("POST", url, content=content, headers=sent) as response:
        return list(read(response))


def failure(http: httpx.Client, url: str, content: bytes, **headers: str) -> tuple[int, str]:
    """Return the status of a call that fails, and its message."""
    with pytest.raises(StatusError) as caught:
        post(http, url, content, **headers)
    trailers = caught.value.trailers
    return int(trailers["grpc-status"]), unquote(trailers["grpc-message"])


@pytest.mark.parametrize("cuts", [(1, 2, 3), (8,), range(60)])
def test_a_request_in_chunks(http: httpx.Client, orders: Orders, cuts: Iterable[int]) -> None:
    order_id = orders.add()
    body = envelope(GetOrderRequest(order_id=order_id).to_binary())
    (response,) = post(http, GET, iter(split(in_text(body[:5], body[5:]), cuts)))
    order = GetOrderResponse.from_binary(response).order
    assert order is not None
    assert order.id == order_id


def test_messages_of_a_stream_arrive_one_by_one(http: httpx.Client, orders: Orders) -> None:
    order_id = orders.add()
    request = WatchOrderPaymentsRequest(order_ids=[order_id])
    responses = messages(http, path(request), request.to_binary(), {})
    next(responses)
    for status in ("processing", "paid"):
        orders.change(order_id, payment_status=status)
        assert status.encode() in next(responses)
    responses.close()


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text + b"\n",
        lambda text: text + b"A",
        lambda text: text + b"!!!!",
        lambda text: text + b"====",
        lambda text: text.rstrip(b"="),
        base64.b64decode,
    ],
    ids=["newline", "incomplete", "other characters", "padding", "unpadded", "binary"],
)
def test_a_body_that_is_not_base64_is_refused_and_nothing_is_done(
    running: Service, http: httpx.Client, orders: Orders, damage: Callable[[bytes], bytes]
) -> None:
    order_id = orders.add()
    request = UpdateOrderPaymentRequest(order_id=order_id, payment_status="paid")
    text = in_text(envelope(request.to_binary()))
    assert text.endswith(b"=")
    request_id = f"text-{order_id}"
    status, message = failure(http, PATH, damage(text), x_request_id=request_id)
    right = right_groups(damage(text))
    assert status == 3
    assert message.startswith(f"the request is not base64 after {right} characters; ")
    assert orders.row(order_id)["payment_status"] == "pending"
    eventually(lambda: running.logged(request_id=request_id))
    (entry,) = running.logged(request_id=request_id)
    assert (entry["code"], entry["protocol"]) == ("invalid_argument", "grpc_web")
    assert (entry["level"], entry["error"]) == ("info", message)


@pytest.mark.parametrize("size", [LIMIT, LIMIT + 1])
def test_the_limit_is_of_decoded_bytes(http: httpx.Client, size: int) -> None:
    field = b"\x12"  # payment_status, which is too long for its rule
    message = field + b"\xfc\xff\x03" + b"a" * (LIMIT - 4) + b"\0" * (size - LIMIT)
    assert len(message) == size
    status, text = failure(http, PATH, in_text(envelope(message)))
    assert status == (3 if size == LIMIT else 8)
    assert (size == LIMIT) is ("LISTINGS_MAX_REQUEST_BYTES" not in text)


class TestErrorsOutsideOfMethods:
    """Each is in base64, as ``read`` checks."""

    def test_unknown_method(self, http: httpx.Client) -> None:
        url = "/listings.v1.OrderService/Nope"
        assert failure(http, url, b"") == (12, f"{url} is not a method of this server")

    def test_codec(self, http: httpx.Client) -> None:
        status, message = failure(http, PATH, b"", content_type=f"{CONTENT_TYPE}+thrift")
        assert status == 12
        assert "thrift" in message

    def test_header(self, http: httpx.Client) -> None:
        with http.stream(
            "POST", PATH, headers=[(b"content-type", CONTENT_TYPE.encode()), (b"x-a", b"\xff")]
        ) as response:
            assert response.headers["grpc-status"] == "3"
            with pytest.raises(StatusError):
                list(read(response))

    def test_time_out(self, http: httpx.Client) -> None:
        assert failure(http, PATH, b"", grpc_timeout="soon")[0] == 3


@pytest.mark.parametrize(
    ("content_type", "accept", "expected"),
    [
        (CONTENT_TYPE, "*/*", f"{CONTENT_TYPE}+proto"),
        (CONTENT_TYPE, f"{CONTENT_TYPE}", f"{CONTENT_TYPE}+proto"),
        (f"{CONTENT_TYPE}+proto", "", f"{CONTENT_TYPE}+proto"),
        (f"{CONTENT_TYPE}+json", "", f"{CONTENT_TYPE}+json"),
        (f"{CONTENT_TYPE}; charset=UTF-8", "*/*", f"{CONTENT_TYPE}+proto"),
        (CONTENT_TYPE, BINARY, BINARY),
        (BINARY, f"text/plain, {CONTENT_TYPE}+proto", f"{CONTENT_TYPE}+proto"),
        (BINARY, "*/*", BINARY),
        (
            "application/grpc-web",
            f"application/grpc-web, {CONTENT_TYPE}",
            "application/grpc-web+proto",
        ),
    ],
)
def test_the_response_is_as_accepted(
    http: httpx.Client, orders: Orders, content_type: str, accept: str, expected: str
) -> None:
    request = GetOrderRequest(order_id=orders.add())
    message = request.to_json().encode() if "json" in content_type else request.to_binary()
    body = envelope(message)
    if content_type.startswith(CONTENT_TYPE):
        body = base64.b64encode(body)
    headers = {"content-type": content_type, "accept": accept}
    response = http.post(GET, content=body, headers=headers)
    assert response.headers["content-type"] == expected
    is_text = expected.startswith(CONTENT_TYPE)
    content = base64.b64decode(response.content) if is_text else response.content
    assert content[0] == 0
    assert int.from_bytes(content[1:5])


@pytest.mark.anyio
async def test_the_length_of_a_binary_body_is_not_announced() -> None:
    app = GrpcWebTextMiddleware(Response(b"binary", media_type="application/grpc-web+proto"))
    sent = await asgi.request(app, "/", content_type=CONTENT_TYPE, body=b"")
    assert b"content-length" not in sent.headers
    assert sent.headers[b"content-type"] == CONTENT_TYPE.encode() + b"+proto"
    assert sent.body == base64.b64encode(b"binary")
