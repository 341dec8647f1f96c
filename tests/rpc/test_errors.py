"""Messages of transient errors, for the update and for methods without side effects."""

from typing import Any

import pytest
from connectrpc.errors import ConnectError
from connectrpc.method import IdempotencyLevel, MethodInfo

from persistence import errors
from server.gen.listings.v1.orders_connect import OrderService, OrderServiceASGIApplication
from server.gen.listings.v1.orders_pb import UpdateOrderPaymentRequest
from server.rpc.errors import connect_error, keys_unavailable, may_write, overloaded, writing_paths

UPDATE = "/listings.v1.OrderService/UpdateOrderPayment"

NOT_WRITTEN = "nothing was written; try again"
MAYBE_WRITTEN = "an update may or may not have been made; send the same again"
MAYBE_WRITTEN_WITHOUT_KEY = (
    "an update may or may not have been made, and has no payment_idempotency_key; read the order "
    "before you send it again"
)
WITH_KEY = UpdateOrderPaymentRequest(order_id=1, payment_idempotency_key="evt_1")
WITHOUT_KEY = UpdateOrderPaymentRequest(order_id=1)

TRANSIENT = {
    errors.DatabaseFull: NOT_WRITTEN,
    errors.DatabaseReadOnly: NOT_WRITTEN,
    errors.RefusalNotRecorded: NOT_WRITTEN,
    errors.DatabaseUnreachable: NOT_WRITTEN,
    errors.DatabaseUnavailable: MAYBE_WRITTEN,
    errors.DatabaseTimeout: MAYBE_WRITTEN,
    errors.TransactionConflict: NOT_WRITTEN,
}


class Unserved(OrderService):
    """The methods of the proto file, not implemented."""


def methods() -> dict[str, MethodInfo[Any, Any]]:
    application = OrderServiceASGIApplication(Unserved())
    return {path: each.method for path, each in application._endpoints(Unserved()).items()}


METHODS = methods()
READS = sorted(METHODS.keys() - {UPDATE})


def info(path: str) -> MethodInfo[Any, Any]:
    return METHODS[path]


def test_only_the_update_writes() -> None:
    assert writing_paths(OrderService.desc()) == {UPDATE}
    assert {path for path in METHODS if may_write(info(path))} == {UPDATE}
    assert len(READS) == 8
    for path in READS:
        assert info(path).idempotency_level is IdempotencyLevel.NO_SIDE_EFFECTS


@pytest.mark.parametrize("kind", TRANSIENT)
def test_a_transient_error_of_an_update_says_what_was_written(
    kind: type[errors.PersistenceError],
) -> None:
    outcome = TRANSIENT[kind]
    with_key = connect_error(kind("it failed"), info(UPDATE), WITH_KEY)
    assert with_key.message == f"{kind('it failed')}; {outcome}"
    without = connect_error(kind("it failed"), info(UPDATE), WITHOUT_KEY)
    outcome = MAYBE_WRITTEN_WITHOUT_KEY if outcome == MAYBE_WRITTEN else outcome
    assert without.message == f"{kind('it failed')}; {outcome}"


@pytest.mark.parametrize("path", READS)
@pytest.mark.parametrize("kind", TRANSIENT)
def test_a_transient_error_of_a_read_has_the_code_and_details_of_an_update_with_a_key(
    kind: type[errors.PersistenceError], path: str
) -> None:
    error = connect_error(kind("it failed"), info(path))
    update = connect_error(kind("it failed"), info(UPDATE), WITH_KEY)
    assert error.message == f"{kind('it failed')}; try again"
    assert error.code is update.code
    assert [each.message_bytes for each in error.details] == [
        each.message_bytes for each in update.details
    ]


@pytest.mark.parametrize("path", METHODS)
def test_an_unknown_exception_is_an_internal_error_without_its_text(path: str) -> None:
    assert connect_error(RuntimeError("secret"), info(path)).message == "internal error"


def test_rejections_before_a_method_runs() -> None:
    found: list[ConnectError] = [
        *(overloaded(writes=writes) for writes in (True, False)),
        *(keys_unavailable("no keys", writes=writes) for writes in (True, False)),
    ]
    assert [each.message for each in found] == [
        f"too many calls are waiting; {NOT_WRITTEN}",
        "too many calls are waiting; try again",
        f"no keys; {NOT_WRITTEN}",
        "no keys; try again",
    ]
