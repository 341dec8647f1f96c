"""Which errors a caller may answer by sending the same call again, and after how long.

Clients of every protocol read it from the detail ``google.rpc.RetryInfo``. gRPC clients with a
``retryPolicy`` do not: they send a call again for its code alone, unless the trailer
``grpc-retry-pushback-ms`` says when, or by -1 that they must not.
https://github.com/grpc/proposal/blob/master/A6-client-retries.md#pushback

So each error with a code that such a policy may list has its row here. After an error with such a
code and without a reason, the call must not be sent again: its request is too large, or its
caller's deadline has passed.
``docs/api.md`` has the same table for callers.
"""

from collections.abc import Iterable, Mapping
from datetime import timedelta
from typing import Final, NamedTuple

from connectrpc.code import Code
from connectrpc.errors import ErrorDetail
from protobuf.wkt import Duration

from server.gen.google.rpc.error_details_pb import RetryInfo

NEVER: Final = -1
"""The pushback that forbids a client to send a call again."""

_SOON: Final = timedelta(seconds=1)


class Retry(NamedTuple):
    """Whether a call may be sent again after an error."""

    code: Code
    delay: timedelta | None
    """None if the same call must not be sent again."""
    needs_key: bool = False
    """Whether the error leaves open what became of an update, so that only one with a
    ``payment_idempotency_key`` may be sent again: it takes effect once."""


RETRIES: Final[Mapping[str, Retry]] = {
    "OVERLOADED": Retry(Code.RESOURCE_EXHAUSTED, _SOON),
    # Sent again as it is, a watch would go on from now, or read again what it has read.
    "WATCHER_TOO_SLOW": Retry(Code.RESOURCE_EXHAUSTED, None),
    "TOO_MANY_WATCHES": Retry(Code.RESOURCE_EXHAUSTED, None),
    "DATABASE_UNREACHABLE": Retry(Code.UNAVAILABLE, _SOON),
    "DATABASE_UNAVAILABLE": Retry(Code.UNAVAILABLE, _SOON, needs_key=True),
    "DATABASE_FULL": Retry(Code.UNAVAILABLE, _SOON),
    "DATABASE_READ_ONLY": Retry(Code.UNAVAILABLE, _SOON),
    "REFUSAL_NOT_RECORDED": Retry(Code.UNAVAILABLE, _SOON),
    "TOKEN_KEYS_UNAVAILABLE": Retry(Code.UNAVAILABLE, _SOON),
    "SERVER_STOPPING": Retry(Code.UNAVAILABLE, _SOON),
    "DATABASE_TIMEOUT": Retry(Code.DEADLINE_EXCEEDED, _SOON, needs_key=True),
    "TRANSACTION_CONFLICT": Retry(Code.ABORTED, _SOON),
    "ETAG_MISMATCH": Retry(Code.ABORTED, None),
    "HISTORY_CHANGED": Retry(Code.ABORTED, None),
}
"""By the reason in the error's ``google.rpc.ErrorInfo``."""

_CODES: Final = frozenset(each.code for each in RETRIES.values())


def retry_info(reason: str, *, repeatable: bool) -> RetryInfo | None:
    """Return the detail that allows a client to send a call again, or None if it must not.

    ``repeatable`` says whether the call may be made twice: it only reads, or its update has a key.
    """
    retry = RETRIES[reason]
    if retry.delay is None or (retry.needs_key and not repeatable):
        return None
    return RetryInfo(retry_delay=Duration.from_timedelta(retry.delay))


def pushback_ms(code: Code, details: Iterable[ErrorDetail]) -> int | None:
    """Return the value of ``grpc-retry-pushback-ms`` for an error.

    In milliseconds, as its ``RetryInfo`` has it; without one ``NEVER``, if a policy may list
    ``code``. None for other codes: with them, a pushback would count against the budget of a
    client's ``retryThrottling``.
    """
    for detail in details:
        if detail.type_name == RetryInfo.desc().type_name:
            delay = RetryInfo.from_binary(detail.message_bytes).retry_delay
            return delay.to_timedelta() // timedelta(milliseconds=1) if delay else 0
    return NEVER if code in _CODES else None
