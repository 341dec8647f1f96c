"""What a caller is told when something goes wrong, and what only the log is told."""

import logging
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from connectrpc.code import Code
from connectrpc.errors import ConnectError
from connectrpc.request import RequestContext
from protobuf.wkt import Duration

from persistence import errors
from server.gen.google.rpc.error_details_pb import ErrorInfo, RetryInfo

_DOMAIN = "listings.v1"
_RETRY_DELAY = RetryInfo(retry_delay=Duration(seconds=1))

# What may succeed when it is tried again, and says so.
_PASSING = {
    errors.DatabaseUnavailable: (
        Code.UNAVAILABLE,
        "the database cannot be reached; try again",
        [_RETRY_DELAY],
    ),
    errors.DatabaseTimeout: (
        Code.DEADLINE_EXCEEDED,
        "the database took too long; try again",
        [],
    ),
    errors.TransactionConflict: (
        Code.ABORTED,
        "a concurrent change stood in the way; try again",
        [_RETRY_DELAY],
    ),
}

_Request = TypeVar("_Request")
_Response = TypeVar("_Response")

_log = logging.getLogger(__name__)


class ErrorInterceptor:
    """Turns whatever a handler raises into a Connect error.

    Stands outermost. Without it the runtime answers UNKNOWN with the exception's text, which may
    hold SQL, a host name or a password.
    """

    async def intercept_unary(
        self,
        call_next: Callable[[_Request, RequestContext[_Request, _Response]], Awaitable[_Response]],
        request: _Request,
        ctx: RequestContext[_Request, _Response],
    ) -> _Response:
        """Hand ``request`` on, and translate what is raised."""
        try:
            return await call_next(request, ctx)
        except ConnectError:
            raise
        except Exception as error:
            raise _connect_error(error, ctx) from error


def _connect_error(error: Exception, ctx: RequestContext[Any, Any]) -> ConnectError:
    match error:
        case errors.OrderNotFound():
            return ConnectError(Code.NOT_FOUND, str(error))
        case errors.IdempotencyKeyReused():
            info = ErrorInfo(
                reason="IDEMPOTENCY_KEY_REUSED",
                domain=_DOMAIN,
                metadata={"order_id": str(error.order_id)},
            )
            return ConnectError(
                Code.ALREADY_EXISTS, "payment_idempotency_key belongs to another order", [info]
            )
        case errors.InvalidValue():
            return ConnectError(Code.INVALID_ARGUMENT, "a value cannot be stored as it came")
    for kind, (code, message, details) in _PASSING.items():
        if isinstance(error, kind):
            _log.warning("%s: %s (%s)", ctx.method.name, error, error.__cause__)
            return ConnectError(code, message, details)
    _log.error("%s failed", ctx.method.name, exc_info=error)
    return ConnectError(Code.INTERNAL, "internal error")
