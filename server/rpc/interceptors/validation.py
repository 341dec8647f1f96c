"""The ``buf.validate`` rules in the proto, enforced before a method runs."""

from collections.abc import Iterator
from functools import cache
from typing import Any, Final

import protovalidate
from connectrpc.code import Code
from connectrpc.errors import ConnectError
from protobuf import (
    DescFieldValueList,
    DescFieldValueMap,
    DescFieldValueMessage,
    DescMessage,
    DescOneof,
    Message,
)
from protobuf.wkt import Duration, Timestamp

from server.gen.google.rpc.error_details_pb import BadRequest
from server.rpc.json_fields import member_names

_TIMESTAMP: Final = Timestamp.desc().type_name
_DURATION: Final = Duration.desc().type_name
_SECOND: Final = 10**9  # in nanos

_MAX_VIOLATIONS: Final = 20  # gRPC clients accept a few KiB of trailers


def validate(request: Message[Any]) -> None:
    """Check a request against the rules.

    Raises ConnectError: INVALID_ARGUMENT with a ``google.rpc.BadRequest``, which names the field,
    what is wrong with it and, as the reason, the rule. A rule about the whole message names no
    field. A oneof that has to be set is described by its members. At most the first 20 violations
    are named.
    """
    if found := list(_invalid_nanos(request)):
        raise _invalid(found)
    violations = protovalidate.collect_violations(request, fail_fast=True)
    if not violations:
        return
    # In a list that is too long, a check of each element would take a second.
    if violations[0].proto.rule_id != "repeated.max_items":
        violations = protovalidate.collect_violations(request)
    raise _refusal(request, violations[:_MAX_VIOLATIONS])


def _refusal(request: Message[Any], violations: list[protovalidate.Violation]) -> ConnectError:
    found = [
        BadRequest.FieldViolation(
            field=".".join(part.field_name for part in violation.proto.field.elements)
            if violation.proto.field
            else "",
            description=_description(request, violation).replace("\0", "U+0000"),
            reason=violation.proto.rule_id.upper().replace(".", "_"),
        )
        for violation in violations
    ]
    return _invalid(found)


def _invalid(found: list[BadRequest.FieldViolation]) -> ConnectError:
    summary = "; ".join(f"{each.field} {each.description}".lstrip() for each in found)
    return ConnectError(Code.INVALID_ARGUMENT, summary, [BadRequest(field_violations=found)])


@cache
def _times(message: DescMessage) -> tuple[str, ...]:
    """Return the names of the fields of ``message`` that are timestamps or durations."""
    return tuple(
        field.name
        for field in message.fields
        if isinstance(field.value, DescFieldValueMessage)
        and field.value.message.type_name in (_TIMESTAMP, _DURATION)
    )


def _invalid_nanos(request: Message[Any]) -> Iterator[BadRequest.FieldViolation]:
    """Yield a violation for each time with nanos that only the binary format can express.

    The range of nanos is in the comments of ``google/protobuf/timestamp.proto`` and
    ``duration.proto``.
    """
    for name in _times(request.desc()):
        match getattr(request, name):
            case Timestamp(nanos=nanos) if not 0 <= nanos < _SECOND:
                description = "must have nanos from 0 to 999999999"
                reason = "TIMESTAMP_NANOS"
            case Duration(seconds=seconds, nanos=nanos) if (
                not -_SECOND < nanos < _SECOND or seconds * nanos < 0
            ):
                description = (
                    "must have nanos from -999999999 to 999999999, of the same sign as seconds"
                )
                reason = "DURATION_NANOS"
            case _:
                continue
        yield BadRequest.FieldViolation(field=name, description=description, reason=reason)


def _description(request: Message[Any], violation: protovalidate.Violation) -> str:
    oneof = _oneof(request.desc(), violation)
    if oneof is None:
        return violation.proto.message
    return f"is required: set one of {member_names(oneof)}"


def _oneof(message: DescMessage, violation: protovalidate.Violation) -> DescOneof | None:
    """Return the oneof of ``message``, or of a message in it, that ``violation`` is of, if any."""
    if violation.proto.rule_id != "required" or not violation.proto.field:
        return None
    *parents, last = (part.field_name for part in violation.proto.field.elements)
    for parent in parents:
        field = next((each for each in message.fields if each.name == parent), None)
        match field and field.value:
            case (
                DescFieldValueMessage(message=DescMessage() as inner)
                | DescFieldValueList(element=DescMessage() as inner)
                | DescFieldValueMap(value=DescMessage() as inner)
            ):
                message = inner
            case _:
                return None
    return next((each for each in message.oneofs if each.name == last), None)
