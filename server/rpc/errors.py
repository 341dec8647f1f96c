"""Exceptions as errors of RPCs: the gRPC and Connect status code, the message and the details.

The access log has the cause of an error; see ``server.rpc.interceptors.access_log``.
"""

from datetime import datetime
from typing import Any, Final

from connectrpc.code import Code
from connectrpc.errors import ConnectError
from connectrpc.method import IdempotencyLevel, MethodInfo
from protobuf import DescService, Message
from protobuf.wkt.google.protobuf.descriptor_pb import MethodOptions

from persistence import errors
from persistence.decision import Reason, allowed_after
from server.gen.google.rpc.error_details_pb import BadRequest, ErrorInfo
from server.rpc.retries import RETRIES, retry_info

_DOMAIN: Final = "listings.v1"

# How messages of errors that may pass end: of a method that may write, they say what became of
# the update; of one without side effects, there is nothing to say.
_NOT_WRITTEN: Final = "nothing was written; try again"
_MAYBE_WRITTEN: Final = "an update may or may not have been made; send the same again"
_MAYBE_WRITTEN_WITHOUT_KEY: Final = (
    "an update may or may not have been made, and has no payment_idempotency_key; read the order "
    "before you send it again"
)
_NOTHING_TO_WRITE: Final = "try again"

# Errors that may pass, and their reasons. The first class that fits counts.
_TRANSIENT: Final = {
    errors.DatabaseFull: "DATABASE_FULL",
    errors.DatabaseReadOnly: "DATABASE_READ_ONLY",
    errors.RefusalNotRecorded: "REFUSAL_NOT_RECORDED",
    errors.DatabaseUnreachable: "DATABASE_UNREACHABLE",
    errors.DatabaseUnavailable: "DATABASE_UNAVAILABLE",
    errors.DatabaseTimeout: "DATABASE_TIMEOUT",
    errors.TransactionConflict: "TRANSACTION_CONFLICT",
}

# The reasons for which the metadata name the states that the order may move to: for others, it is
# not the order's state that decides.
_OF_MOVES: Final = (Reason.STATUS_REFUSED, Reason.STATUS_UNKNOWN)

_ON_RECORD: Final = "the order was not changed; the event is on record"


def may_write(method: MethodInfo[Any, Any]) -> bool:
    """Return whether the contract does not mark ``method`` as NO_SIDE_EFFECTS."""
    return method.idempotency_level is not IdempotencyLevel.NO_SIDE_EFFECTS


def writing_paths(service: DescService) -> frozenset[str]:
    """Return the paths of those methods of ``service`` that the contract lets write."""
    return frozenset(
        f"/{service.type_name}/{method.name}"
        for method in service.methods
        if method.idempotency != MethodOptions.IdempotencyLevel.NO_SIDE_EFFECTS
    )


def streaming_paths(service: DescService) -> frozenset[str]:
    """Return the paths of those methods of ``service`` whose responses are streams."""
    return frozenset(
        f"/{service.type_name}/{method.name}"
        for method in service.methods
        if method.method_kind != "unary"
    )


def is_repeatable(method: MethodInfo[Any, Any], request: object) -> bool:
    """Return whether ``request`` may be made twice: it only reads, or its update has a key."""
    return not may_write(method) or bool(getattr(request, "payment_idempotency_key", None))


def overloaded(*, writes: bool) -> ConnectError:
    """Return RESOURCE_EXHAUSTED for a call that is rejected because too many others wait.

    ``writes`` says whether the method may write.
    """
    text = f"too many calls are waiting; {_NOT_WRITTEN if writes else _NOTHING_TO_WRITE}"
    return _listed("OVERLOADED", text)


def unauthenticated(text: str, reason: str) -> ConnectError:
    """Return UNAUTHENTICATED, for a call without a valid token."""
    return ConnectError(Code.UNAUTHENTICATED, text, [_info(reason)])


def permission_denied(text: str, **metadata: str) -> ConnectError:
    """Return PERMISSION_DENIED, for an authenticated caller who lacks a permission."""
    return ConnectError(Code.PERMISSION_DENIED, text, [_info("PERMISSION_MISSING", **metadata)])


def keys_unavailable(text: str, *, writes: bool) -> ConnectError:
    """Return UNAVAILABLE, for a call whose token cannot be checked at present.

    ``writes`` says whether the method may write.
    """
    outcome = _NOT_WRITTEN if writes else _NOTHING_TO_WRITE
    return _listed("TOKEN_KEYS_UNAVAILABLE", f"{text}; {outcome}")


def host_not_allowed() -> ConnectError:
    """Return PERMISSION_DENIED, for a request whose Host or :authority is not allowed."""
    text = (
        "the host that this request names is not allowed: without tokens or client certificates, "
        "it must be localhost, a loopback address, LISTINGS_HOST or one of LISTINGS_ALLOWED_HOSTS"
    )
    return ConnectError(Code.PERMISSION_DENIED, text, [_info("HOST_NOT_ALLOWED")])


def invalid_field(field: str, description: str, reason: str) -> ConnectError:
    """Return INVALID_ARGUMENT for one field of a request, with a ``google.rpc.BadRequest``."""
    violation = BadRequest.FieldViolation(field=field, description=description, reason=reason)
    return ConnectError(
        Code.INVALID_ARGUMENT, f"{field} {description}", [BadRequest(field_violations=[violation])]
    )


def too_many_watches(limit: int) -> ConnectError:
    """Return RESOURCE_EXHAUSTED, for a watch of a caller who has ``limit`` watches already."""
    text = (
        f"the caller has {limit} watches here, the most that one may have; end one of them, or "
        "watch more orders with each"
    )
    return _listed("TOO_MANY_WATCHES", text, limit=str(limit))


def connect_error(
    error: Exception, method: MethodInfo[Any, Any], request: object = None
) -> ConnectError:
    """Return what a caller of ``method`` gets for ``error``.

    ``request`` is its message, None if it has not been read. A fault of the service is INTERNAL,
    and its text stays in the log.
    """
    if refusal := _refusal(error):
        return refusal
    reason = _reason_of(error)
    if reason is None:
        return ConnectError(Code.INTERNAL, "internal error")
    repeatable = is_repeatable(method, request)
    if not may_write(method):
        outcome = _NOTHING_TO_WRITE
    elif not RETRIES[reason].needs_key:
        outcome = _NOT_WRITTEN
    else:
        outcome = _MAYBE_WRITTEN if repeatable else _MAYBE_WRITTEN_WITHOUT_KEY
    return _listed(reason, f"{error}; {outcome}", repeatable=repeatable)


def _reason_of(error: Exception) -> str | None:
    """Return the reason of an error that may pass, None for others."""
    cause = error.__cause__ if isinstance(error, errors.RefusalNotRecorded) else None
    if isinstance(cause, errors.DatabaseFull | errors.DatabaseReadOnly):
        error = cause
    return next((reason for kind, reason in _TRANSIENT.items() if isinstance(error, kind)), None)


def _listed(reason: str, text: str, *, repeatable: bool = False, **metadata: str) -> ConnectError:
    """Return the error of a row of ``RETRIES``."""
    retry = retry_info(reason, repeatable=repeatable)
    details: list[Message[Any]] = [] if retry is None else [retry]
    return ConnectError(RETRIES[reason].code, text, [*details, _info(reason, **metadata)])


def _refusal(error: Exception) -> ConnectError | None:
    """Return the error for a caller who can do something about it, or None."""
    code, text, info = Code.FAILED_PRECONDITION, str(error), None
    match error:
        case errors.OrderNotFound() | errors.PaymentNotFound():
            code = Code.NOT_FOUND
        case errors.IdempotencyKeyReused():
            code = Code.ALREADY_EXISTS
            text = f"payment_idempotency_key has been used for another order; {_ON_RECORD}"
            info = _info(error.reason.value, order_id=str(error.order_id))
        case errors.EtagMismatch() | errors.HistoryChanged():
            return _aborted(error)
        case errors.PaymentEventRefused():
            text = f"{_explanation(error)}; {_ON_RECORD}"
            info = _info(error.reason.value, **_moves(error))
        case errors.PaymentAmbiguous():
            order_ids = ",".join(map(str, error.order_ids))
            info = _info("PAYMENT_REFERENCE_AMBIGUOUS", order_ids=order_ids)
        case errors.WatcherTooSlow():
            text = f"{error}; read faster, and go on with last_event_id"
            return _listed("WATCHER_TOO_SLOW", text)
        case errors.WatchEnded():
            text = "the server stops; go on with last_event_id at another one"
            return _listed("SERVER_STOPPING", text)
        case errors.InvalidPosition():
            return invalid_field(
                "last_event_id", "is not the event_id of a message here", "LAST_EVENT_ID_INVALID"
            )
        case errors.InvalidValue():
            code, text = Code.INVALID_ARGUMENT, "a value cannot be stored as it came"
        case _:
            return None
    return ConnectError(code, text, [info] if info else [])


def _aborted(error: errors.EtagMismatch | errors.HistoryChanged) -> ConnectError:
    """Return ABORTED, for a caller who has to read again what it has read."""
    if isinstance(error, errors.EtagMismatch):
        text = f"{error}; nothing was written: read it again"
        return _listed("ETAG_MISMATCH", text, order_id=str(error.order_id))
    text = (
        f"{error}; begin anew: watch without last_event_id, and read the orders again after the "
        "first message"
    )
    return _listed("HISTORY_CHANGED", text)


def _explanation(error: errors.PaymentEventRefused) -> str:
    """Return why the event is refused, with what was expected and what came."""
    order, update = error.order, error.update
    now, new = error.now.name, "nothing" if error.new is None else error.new.name
    match error.reason:
        case Reason.ATTEMPT_NOT_CURRENT:
            return f"the event is about another attempt than the one at which the order is {now}"
        case Reason.DUPLICATE:
            return f"another attempt is {new}, and the order is {now} already"
        case Reason.LATE:
            return (
                f"payment_event_time {_iso(update.payment_event_time)} is before "
                f"{_iso(order.payment_event_time)}, when the order became {now}"
            )
        case Reason.CURRENCY_MISMATCH:
            return f"currency {update.currency} is not {order.currency}, which the order is in"
        case Reason.STATUS_UNKNOWN:
            return (
                f'payment_status "{update.payment_status}" is not known, and does not replace {now}'
            )
        case _:
            return f"the payment is {now}, which may not become {new}"


def _iso(time: datetime | None) -> str:
    return "" if time is None else time.isoformat().replace("+00:00", "Z")


def _moves(error: errors.PaymentEventRefused) -> dict[str, str]:
    """Return the metadata of a refused event: where the payment stands, and may go."""
    moves = {
        "order_id": str(error.order.id),
        "from": error.order.payment_status,
        "from_state": error.now.name.lower(),
    }
    if error.reason in _OF_MOVES:
        moves["allowed"] = ",".join(state.name.lower() for state in allowed_after(error.now))
    if error.update.payment_status is not None and error.new is not None:
        moves |= {"to": error.update.payment_status, "to_state": error.new.name.lower()}
    return moves


def _info(reason: str, **metadata: str) -> ErrorInfo:
    return ErrorInfo(reason=reason, domain=_DOMAIN, metadata=metadata)
