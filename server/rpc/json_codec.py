"""A strict JSON codec for requests.

connectrpc's own codec takes the last of two equal names, drops unknown names, reads the order id
"1_0" as 10, and crashes the process with a stack overflow on some 14,000 nested brackets. Here each
of these is an error: a misread number is another customer's order, and a misspelt field a payment
that is acknowledged and not stored.
"""

import json
import re
from collections.abc import Mapping
from decimal import Decimal
from functools import cache
from typing import Any, Final, NoReturn, TypeVar

from connectrpc.code import Code
from connectrpc.codec import proto_json_codec
from connectrpc.errors import ConnectError
from protobuf import (
    DescField,
    DescFieldValueList,
    DescFieldValueScalar,
    DescMessage,
    Message,
    ScalarType,
    message_from_json_value,
)

from server.gen.google.rpc.error_details_pb import BadRequest

_MAX_DEPTH: Final = 100  # the recursion limit of protobuf's C++ and Java implementations
_MAX_ERROR_CHARACTERS: Final = 300  # an error may quote the request
_MAX_NAME_CHARACTERS: Final = 100

# A string is one token, so that brackets within it do not count. The possessive *+ and the optional
# closing quote keep the scan linear for any input, also for a string without an end.
_TOKENS = re.compile(rb'"(?:[^"\\]|\\.)*+"?|[\[{]|[\]}]', re.DOTALL)

# https://protobuf.dev/programming-guides/json: an integer may be a string, and have an exponent.
_NUMBER = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]{1,9})?")
_FIRST_INEXACT_FLOAT = 2**53
_INTEGERS = frozenset(ScalarType) - {
    ScalarType.DOUBLE,
    ScalarType.FLOAT,
    ScalarType.BOOL,
    ScalarType.STRING,
    ScalarType.BYTES,
}

_M = TypeVar("_M", bound=Message[Any])


class StrictJSONCodec:
    """A ``connectrpc.codec.Codec`` for protobuf's JSON that refuses ambiguous input.

    https://protobuf.dev/programming-guides/json
    """

    def name(self) -> str:
        """Return the suffix of the content type ``application/json``."""
        return "json"

    def encode(self, message: Message[Any]) -> bytes:
        """Return ``message`` as JSON."""
        return proto_json_codec().encode(message)

    def decode(self, data: bytes | bytearray, message_class: type[_M]) -> _M:
        """Return the message in ``data``.

        Raises ConnectError: INVALID_ARGUMENT, with a ``google.rpc.BadRequest`` where one field is
        at fault.
        """
        try:
            _check_depth(data)
            value = json.loads(
                data.decode(),
                object_pairs_hook=_object,
                parse_constant=_refuse_constant,
                parse_float=_Float,
            )
            if not isinstance(value, dict):
                raise ValueError("it is not an object")
            _check_fields(message_class, value)
            return message_from_json_value(message_class, value)
        except (ValueError, TypeError, ArithmeticError) as error:
            text = f"cannot read the request as JSON: {error}"
            details = [error.detail()] if isinstance(error, _FieldError) else []
            raise ConnectError(
                Code.INVALID_ARGUMENT, text[:_MAX_ERROR_CHARACTERS], details
            ) from error


class _Float(float):
    """A number with a fraction or an exponent, and its text."""

    def __init__(self, text: str) -> None:
        self.text = text


class _FieldError(ValueError):
    def __init__(self, field: str, description: str, reason: str) -> None:
        super().__init__(f"{field} {description}")
        self._violation = BadRequest.FieldViolation(
            field=field, description=description, reason=reason
        )

    def detail(self) -> BadRequest:
        return BadRequest(field_violations=[self._violation])


def _check_depth(data: bytes | bytearray) -> None:
    if data.count(b"[") + data.count(b"{") <= _MAX_DEPTH:
        return
    depth = 0
    for token in _TOKENS.finditer(data):
        if token[0] in (b"[", b"{"):
            depth += 1
            if depth > _MAX_DEPTH:
                raise ValueError(f"it is nested more than {_MAX_DEPTH} levels deep")
        elif token[0] in (b"]", b"}"):
            depth -= 1


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    for name, value in pairs:
        name.encode()  # a lone surrogate raises UnicodeEncodeError, a ValueError
        if isinstance(value, str):
            value.encode()
    unique = dict(pairs)
    if len(unique) < len(pairs):
        raise ValueError("a name is given twice in one object")
    return unique


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _check_fields(message_class: type[Message[Any]], value: Mapping[str, Any]) -> None:
    fields = _fields(message_class.desc())
    seen = set()
    for name, given in value.items():
        field = fields.get(name)
        if field is None:
            known = ", ".join(each.name for each in message_class.desc().fields)
            description = f"is not a field; the fields are {known}"
            raise _FieldError(name[:_MAX_NAME_CHARACTERS], description, "UNKNOWN_FIELD")
        if field.name in seen:
            raise _FieldError(field.name, "is given twice, under both its names", "DUPLICATE_FIELD")
        seen.add(field.name)
        kind = field.value
        if isinstance(kind, DescFieldValueScalar) and given is not None:
            _check_scalar(field.name, kind.scalar, given)
        if isinstance(kind, DescFieldValueList) and isinstance(kind.element, ScalarType):
            for position, element in enumerate(given if isinstance(given, list) else ()):
                _check_scalar(f"{field.name}[{position}]", kind.element, element)


def _check_scalar(name: str, kind: ScalarType, given: object) -> None:
    if kind is ScalarType.STRING and not isinstance(given, str):
        raise _FieldError(name, "must be a string", "STRING_EXPECTED")
    if kind in _INTEGERS:
        spelled = given.text if isinstance(given, _Float) else given
        if not (_is_integer(spelled) if isinstance(spelled, str) else type(given) is int):
            raise _FieldError(name, 'must be an integer, as 42 or "42"', "INTEGER_EXPECTED")


def _is_integer(text: str) -> bool:
    """Return whether ``text`` is an integer that connectrpc's codec reads exactly.

    It reads a number with a fraction or an exponent as the nearest float.
    """
    if not _NUMBER.fullmatch(text):
        return False
    if text.removeprefix("-").isdigit():
        return True
    number = Decimal(text)
    return abs(number) < _FIRST_INEXACT_FLOAT and number == number.to_integral_value()


@cache
def _fields(message: DescMessage) -> Mapping[str, DescField]:
    """Map each field's two JSON names to the field."""
    return {name: field for field in message.fields for name in (field.json_name, field.name)}
