"""Invalid and extreme requests, by hypothesis: each has a method, a protocol and a message."""

import base64
import gzip
import json
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Final

from connectrpc_grpcreflect import ServerReflectionAlphaService, ServerReflectionService
from hypothesis import strategies as st
from hypothesis.strategies import DrawFn, SearchStrategy
from protobuf import (
    DescField,
    DescFieldValueList,
    DescFieldValueMessage,
    DescFieldValueScalar,
    DescMessage,
    DescMethod,
    ScalarType,
)

from server.gen.grpc_health.v1.health_connect import Health
from server.gen.listings.v1.orders_connect import OrderService
from tests.support import hostile
from tests.support.mutations import mutated
from tests.support.raw import envelope
from tests.support.requests import STREAMING, UNARY, Header, Protocol, Request

METHODS: Final[Sequence[DescMethod]] = [
    method
    for service in (OrderService, Health, ServerReflectionService, ServerReflectionAlphaService)
    for method in service.desc().methods
]
"""Every method of the service."""

_TOKENS: Final = ("page_token", "last_event_id")

_DOCUMENTS: Final = (
    b"[" * 20_000,
    b'{"a":' * 9_000,
    b'{"fileContainingExtension":' + b"[" * 14_000,
    b'{"olderThan":' + b"[" * 99 + b"]" * 99 + b"}",
    b"",
    b"null",
    b"[]",
    b'""',
    b"{",
    b"{}{}",
    b"\xef\xbb\xbf{}",
    b'{"": 1}',
    b'{"\\ud800": 1}',
    b'{"\xed\xa0\x80": 1}',
    b"\xff\xfe{\0}\0",
)
"""Whole JSON documents, valid or not."""


@dataclass(frozen=True)
class Known:
    """Existing ids and tokens that requests can name."""

    order_ids: Sequence[int]
    tokens: Sequence[str]
    """Page tokens and event ids."""
    credentials: Sequence[tuple[Header, ...]]
    """The authentication headers of callers; the first caller has every permission."""


@dataclass(frozen=True)
class _Values:
    """The strategies for the values of one message."""

    known: Known
    is_wild: bool
    """Whether values may be invalid. Valid ones are hostile as well."""

    def fields(self, message: DescMessage) -> SearchStrategy[list[DescField]]:
        """Some of the fields, in any order: repeated if wild, otherwise always with the first."""
        if not message.fields:
            return st.just([])
        each = st.sampled_from(message.fields)
        if self.is_wild:
            return st.lists(each, max_size=5)
        others = st.lists(each, max_size=5, unique_by=lambda field: field.number)
        first = message.fields[0]
        return others.map(lambda some: [first, *(field for field in some if field is not first)])

    def integers(self) -> SearchStrategy[int]:
        known = st.sampled_from(self.known.order_ids)
        return known | _INTEGERS if self.is_wild else known

    def texts(self, field: DescField) -> SearchStrategy[str]:
        if field.name in _TOKENS:
            given = st.sampled_from(self.known.tokens)
            changed = st.builds(_token, given, st.integers(0, 2**32))
            return changed | _TEXTS if self.is_wild else given | changed
        return _TEXTS if self.is_wild else _STORABLE


def name(method: DescMethod) -> str:
    """Return the name of a method in a path."""
    return f"{method.parent.type_name}/{method.name}"


def string_fields(message: DescMessage) -> Sequence[DescField]:
    """Return the fields of a message that are texts."""
    return [
        field
        for field in message.fields
        if isinstance(field.value, DescFieldValueScalar) and field.value.scalar is ScalarType.STRING
    ]


def protocols(method: DescMethod) -> Sequence[Protocol]:
    """Return the protocols that a method can be called by."""
    return UNARY if method.method_kind == "unary" else STREAMING


@st.composite
def requests(draw: DrawFn, known: Known) -> Request:
    """Return a request of any method, sometimes with another HTTP method or another path."""
    method = draw(st.sampled_from(METHODS))
    protocol = draw(st.sampled_from(protocols(method)))
    values = _Values(known, draw(st.booleans()))
    message = draw((_json if protocol.is_json else _binary)(method.input, values))
    headers = (*draw(st.sampled_from(known.credentials)), *draw(_more_headers))
    if protocol.is_get:
        request = protocol.get(name(method), draw(_query(message)), *headers)
    else:
        if protocol in STREAMING:
            headers = (*draw(st.sampled_from([(), (protocol.deadline,)])), *headers)
        header, body = draw(_body(protocol, message))
        request = protocol.post(name(method), body, *header, *headers)
    verb = draw(st.sampled_from([*[request.verb] * 50, *hostile.VERBS]))
    target = draw(st.sampled_from([*[request.target] * 100, *hostile.TARGETS]))
    return request._replace(verb=verb, target=target)


_more_headers: Final[SearchStrategy[list[Header]]] = st.just([]) | st.lists(
    st.sampled_from(hostile.HEADERS), max_size=2
)


# Messages

_INTEGERS: Final = st.sampled_from(hostile.INTEGERS)
_TEXTS: Final = st.sampled_from(hostile.TEXTS)
_STORABLE: Final = st.sampled_from(list(hostile.STORABLE.values()))
_NUMBERS: Final = st.sampled_from(hostile.NUMBERS)
_MOMENTS: Final = st.sampled_from(hostile.TIMES + hostile.DURATIONS).map(json.dumps)
_SURROGATES: Final = st.sampled_from(
    [r'"\ud800"', r'"\udfffa"', r'"\ud83d"', r'["\ud800"]', '"\ud800"']
)
_NO_TEXTS: Final = st.sampled_from(
    [hostile.SURROGATE_BYTES, b"\xff", b"\xc0\x80", b"\xf4\x90\x80\x80"]
)


@st.composite
def _json(draw: DrawFn, message: DescMessage, values: _Values) -> bytes:
    if values.is_wild and draw(st.integers(0, 9)) == 0:
        return draw(st.sampled_from(_DOCUMENTS))
    members = []
    for field in draw(values.fields(message)):
        names = [field.json_name, field.name, *(["paymentStatsu"] if values.is_wild else ())]
        members.append(f'"{draw(st.sampled_from(names))}": {draw(_json_value(field, values))}')
    text = "{" + ", ".join(members) + "}"
    return text.encode("utf-8", "surrogatepass")


def _json_value(field: DescField, values: _Values) -> SearchStrategy[str]:
    match field.value:
        case DescFieldValueScalar(scalar=ScalarType.STRING):
            texts = values.texts(field)
            right = texts.map(json.dumps) | texts.map(_unescaped)
            wrong = _SURROGATES | _NUMBERS
        case DescFieldValueMessage(message=message):
            right = _MOMENTS
            wrong = _NUMBERS | _json(message, values).map(
                lambda text: text.decode("utf-8", "replace")
            )
        case DescFieldValueList():
            right = st.lists(values.integers(), max_size=4).map(str)
            wrong = _NUMBERS | st.lists(_NUMBERS, max_size=4).map(
                lambda each: f"[{', '.join(each)}]"
            )
        case _:
            integers = values.integers().map(str)
            right = integers | integers.map(json.dumps)
            wrong = _NUMBERS | _NUMBERS.map(json.dumps)
    return right | wrong if values.is_wild else right


def _unescaped(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


@st.composite
def _binary(draw: DrawFn, message: DescMessage, values: _Values) -> bytes:
    parts = []
    for field in draw(values.fields(message)):
        kind, value = draw(_binary_value(field, values))
        if values.is_wild and draw(st.integers(0, 9)) == 0:
            kind = draw(st.integers(0, 7))
        parts.append(_varint(field.number << 3 | kind) + value)
    return b"".join(parts)


def _binary_value(field: DescField, values: _Values) -> SearchStrategy[tuple[int, bytes]]:
    """Return a value, after its wire type: https://protobuf.dev/programming-guides/encoding."""
    match field.value:
        case DescFieldValueScalar(scalar=ScalarType.STRING):
            texts = values.texts(field).map(lambda text: text.encode("utf-8", "surrogatepass"))
            data = texts | _NO_TEXTS if values.is_wild else texts
        case DescFieldValueMessage(message=message):
            data = _binary(message, values)
        case _:
            return values.integers().map(lambda number: (0, _varint(number)))
    return data.map(lambda each: (2, _varint(len(each)) + each))


def _varint(number: int) -> bytes:
    number %= 2**64
    parts = []
    while number >= 0x80:
        parts.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*parts, number])


def _token(token: str, seed: int) -> str:
    """Return a token unchanged, or changed before or after its base64 encoding."""
    random = Random(seed)
    if random.random() < 0.5:
        return mutated(random, token.encode(), [b"AAAA=="]).decode("latin-1")
    if random.random() < 0.2:
        return token
    inside = base64.urlsafe_b64decode(token + "=" * (-len(token) % 4))
    return base64.urlsafe_b64encode(mutated(random, inside, [b"1:2:", b"0:9:3,4"])).decode()


# Bodies and queries


def _body(protocol: Protocol, message: bytes) -> SearchStrategy[tuple[tuple[Header, ...], bytes]]:
    """Return the headers that describe a body, and the body. Most match; some do not."""
    announced = ((protocol.encoding, b"gzip"),)
    zipped = gzip.compress(message, 1)

    def packed(data: bytes, flags: int = 0) -> bytes:
        return envelope(data, flags=flags) if protocol.is_enveloped else data

    ways: list[tuple[tuple[Header, ...], bytes]] = [
        *[((), packed(message))] * 8,
        (announced, packed(zipped, flags=1)),
        (announced, packed(zipped[:-8] + b"\xff" * 8, flags=1)),  # another checksum and length
        (announced, packed(zipped[:-9], flags=1)),
        (announced, packed(message, flags=1)),
    ]
    if protocol.is_enveloped:
        ways += [
            ((), packed(zipped, flags=1)),
            ((), packed(message, flags=0x82)),
            ((), packed(message) * 2),
            ((), b""),
            ((), envelope(message, announced=len(message) + 1)),
        ]
    return st.sampled_from(ways)


def _query(message: bytes) -> SearchStrategy[dict[str, bytes | str]]:
    in_base64 = base64.urlsafe_b64encode(message)
    zipped = base64.urlsafe_b64encode(gzip.compress(message, 1))
    right: list[dict[str, bytes | str]] = [
        {"message": in_base64, "base64": "1"},
        {"message": message},
        {"message": zipped, "base64": "1", "compression": "gzip"},
    ]
    wrong: list[dict[str, bytes | str]] = [
        {"message": message, "base64": "1"},
        {"message": in_base64, "base64": "1", "compression": "gzip"},
        {"message": in_base64, "base64": "1", "compression": "br"},
        {"message": message, "encoding": "xml"},
        {"message": message, "encoding": hostile.SURROGATE_BYTES},
        {"message": message, "connect": "v2"},
        {},
    ]
    return st.sampled_from([*right * 4, *wrong])
