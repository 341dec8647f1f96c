"""Errors encoded outside of connectrpc equal those that connectrpc encodes."""

import base64
import json
from urllib.parse import quote, unquote

import grpc
import pytest
from connectrpc._protocol import ConnectWireError
from connectrpc._protocol_grpc import GRPCServerProtocol, GRPCWebServerProtocol
from connectrpc.code import Code
from connectrpc.codec import proto_binary_codec
from connectrpc.errors import ConnectError
from connectrpc.request import Headers
from hypothesis import example, given
from hypothesis import strategies as st

from server.gen.google.rpc.error_details_pb import ErrorInfo
from server.gen.google.rpc.status_pb import Status
from server.rpc.error_encoding import (
    GRPC_STATUS,
    HTTP_STATUS,
    encode,
    error_in,
    grpc_trailers,
)
from server.rpc.protocols import CONNECT, GRPC, GRPC_WEB, is_connect_stream, protocol_of
from server.rpc.status_message import decode_message, encode_message

TEXT = "a/b: 100 % sure (ä), or not; try\nagain"
RETRIED = {Code.UNAVAILABLE, Code.RESOURCE_EXHAUSTED, Code.ABORTED, Code.DEADLINE_EXCEEDED}
ERRORS = {
    code: ConnectError(code, TEXT, [ErrorInfo(reason="R", domain="d")] if code.value < "m" else [])
    for code in Code
}


def test_grpc_status_numbers() -> None:
    assert {code.value: number for code, number in GRPC_STATUS.items()} == {
        status.name.lower().replace("cancelled", "canceled"): status.value[0]
        for status in grpc.StatusCode
        if status is not grpc.StatusCode.OK
    }


@pytest.mark.parametrize("code", Code)
def test_http_status_codes(code: Code) -> None:
    wire = ConnectWireError.from_exception(ERRORS[code])
    assert HTTP_STATUS[code] == wire.to_http_status().code
    assert encode(ERRORS[code], CONNECT).status == wire.to_http_status().code


@pytest.mark.parametrize("code", Code)
def test_grpc(code: Code) -> None:
    """The trailers of connectrpc, with fewer escapes in the message, and when to call again."""
    error = ERRORS[code]
    writer = GRPCServerProtocol().create_envelope_writer(proto_binary_codec(), None)
    end = writer.end(Headers(), ConnectWireError.from_exception(error))
    assert isinstance(end, Headers)
    expected = dict(end)
    found = {name.decode(): value.decode() for name, value in grpc_trailers(error)}
    pushback = found.pop("grpc-retry-pushback-ms", None)
    assert pushback == ("-1" if code in RETRIED else None)
    assert found.keys() == expected.keys()
    for name in ("grpc-status", "grpc-status-details-bin"):
        assert found.get(name) == expected.get(name)
    assert unquote(found["grpc-message"]) == unquote(expected["grpc-message"]) == TEXT
    assert found["grpc-message"].isprintable()
    if error.details:
        status = Status.from_binary(base64.b64decode(found["grpc-status-details-bin"] + "=="))
        assert (status.code, status.message) == (GRPC_STATUS[code], TEXT)
    assert dict(encode(error, GRPC).trailers) == dict(grpc_trailers(error))


def test_grpc_web() -> None:
    error = ERRORS[Code.ABORTED]
    encoded = encode(error, GRPC_WEB)
    writer = GRPCWebServerProtocol().create_envelope_writer(proto_binary_codec(), None)
    expected = writer.end(Headers(), ConnectWireError.from_exception(error))
    assert isinstance(expected, bytes)
    assert (encoded.status, encoded.trailers) == (200, ())
    assert encoded.body[0] == expected[0] == 0x80
    assert int.from_bytes(encoded.body[1:5]) == len(encoded.body) - 5
    assert encoded.body[5:].decode().splitlines() == [
        f"{name.decode()}: {value.decode()}" for name, value in grpc_trailers(error, GRPC_WEB)
    ]


@pytest.mark.parametrize("code", Code)
def test_connect(code: Code) -> None:
    expected = ConnectWireError.from_exception(ERRORS[code]).to_dict()
    for detail in expected.get("details", ()):
        detail.pop("debug", None)
    unary = encode(ERRORS[code], CONNECT)
    assert json.loads(unary.body) == expected
    assert unary.content_type == b"application/json"
    stream = encode(ERRORS[code], CONNECT, stream=True)
    assert (stream.status, stream.body[0]) == (200, 0x02)
    assert int.from_bytes(stream.body[1:5]) == len(stream.body) - 5
    assert json.loads(stream.body[5:]) == {"error": expected}


@pytest.mark.parametrize(
    ("content_type", "protocol", "stream"),
    [
        ("application/grpc", GRPC, False),
        ("application/grpc+proto", GRPC, False),
        ("application/grpc-web", GRPC_WEB, False),
        ("application/grpc-web+json", GRPC_WEB, False),
        ("application/connect+json", CONNECT, True),
        ("application/json", CONNECT, False),
        ("application/proto", CONNECT, False),
        ("text/plain", CONNECT, False),
        ("", CONNECT, False),
    ],
)
def test_the_protocol_follows_the_content_type(
    content_type: str, protocol: str, stream: bool
) -> None:
    assert protocol_of(content_type) == protocol
    assert is_connect_stream(content_type) is stream


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)


@given(texts)
@example("%41 %zz %")
@example("a, b; (c): d/e ~ \x7f\x1f\n")
def test_a_message_is_percent_encoded(text: str) -> None:
    """Bytes of visible ASCII and the space stay, except "%"; no others do."""
    encoded = encode_message(text)
    assert decode_message(encoded) == text
    assert all(0x20 <= byte <= 0x7E for byte in encoded)
    left = encoded
    for byte in text.encode():
        escaped = b"%%%02X" % byte
        is_plain = 0x20 <= byte <= 0x7E and byte != ord("%")
        expected = bytes([byte]) if is_plain else escaped
        assert left.startswith(expected)
        left = left.removeprefix(expected)
    assert left == b""


@given(texts)
def test_a_message_of_another_encoder_is_read(text: str) -> None:
    assert decode_message(quote(text, safe="").encode()) == text


def test_a_lone_surrogate_does_not_fail() -> None:
    assert encode_message("a\ud800b") == b"a?b"


@given(st.sampled_from(list(Code)), texts, st.booleans())
def test_an_error_is_read_from_its_trailers(code: Code, text: str, has_details: bool) -> None:
    details = [ErrorInfo(reason="R", domain="d")] if has_details else []
    found = error_in(grpc_trailers(ConnectError(code, text, details)))
    assert found is not None
    assert (found.code, found.message) == (code, text)
    assert [each.value(ErrorInfo) for each in found.details] == details


def test_trailers_without_an_error() -> None:
    assert error_in([(b"grpc-status", b"0")]) is None
    assert error_in([(b"content-type", b"application/grpc")]) is None
