"""The errors that callers get when the database fails, over every protocol."""

from collections.abc import Iterator

import psycopg
import pytest
from psycopg import sql

from server.gen.google.rpc.error_details_pb import ErrorInfo, RetryInfo
from server.gen.listings.v1.orders_pb import UpdateOrderPaymentRequest
from server.rpc.retries import RETRIES
from tests.support import databases, pooler, service
from tests.support.callers import CALLERS, Call, Failure
from tests.support.orders import Orders
from tests.support.service import Service
from tests.support.waiting import eventually, lock_waits

SECRET = "SELECT secret FROM host.example"


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A separate service: tests make its database unreachable and cause tracebacks in its log."""
    log = tmp_path_factory.mktemp("faults") / "log"
    with service.on_own_database(log, statement_timeout="0.5", pool_size="3") as running:
        yield running


@pytest.fixture(scope="module", params=CALLERS)
def call(request: pytest.FixtureRequest, running: Service) -> Iterator[Call]:
    with CALLERS[request.param](running.base_url) as call:
        yield call


@pytest.fixture
def orders(running: Service) -> Orders:
    return Orders(running.database_url)


def failure(call: Call, order_id: int, status: str = "paid") -> Failure:
    with pytest.raises(Failure) as caught:
        call(UpdateOrderPaymentRequest(order_id=order_id, payment_status=status))
    return caught.value


def fail_with(orders: Orders, sqlstate: str) -> None:
    """Make setting the status "fail" fail with that error."""
    with psycopg.connect(orders.url, autocommit=True) as connection:
        connection.execute(
            sql.SQL(
                """
                CREATE OR REPLACE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS $$
                BEGIN RAISE EXCEPTION USING errcode = {}, message = {}; END $$;
                CREATE OR REPLACE TRIGGER fail BEFORE UPDATE ON orders
                FOR EACH ROW WHEN (new.payment_status = 'fail') EXECUTE FUNCTION fail()
                """
            ).format(sqlstate, SECRET)
        )


@pytest.mark.parametrize("sqlstate", ["XX000", "P0001", "23505", "42501"])
def test_an_unexpected_error_is_internal_without_details(
    call: Call, orders: Orders, running: Service, sqlstate: str
) -> None:
    order_id = orders.add()
    fail_with(orders, sqlstate)
    before, logged = orders.row(order_id), running.log.stat().st_size

    found = failure(call, order_id, "fail")

    assert (found.code, found.message, found.details) == ("internal", "internal error", ())
    assert orders.row(order_id) == before
    log = running.log.read_bytes()[logged:].decode()
    assert SECRET in log
    assert "Traceback" in log


@pytest.mark.parametrize(
    ("sqlstate", "code", "reason"),
    [
        ("40001", "aborted", "TRANSACTION_CONFLICT"),
        ("40P01", "aborted", "TRANSACTION_CONFLICT"),
        ("57014", "deadline_exceeded", "DATABASE_TIMEOUT"),
        ("55P03", "deadline_exceeded", "DATABASE_TIMEOUT"),
        ("57P01", "unavailable", "DATABASE_UNAVAILABLE"),
        ("53100", "unavailable", "DATABASE_FULL"),
        ("25006", "unavailable", "DATABASE_READ_ONLY"),
    ],
)
def test_codes_and_details_of_transient_errors(
    call: Call, orders: Orders, sqlstate: str, code: str, reason: str
) -> None:
    order_id = orders.add()
    before = orders.row(order_id)
    fail_with(orders, sqlstate)

    found = failure(call, order_id, "fail")

    assert found.code == code
    assert SECRET not in found.message
    retry = [each for each in found.details if isinstance(each, RetryInfo)]
    assert len(retry) == (not RETRIES[reason].needs_key), "the update has no key"
    info = [each.reason for each in found.details if isinstance(each, ErrorInfo)]
    assert info == [reason]
    assert orders.row(order_id) == before


def test_a_statement_timeout_is_deadline_exceeded(call: Call, orders: Orders) -> None:
    order_id = orders.add()
    before = orders.row(order_id)
    with psycopg.connect(orders.url) as holder:
        holder.execute("SELECT FROM orders WHERE id = %s FOR UPDATE", (order_id,))
        assert failure(call, order_id).code == "deadline_exceeded"
        # The caller gets its error before PostgreSQL has cancelled the statement.
        eventually(lambda: lock_waits(orders.url) == 0)

    assert orders.row(order_id) == before
    assert call(UpdateOrderPaymentRequest(order_id=order_id, payment_status="paid")).success


def test_an_unreachable_database_is_unavailable(
    call: Call, orders: Orders, running: Service
) -> None:
    order_id = orders.add()
    request = UpdateOrderPaymentRequest(order_id=order_id, payment_status="paid")
    with databases.unreachable(orders.url):
        # The first may be sent on a connection that is lost, and not known to be lost yet.
        first, *found = [failure(call, order_id) for _ in range(5)]

    eventually(lambda: succeeds(call, request), 5)  # before a check may fail: other tests follow

    reasons = [each.reason for each in first.details if isinstance(each, ErrorInfo)]
    if not (pooler.is_used() and first.code == "deadline_exceeded"):
        assert first.code == "unavailable"
        assert reasons in (["DATABASE_UNREACHABLE"], ["DATABASE_UNAVAILABLE"])
    _, name = databases.server_and_name(orders.url)
    for each in found:
        assert name not in each.message
        if pooler.is_used() and each.code == "deadline_exceeded":
            continue  # PgBouncer queues its clients while it retries
        assert each.code == "unavailable"
        *retry, info = each.details
        assert isinstance(info, ErrorInfo)
        if pooler.is_used() and info.reason == "DATABASE_UNAVAILABLE":
            assert retry == []  # PgBouncer takes the statement, and then closes the connection
            continue
        assert info.reason == "DATABASE_UNREACHABLE"
        assert [type(detail) for detail in retry] == [RetryInfo]


def succeeds(call: Call, request: UpdateOrderPaymentRequest) -> bool:
    try:
        return bool(call(request).success)
    except Failure as failure:
        assert failure.code in ("unavailable", "deadline_exceeded")
        return False
