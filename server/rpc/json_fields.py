"""What is wrong with the fields of a message in JSON, one by one.

``json_forms`` has what the value of each kind of field looks like.
"""

import json
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any, Final, NamedTuple

from protobuf import DescFieldValueList, DescMessage, DescOneof

from server.observability.masking import MASKED_FIELDS, mask_name, mask_tokens
from server.rpc.json_forms import Constant, Form, Number, form_of

_MAX_SHOWN: Final = 40  # characters of a value
_MAX_NAME: Final = 100  # characters of a name


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
    is_known: bool = True
    """Whether the proto has the field. The name of another one is the caller's own."""

    @property
    def logged(self) -> str:
        """The path in the names of the request, and what was expected, for the log."""
        spelled = self.spelled if self.is_known else mask_name(self.spelled)
        return f"{spelled}: {self.problem}"

    @property
    def description(self) -> str:
        """What was expected, and what came."""
        return f"{self.problem}; got {self.got}" if self.got else self.problem


class _Field(NamedTuple):
    name: str
    form: Form
    is_list: bool
    is_masked: bool


def faults(message: DescMessage, value: Mapping[str, Any]) -> Iterator[Fault]:
    """Yield what is wrong with an object that is to become ``message``, field by field.

    ``value`` is from ``json.loads``, with ``Number`` and ``Constant`` where they apply.
    """
    return _faults(message, value, "", "")


def repeated(message: DescMessage, name: str) -> Fault:
    """Return the fault of an object, in a request of type ``message``, with two equal names."""
    known, shown = _fields(message).get(name), _shortened(name)
    field = known.name if known else shown
    return Fault(shown, field, "given twice", "", "DUPLICATE_FIELD", known is not None)


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
    return Fault(spelled + shown, path + shown, problem, "", "UNKNOWN_FIELD", is_known=False)


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
            form_of(each),
            isinstance(each.value, DescFieldValueList),
            each.name in MASKED_FIELDS,
        )
        fields[each.json_name] = fields[each.name] = known
    return fields


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
