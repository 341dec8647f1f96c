"""The table of retries: complete, and the same in RetryInfo and in the pushback of gRPC."""

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest
from connectrpc.code import Code
from connectrpc.errors import ConnectError

from persistence import errors as persistence_errors
from persistence.errors import PersistenceError
from server.gen.google.rpc.error_details_pb import ErrorInfo, RetryInfo
from server.gen.listings.v1.orders_connect import OrderService, OrderServiceASGIApplication
from server.gen.listings.v1.orders_pb import GetOrderRequest, UpdateOrderPaymentRequest
from server.rpc.error_encoding import grpc_trailers
from server.rpc.errors import connect_error, keys_unavailable, overloaded, too_many_watches
from server.rpc.protocols import GRPC_WEB
from server.rpc.retries import NEVER, RETRIES, pushback_ms, retry_info

SERVER: Final = Path(__file__).parents[2] / "server"
RETRIED: Final = {retry.code for retry in RETRIES.values()}

WITHOUT_REASON: Final = {
    ("rpc/interceptors/unread.py", "RESOURCE_EXHAUSTED"),  # a request that is too large
    ("rpc/unrouted.py", "RESOURCE_EXHAUSTED"),  # one that says so by Expect
    ("rpc/fast_path.py", "DEADLINE_EXCEEDED"),  # its caller's
}
"""Errors that are not in the table, and so are never sent again."""


class Unserved(OrderService):
    """The methods of the proto file, not implemented."""


METHODS: Final = {
    path.rpartition("/")[2]: each.method
    for path, each in OrderServiceASGIApplication(Unserved())._endpoints(Unserved()).items()
}
UPDATE: Final = METHODS["UpdateOrderPayment"]
CALLS: Final[dict[str, tuple[Any, Any, bool]]] = {
    "read": (METHODS["GetOrder"], GetOrderRequest(order_id=1), True),
    "key": (UPDATE, UpdateOrderPaymentRequest(payment_idempotency_key="evt_1"), True),
    "no key": (UPDATE, UpdateOrderPaymentRequest(), False),
    "not read": (UPDATE, None, False),
}
"""Methods, requests, and whether they may be made twice."""


def exceptions() -> Iterator[PersistenceError]:
    """Yield one exception of each class that the methods may raise without parameters."""
    for kind in vars(persistence_errors).values():
        if isinstance(kind, type) and issubclass(kind, PersistenceError):
            try:
                yield kind("it failed")
            except TypeError:  # it has parameters: a refusal, with a code that is not retried
                continue
    yield persistence_errors.EtagMismatch(1)


def reason(error: ConnectError) -> str:
    (info,) = [each.value(ErrorInfo) for each in error.details if each.type_name == INFO]
    assert isinstance(info, ErrorInfo)
    return info.reason


INFO: Final = ErrorInfo.desc().type_name


def delay_ms(error: ConnectError) -> int | None:
    found = [each.value(RetryInfo) for each in error.details if each.type_name != INFO]
    if not found:
        return None
    (info,) = found
    assert isinstance(info, RetryInfo)
    assert info.retry_delay is not None
    return info.retry_delay.seconds * 1000 + info.retry_delay.nanos // 1_000_000


def check(error: ConnectError, *, repeatable: bool) -> None:
    """Check that an error has its row of the table, and follows it."""
    retry = RETRIES[reason(error)]
    assert error.code is retry.code
    allowed = retry.delay is not None and (repeatable or not retry.needs_key)
    assert (delay_ms(error) is not None) == allowed
    trailers = dict(grpc_trailers(error))
    expected = str(delay_ms(error) if allowed else NEVER)
    assert trailers[b"grpc-retry-pushback-ms"].decode() == expected
    assert b"grpc-retry-pushback-ms" not in dict(grpc_trailers(error, GRPC_WEB))


@pytest.mark.parametrize("call", CALLS)
def test_exceptions_of_methods(call: str) -> None:
    method, request, repeatable = CALLS[call]
    seen = set()
    for exception in exceptions():
        error = connect_error(exception, method, request)
        if error.code in RETRIED:
            check(error, repeatable=repeatable)
            seen.add(reason(error))
    elsewhere = {"OVERLOADED", "TOKEN_KEYS_UNAVAILABLE", "TOO_MANY_WATCHES"}
    assert seen == RETRIES.keys() - elsewhere, "every row has its error"


@pytest.mark.parametrize("writes", [True, False])
def test_errors_of_calls_that_have_not_begun(writes: bool) -> None:
    check(overloaded(writes=writes), repeatable=False)
    check(keys_unavailable("no keys", writes=writes), repeatable=False)
    check(too_many_watches(1), repeatable=False)


def test_an_update_whose_outcome_is_open_needs_a_key() -> None:
    assert retry_info("DATABASE_UNAVAILABLE", repeatable=False) is None
    assert retry_info("DATABASE_UNAVAILABLE", repeatable=True) is not None
    assert retry_info("DATABASE_UNREACHABLE", repeatable=False) is not None


@pytest.mark.parametrize("code", Code)
def test_an_error_without_a_reason_is_not_sent_again(code: Code) -> None:
    """Codes that no policy lists have no pushback: it would count in a retryThrottling."""
    assert pushback_ms(code, []) == (NEVER if code in RETRIED else None)


def test_no_other_error_has_these_codes() -> None:
    """Such an error would be sent again or not without a decision."""
    found = set()
    for module in SERVER.rglob("*.py"):
        name = module.relative_to(SERVER).as_posix()
        if not name.startswith("gen/"):
            found |= {(name, code) for code in raised(module)}
    assert found == WITHOUT_REASON


def raised(module: Path) -> Iterator[str]:
    """Yield those of these codes with which a module makes an error by itself."""
    names = {code.name for code in RETRIED}
    for node in ast.walk(ast.parse(module.read_bytes())):
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") != "Retry":
            values = [*node.args, *(each.value for each in node.keywords)]
            for value in values:
                if isinstance(value, ast.Attribute) and value.attr in names:
                    yield value.attr
