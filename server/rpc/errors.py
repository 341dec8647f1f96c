"""What a caller is told when something goes wrong. The log is told the cause: see ``calls``."""

from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any, Final

from connectrpc.code import Code
from connectrpc.errors import ConnectError
from protobuf import Message
from protobuf.wkt import Duration

from persistence import errors
from server.gen.google.rpc.error_details_pb import BadRequest, ErrorInfo, RetryInfo
from server.rpc.interceptors.base import Context, Request, Response, StreamNext, UnaryNext

_DOMAIN = "listings.v1"
_RETRY_DELAY = RetryInfo(retry_delay=Duration(seconds=1))

# What may succeed when it is tried again, and says so: the code, what became of an update, and a
# reason where the message does not say it all. The first that fits.
_UNTOUCHED = "nothing was written; try again"
_UNKNOWN = "an update may or may not have been made; send the same again"
_PASSING: Final = {
    errors.DatabaseFull: (Code.UNAVAILABLE, _UNTOUCHED, "DATABASE_FULL"),
    errors.DatabaseReadOnly: (Code.UNAVAILABLE, _UNTOUCHED, "DATABASE_READ_ONLY"),
    errors.DatabaseUnreachable: (Code.UNAVAILABLE, _UNTOUCHED, None),
    errors.DatabaseUnavailable: (Code.UNAVAILABLE, _UNKNOWN, None),
    errors.DatabaseTimeout: (Code.DEADLINE_EXCEEDED, _UNKNOWN, None),
    errors.TransactionConflict: (Code.ABORTED, _UNTOUCHED, None),
}


class ErrorInterceptor:
    """Turns whatever a handler raises into a Connect error.

    Stands outermost. Without it the runtime answers UNKNOWN with the exception's text, which may
    hold SQL, a host name or a password.
    """

    async def intercept_unary(
        self,
        call_next: UnaryNext[Request, Response],
        request: Request,
        ctx: Context,
    ) -> Response:
        """Hand ``request`` on, and translate what is raised."""
        try:
            return await call_next(request, ctx)
        except ConnectError:
            raise
        except Exception as error:
            raise connect_error(error) from error

    async def intercept_server_stream(
        self,
        call_next: StreamNext[Request, Response],
        request: Request,
        ctx: Context,
    ) -> AsyncIterator[Response]:
        """Hand ``request`` on, and translate what is raised, in the stream or before it."""
        try:
            async with aclosing(call_next(request, ctx)) as responses:
                async for response in responses:
                    yield response
        except ConnectError:
            raise
        except Exception as error:
            raise connect_error(error) from error


def overloaded() -> ConnectError:
    """Return RESOURCE_EXHAUSTED for a call that finds too many others waiting."""
    text = f"too many calls are waiting; {_UNTOUCHED}"
    return ConnectError(Code.RESOURCE_EXHAUSTED, text, [_RETRY_DELAY, _info("OVERLOADED")])


def unauthenticated(text: str, reason: str) -> ConnectError:
    """Return UNAUTHENTICATED, for a call without a token that is good."""
    return ConnectError(Code.UNAUTHENTICATED, text, [_info(reason)])


def permission_denied(text: str, **metadata: str) -> ConnectError:
    """Return PERMISSION_DENIED, for a caller who is known, and may not do this."""
    return ConnectError(Code.PERMISSION_DENIED, text, [_info("PERMISSION_MISSING", **metadata)])


def unavailable(text: str) -> ConnectError:
    """Return UNAVAILABLE, for what may succeed soon, and has not begun."""
    return ConnectError(Code.UNAVAILABLE, f"{text}; {_UNTOUCHED}", [_RETRY_DELAY])


def invalid_field(field: str, description: str, reason: str) -> ConnectError:
    """Return INVALID_ARGUMENT for one field of a request, with a ``google.rpc.BadRequest``."""
    violation = BadRequest.FieldViolation(field=field, description=description, reason=reason)
    return ConnectError(
        Code.INVALID_ARGUMENT, f"{field} {description}", [BadRequest(field_violations=[violation])]
    )


def connect_error(error: Exception) -> ConnectError:
    """Return what a caller is told of ``error``, which is nothing, if it is the service's own."""
    if refusal := _refusal(error):
        return refusal
    for kind, (code, outcome, reason) in _PASSING.items():
        if isinstance(error, kind):
            details: list[Message[Any]] = [] if code is Code.DEADLINE_EXCEEDED else [_RETRY_DELAY]
            details += [_info(reason)] if reason else []
            return ConnectError(code, f"{error}; {outcome}", details)
    return ConnectError(Code.INTERNAL, "internal error")


def _refusal(error: Exception) -> ConnectError | None:
    """Return what a caller is told that can do something about ``error``."""
    code, text, info = Code.FAILED_PRECONDITION, str(error), None
    match error:
        case errors.OrderNotFound() | errors.PaymentNotFound():
            code = Code.NOT_FOUND
        case errors.IdempotencyKeyReused():
            code = Code.ALREADY_EXISTS
            used = "with other values" if error.same_order else "for another order"
            text = f"payment_idempotency_key has been used {used}"
            info = _info("IDEMPOTENCY_KEY_REUSED", order_id=str(error.order_id))
        case errors.PaymentStatusRefused():
            moves = {"from": error.current, "to": error.new, "allowed": ",".join(error.allowed)}
            info = _info("PAYMENT_STATUS_REFUSED", order_id=str(error.order_id), **moves)
        case errors.PaymentAmbiguous():
            info = _info("PAYMENT_REFERENCE_AMBIGUOUS")
        case errors.WatcherTooSlow():
            code = Code.RESOURCE_EXHAUSTED
            text = f"{error}; read faster, and go on with last_event_id"
            info = _info("WATCHER_TOO_SLOW")
        case errors.WatchEnded():
            text = "the server stops; go on with last_event_id at another one"
            return ConnectError(Code.UNAVAILABLE, text, [_RETRY_DELAY])
        case errors.InvalidPosition():
            return invalid_field(
                "last_event_id", "is not the event_id of a message here", "LAST_EVENT_ID_INVALID"
            )
        case errors.InvalidValue():
            code, text = Code.INVALID_ARGUMENT, "a value cannot be stored as it came"
        case _:
            return None
    return ConnectError(code, text, [info] if info else [])


def _info(reason: str, **metadata: str) -> ErrorInfo:
    return ErrorInfo(reason=reason, domain=_DOMAIN, metadata=metadata)
