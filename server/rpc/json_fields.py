"""What the fields of a message take in JSON, and what is wrong with a value that one does not take.

The form of each kind of field is that of https://protobuf.dev/programming-guides/json. Where
protobuf-py takes more than that, as "1_0" for 10, the value is refused here.
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping
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
    DescOneof,
    ScalarType,
    message_from_json_value,
)
from protobuf.wkt import BytesValue, DoubleValue, FloatValue

from server.observability.masking import MASKED_FIELDS, mask_tokens

_MAX_SHOWN: Final = 40  # characters of a value
_MAX_NAME: Final = 100  # characters of a name

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


class Fault(NamedTuple):
    """What is wrong with one field of a request."""

    spelled: str
    """The path to the field in the names of the request."""
    field: str
    """The path to the field in the names of the proto, as in broken rules."""
    problem: str
    got: str
    """The value, shortened, or its JSON type alone; empty where ``problem`` says it all."""
    reason: str

    @property
    def description(self) -> str:
        """What was expected, and what came."""
        return f"{self.problem}; got {self.got}" if self.got else self.problem


class _Problem(NamedTuple):
    expected: str
    reason: str


_Check: TypeAlias = Callable[[Any], _Problem | None]
"""Returns what is wrong with a value other than null, or None."""


class _Form(NamedTuple):
    """What a single value looks like."""

    check: _Check
    example: str
    """JSON."""
    message: DescMessage | None = None
    """For an object whose members are to be checked in turn."""


class _Field(NamedTuple):
    name: str
    form: _Form
    is_list: bool
    is_masked: bool


def faults(message: DescMessage, value: Mapping[str, Any]) -> Iterator[Fault]:
    """Yield what is wrong with an object that is to become ``message``, field by field.

    ``value`` is from ``json.loads``, with ``Number`` and ``Constant`` where they apply.
    """
    return _faults(message, value, "", "")


def example(message: DescMessage) -> str:
    """Return JSON that can be decoded as ``message``, with its first field."""
    if not message.fields:
        return "{}"
    field = message.fields[0]
    shown = _form_of(field).example
    if isinstance(field.value, DescFieldValueList):
        shown = f"[{shown}]"
    return f'{{"{field.json_name}": {shown}}}'


def repeated(message: DescMessage, name: str) -> Fault:
    """Return the fault of an object, in a request of type ``message``, with two equal names."""
    known, shown = _fields(message).get(name), _shortened(name)
    return Fault(shown, known.name if known else shown, "given twice", "", "DUPLICATE_FIELD")


def _faults(
    message: DescMessage, value: Mapping[str, Any], spelled: str, path: str
) -> Iterator[Fault]:
    """Yield the faults of an object. The paths are empty, or end with a dot."""
    fields = _fields(message)
    given: dict[str, str] = {}
    for name, each in value.items():
        field = fields.get(name)
        if field is None:
            yield _unknown(message, name, spelled, path)
        elif field.name in given:
            problem = f"given twice, also as {given[field.name]}"
            yield Fault(spelled + name, path + field.name, problem, "", "DUPLICATE_FIELD")
        else:
            given[field.name] = name
            if each is None:
                continue
            if field.is_list:
                yield from _list_faults(field, each, spelled + name, path + field.name)
            elif field.form.message or field.form.check(each):
                yield from _value_faults(field, each, spelled + name, path + field.name)
    for oneof in message.oneofs:
        members = [
            given[each.name]
            for each in oneof.fields
            if each.name in given and value[given[each.name]] is not None
        ]
        if len(members) > 1:
            problem = f"expected only one of {member_names(oneof)}"
            got = " and ".join(members)
            yield Fault(spelled + oneof.name, path + oneof.name, problem, got, "DUPLICATE_ONEOF")


def member_names(oneof: DescOneof) -> str:
    """Return the names of the members of a oneof, in the proto's order."""
    return ", ".join(each.name for each in oneof.fields)


def _unknown(message: DescMessage, name: str, spelled: str, path: str) -> Fault:
    shown = _shortened(name)
    known = ", ".join(each.name for each in message.fields)
    problem = f"there is no such field; the fields are {known}"
    return Fault(spelled + shown, path + shown, problem, "", "UNKNOWN_FIELD")


def _list_faults(field: _Field, given: object, spelled: str, path: str) -> Iterator[Fault]:
    if not isinstance(given, list):
        problem = f"expected an array as in [{field.form.example}]"
        yield Fault(spelled, path, problem, _shown(field, given), "ARRAY_EXPECTED")
        return
    for position, element in enumerate(given):
        if field.form.message or field.form.check(element):
            index = f"[{position}]"
            yield from _value_faults(field, element, spelled + index, path + index)


def _value_faults(field: _Field, given: object, spelled: str, path: str) -> Iterator[Fault]:
    problem = field.form.check(given)
    if problem is not None:
        expected = f"expected {problem.expected}"
        yield Fault(spelled, path, expected, _shown(field, given), problem.reason)
    elif field.form.message is not None:
        assert isinstance(given, dict)  # noqa: S101 - as its check has found
        yield from _faults(field.form.message, given, f"{spelled}.", f"{path}.")


@cache
def _fields(message: DescMessage) -> Mapping[str, _Field]:
    """Map each field's two names in JSON to the field."""
    fields = {}
    for each in message.fields:
        known = _Field(
            each.name,
            _form_of(each),
            isinstance(each.value, DescFieldValueList),
            each.name in MASKED_FIELDS,
        )
        fields[each.json_name] = fields[each.name] = known
    return fields


def _form_of(field: DescField) -> _Form:
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
    problem = _Problem("an object", "OBJECT_EXPECTED")
    return _Form(_decoded(field.parent, problem, field.json_name), "{}")


@cache
def _scalar_form(kind: ScalarType) -> _Form:
    if kind in _RANGES:
        return _Form(_integer(*_RANGES[kind]), "42")
    return _SCALARS[kind]


def _integer(least: int, greatest: int) -> _Check:
    malformed = _Problem('an integer as in 42 or "42"', "INTEGER_EXPECTED")
    outside = _Problem(f"an integer from {least} to {greatest}", "INTEGER_OUT_OF_RANGE")

    def check(given: Any) -> _Problem | None:
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


def _string(given: Any) -> _Problem | None:
    if not isinstance(given, str):
        return _NO_STRING
    return None if given.isascii() or _is_unicode(given) else _NO_UNICODE


_NO_STRING: Final = _Problem('a string as in "abc"', "STRING_EXPECTED")
_NO_UNICODE: Final = _Problem("Unicode text without lone surrogates", "UNICODE_EXPECTED")


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _boolean(given: Any) -> _Problem | None:
    return None if isinstance(given, bool) else _NO_BOOLEAN


_NO_BOOLEAN: Final = _Problem("true or false", "BOOLEAN_EXPECTED")


def _enum_form(enum: DescEnum) -> _Form:
    names = {each.name for each in enum.values}
    numbers = {each.number for each in enum.values}
    least, greatest = _INT32
    listed = ", ".join(each.name for each in enum.values)
    wrong = _Problem(f"one of {listed}", "ENUM_VALUE_EXPECTED")

    def check(given: Any) -> _Problem | None:
        if isinstance(given, str):
            return None if given in names else wrong
        # Of an open enum any number can be decoded. Rules may refuse it, over every protocol.
        is_right = type(given) is int and (
            given in numbers or (enum.open and least <= given <= greatest)
        )
        return None if is_right else wrong

    return _Form(check, f'"{enum.values[-1].name}"')


def _message_form(message: DescMessage) -> _Form:
    """Return the form of a message; of google.protobuf's, in JSON of their own, as they have it."""
    if not message.type_name.startswith("google.protobuf."):
        return _Form(_object(message), "{}", message)
    known = _WELL_KNOWN.get(message.type_name)
    if known is None:
        problem = _Problem(f"a {message.type_name} in JSON", "VALUE_EXPECTED")
        return _Form(_decoded(message, problem), "{}")
    problem, shown = known
    return _Form(_decoded(message, problem), shown)


def _object(message: DescMessage) -> _Check:
    def check(given: Any) -> _Problem | None:
        if isinstance(given, dict):
            return None
        return _Problem(f"an object as in {example(message)}", "OBJECT_EXPECTED")

    return check


_WELL_KNOWN: Final = {
    "google.protobuf.Timestamp": (
        _Problem('a time as in "2026-11-30T12:00:00Z"', "TIMESTAMP_EXPECTED"),
        '"2026-11-30T12:00:00Z"',
    ),
    "google.protobuf.Duration": (
        _Problem('seconds as in "3600s"', "DURATION_EXPECTED"),
        '"3600s"',
    ),
}


def _decoded(message: DescMessage, problem: _Problem, name: str | None = None) -> _Check:
    """Return a check by protobuf-py itself, of ``message``, or of its field ``name``."""
    kind = message.type

    def check(given: Any) -> _Problem | None:
        try:
            message_from_json_value(kind, given if name is None else {name: given})
        except (ValueError, TypeError, ArithmeticError):
            return problem
        return None

    return check


def _wrapped(wrapper: DescMessage, expected: str, reason: str) -> _Check:
    """Return a check by protobuf-py of the kind of scalar in ``wrapper``."""
    problem = _Problem(expected, reason)
    decoded = _decoded(wrapper, problem)
    return lambda given: problem if given is None else decoded(given)


_DOUBLE: Final = _wrapped(DoubleValue.desc(), "a number as in 1.5", "NUMBER_EXPECTED")
_FLOAT: Final = _wrapped(FloatValue.desc(), "a number of 32 bits as in 1.5", "NUMBER_EXPECTED")
_BYTES: Final = _wrapped(BytesValue.desc(), 'base64 as in "aGVsbG8="', "BASE64_EXPECTED")

_SCALARS: Final = {
    ScalarType.STRING: _Form(_string, '"abc"'),
    ScalarType.BOOL: _Form(_boolean, "true"),
    ScalarType.DOUBLE: _Form(_DOUBLE, "1.5"),
    ScalarType.FLOAT: _Form(_FLOAT, "1.5"),
    ScalarType.BYTES: _Form(_BYTES, '"aGVsbG8="'),
}


def _shown(field: _Field, given: object) -> str:
    """Return ``given`` for the caller to see; of an identifier of a payment, its type."""
    match given:
        case list():
            return "an array"
        case dict():
            return "an object"
        case None:
            return "null"
        case bool():
            return "a boolean" if field.is_masked else json.dumps(given)
        case str():
            return "a string" if field.is_masked else _shown_string(given)
        case Number() | Constant():
            text = given.text
        case _:
            text = str(given)
    return "a number" if field.is_masked else _cut(text)


def _shown_string(text: str) -> str:
    return _encodable(json.dumps(_cut(mask_tokens(text)), ensure_ascii=False))


def _shortened(name: str) -> str:
    return _encodable(name[:_MAX_NAME])


def _cut(text: str) -> str:
    return text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}…"


def _encodable(text: str) -> str:
    """Return ``text`` with its lone surrogates written as escapes."""
    return text.encode(errors="backslashreplace").decode()
