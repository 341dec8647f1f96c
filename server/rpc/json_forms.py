"""What a single value looks like in JSON, by the kind of its field.

The form of each kind is that of https://protobuf.dev/programming-guides/json. Where protobuf-py
takes more than that, as "1_0" for 10, the value is refused here.
"""

import re
from collections.abc import Callable
from decimal import Decimal
from functools import cache
from typing import Any, Final, NamedTuple, TypeAlias

from protobuf import (
    DescEnum,
    DescField,
    DescFieldValueEnum,
    DescFieldValueList,
    DescFieldValueMessage,
    DescFieldValueScalar,
    DescMessage,
    ScalarType,
    message_from_json_value,
)
from protobuf.wkt import BytesValue, DoubleValue, FloatValue

# An integer may be a string, and have an exponent.
_NUMBER: Final = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]{1,9})?")
_FIRST_INEXACT_FLOAT: Final = 2**53
_MAX_DIGITS: Final = 20  # of a number of 64 bits, and its sign

_INT32: Final = (-(2**31), 2**31 - 1)
_INT64: Final = (-(2**63), 2**63 - 1)
_RANGES: Final = {
    ScalarType.INT32: _INT32,
    ScalarType.SINT32: _INT32,
    ScalarType.SFIXED32: _INT32,
    ScalarType.INT64: _INT64,
    ScalarType.SINT64: _INT64,
    ScalarType.SFIXED64: _INT64,
    ScalarType.UINT32: (0, 2**32 - 1),
    ScalarType.FIXED32: (0, 2**32 - 1),
    ScalarType.UINT64: (0, 2**64 - 1),
    ScalarType.FIXED64: (0, 2**64 - 1),
}


class Number(float):
    """A number with a fraction or an exponent, or of very many digits, and its text."""

    def __init__(self, text: str) -> None:
        self.text = text


class Constant(NamedTuple):
    """NaN, Infinity or -Infinity, which are not JSON."""

    text: str


class Problem(NamedTuple):
    """What was expected instead of a value, and the reason for programs."""

    expected: str
    reason: str


Check: TypeAlias = Callable[[Any], Problem | None]
"""Returns what is wrong with a value other than null, or None."""


class Form(NamedTuple):
    """What a single value looks like."""

    check: Check
    example: str
    """JSON."""
    message: DescMessage | None = None
    """For an object whose members are to be checked in turn."""


def example(message: DescMessage) -> str:
    """Return JSON that can be decoded as ``message``, with its first field."""
    if not message.fields:
        return "{}"
    field = message.fields[0]
    shown = form_of(field).example
    if isinstance(field.value, DescFieldValueList):
        shown = f"[{shown}]"
    return f'{{"{field.json_name}": {shown}}}'


def form_of(field: DescField) -> Form:
    """Return the form of a field's value, of its elements if it is repeated."""
    match field.value:
        case DescFieldValueScalar(scalar=kind) | DescFieldValueList(element=ScalarType() as kind):
            return _scalar_form(kind)
        case DescFieldValueEnum(enum=enum) | DescFieldValueList(element=DescEnum() as enum):
            return _enum_form(enum)
        case (
            DescFieldValueMessage(message=message)
            | DescFieldValueList(element=DescMessage() as message)
        ):
            return _message_form(message)
    # A map.
    problem = Problem("an object", "OBJECT_EXPECTED")
    return Form(_decoded(field.parent, problem, field.json_name), "{}")


@cache
def _scalar_form(kind: ScalarType) -> Form:
    if kind in _RANGES:
        return Form(_integer(*_RANGES[kind]), "42")
    return _SCALARS[kind]


def _integer(least: int, greatest: int) -> Check:
    malformed = Problem('an integer as in 42 or "42"', "INTEGER_EXPECTED")
    outside = Problem(f"an integer from {least} to {greatest}", "INTEGER_OUT_OF_RANGE")

    def check(given: Any) -> Problem | None:
        if type(given) is not int:
            text = given.text if isinstance(given, Number) else given
            if not isinstance(text, str) or not _is_integer(text):
                return malformed
            if not text.removeprefix("-").isdigit():
                given = int(float(text))
            elif len(text) > _MAX_DIGITS:
                return outside
            else:
                given = int(text)
        return None if least <= given <= greatest else outside

    return check


def _is_integer(text: str) -> bool:
    """Return whether ``text`` is an integer that protobuf-py reads exactly.

    It reads a number with a fraction or an exponent as the nearest float.
    """
    if not _NUMBER.fullmatch(text):
        return False
    if text.removeprefix("-").isdigit():
        return True
    number = Decimal(text)
    return abs(number) < _FIRST_INEXACT_FLOAT and number == number.to_integral_value()


def _string(given: Any) -> Problem | None:
    if not isinstance(given, str):
        return _NO_STRING
    return None if given.isascii() or _is_unicode(given) else _NO_UNICODE


_NO_STRING: Final = Problem('a string as in "abc"', "STRING_EXPECTED")
_NO_UNICODE: Final = Problem("Unicode text without lone surrogates", "UNICODE_EXPECTED")


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _boolean(given: Any) -> Problem | None:
    return None if isinstance(given, bool) else _NO_BOOLEAN


_NO_BOOLEAN: Final = Problem("true or false", "BOOLEAN_EXPECTED")


def _enum_form(enum: DescEnum) -> Form:
    names = {each.name for each in enum.values}
    numbers = {each.number for each in enum.values}
    least, greatest = _INT32
    listed = ", ".join(each.name for each in enum.values)
    wrong = Problem(f"one of {listed}", "ENUM_VALUE_EXPECTED")

    def check(given: Any) -> Problem | None:
        if isinstance(given, str):
            return None if given in names else wrong
        # Of an open enum any number can be decoded. Rules may refuse it, over every protocol.
        is_right = type(given) is int and (
            given in numbers or (enum.open and least <= given <= greatest)
        )
        return None if is_right else wrong

    return Form(check, f'"{enum.values[-1].name}"')


def _message_form(message: DescMessage) -> Form:
    """Return the form of a message; of google.protobuf's, in JSON of their own, as they have it."""
    if not message.type_name.startswith("google.protobuf."):
        return Form(_object(message), "{}", message)
    known = _WELL_KNOWN.get(message.type_name)
    if known is None:
        problem = Problem(f"a {message.type_name} in JSON", "VALUE_EXPECTED")
        return Form(_decoded(message, problem), "{}")
    problem, shown = known
    return Form(_decoded(message, problem), shown)


def _object(message: DescMessage) -> Check:
    def check(given: Any) -> Problem | None:
        if isinstance(given, dict):
            return None
        return Problem(f"an object as in {example(message)}", "OBJECT_EXPECTED")

    return check


_WELL_KNOWN: Final = {
    "google.protobuf.Timestamp": (
        Problem('a time as in "2026-11-30T12:00:00Z"', "TIMESTAMP_EXPECTED"),
        '"2026-11-30T12:00:00Z"',
    ),
    "google.protobuf.Duration": (
        Problem('seconds as in "3600s"', "DURATION_EXPECTED"),
        '"3600s"',
    ),
}


def _decoded(message: DescMessage, problem: Problem, name: str | None = None) -> Check:
    """Return a check by protobuf-py itself, of ``message``, or of its field ``name``."""
    kind = message.type

    def check(given: Any) -> Problem | None:
        try:
            message_from_json_value(kind, given if name is None else {name: given})
        except (ValueError, TypeError, ArithmeticError):
            return problem
        return None

    return check


def _wrapped(wrapper: DescMessage, expected: str, reason: str) -> Check:
    """Return a check by protobuf-py of the kind of scalar in ``wrapper``."""
    problem = Problem(expected, reason)
    decoded = _decoded(wrapper, problem)
    return lambda given: problem if given is None else decoded(given)


_DOUBLE: Final = _wrapped(DoubleValue.desc(), "a number as in 1.5", "NUMBER_EXPECTED")
_FLOAT: Final = _wrapped(FloatValue.desc(), "a number of 32 bits as in 1.5", "NUMBER_EXPECTED")
_BYTES: Final = _wrapped(BytesValue.desc(), 'base64 as in "aGVsbG8="', "BASE64_EXPECTED")

_SCALARS: Final = {
    ScalarType.STRING: Form(_string, '"abc"'),
    ScalarType.BOOL: Form(_boolean, "true"),
    ScalarType.DOUBLE: Form(_DOUBLE, "1.5"),
    ScalarType.FLOAT: Form(_FLOAT, "1.5"),
    ScalarType.BYTES: Form(_BYTES, '"aGVsbG8="'),
}
