"""The rules written in the proto, enforced before a handler runs."""

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, TypeVar

import protovalidate
from connectrpc.code import Code
from connectrpc.errors import ConnectError
from connectrpc.request import RequestContext
from protobuf import Message

from server.gen.google.rpc.error_details_pb import BadRequest

_Request = TypeVar("_Request", bound=Message[Any])
_Response = TypeVar("_Response")


class ValidationInterceptor:
    """Refuses a request that breaks a ``buf.validate`` rule.

    The error is INVALID_ARGUMENT with a ``google.rpc.BadRequest``, which names the field, what is
    wrong with it and, as the reason, the rule. A rule about the whole message names no field.
    """

    async def intercept_unary(
        self,
        call_next: Callable[[_Request, RequestContext[_Request, _Response]], Awaitable[_Response]],
        request: _Request,
        ctx: RequestContext[_Request, _Response],
    ) -> _Response:
        """Validate ``request``, then hand it on."""
        _check(request)
        return await call_next(request, ctx)

    def intercept_server_stream(
        self,
        call_next: Callable[
            [_Request, RequestContext[_Request, _Response]], AsyncIterator[_Response]
        ],
        request: _Request,
        ctx: RequestContext[_Request, _Response],
    ) -> AsyncIterator[_Response]:
        """Validate ``request``, then hand it on."""
        _check(request)
        return call_next(request, ctx)


def _check(request: Message[Any]) -> None:
    if violations := protovalidate.collect_violations(request):
        raise _refusal(violations)


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
