"""The ``buf.validate`` rules in the proto, enforced before a method runs."""

from typing import Any, Final

import protovalidate
from connectrpc.code import Code
from connectrpc.errors import ConnectError
from protobuf import Message

from server.gen.google.rpc.error_details_pb import BadRequest

_MAX_VIOLATIONS: Final = 20  # gRPC clients accept a few KiB of trailers


def validate(request: Message[Any]) -> None:
    """Check a request against the rules.

    Raises ConnectError: INVALID_ARGUMENT with a ``google.rpc.BadRequest``, which names the field,
    what is wrong with it and, as the reason, the rule. A rule about the whole message names no
    field. At most the first 20 violations are named.
    """
    violations = protovalidate.collect_violations(request, fail_fast=True)
    if not violations:
        return
    # In a list that is too long, a check of each element would take a second.
    if violations[0].proto.rule_id != "repeated.max_items":
        violations = protovalidate.collect_violations(request)
    raise _refusal(violations[:_MAX_VIOLATIONS])


def _refusal(violations: list[protovalidate.Violation]) -> ConnectError:
    found = [
        BadRequest.FieldViolation(
            field=".".join(part.field_name for part in violation.proto.field.elements)
            if violation.proto.field
            else "",
            description=violation.proto.message.replace("\0", "U+0000"),
            reason=violation.proto.rule_id.upper().replace(".", "_"),
        )
        for violation in violations
    ]
    summary = "; ".join(f"{each.field} {each.description}".lstrip() for each in found)
    return ConnectError(Code.INVALID_ARGUMENT, summary, [BadRequest(field_violations=found)])
