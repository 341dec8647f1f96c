"""The record of refused events: what is in it, what only counts, and who may change it."""

from typing import Any, Final

import psycopg
import pytest

from persistence import errors, refused_events
from persistence.decision import Reason
from persistence.models import Origin, PaymentUpdate
from persistence.orders import OrderRepository
from persistence.payment_updates import Guard
from persistence.roles import APPLICATION
from tests.support import databases
from tests.support.history import connect, opened
from tests.support.orders import Orders
from tests.support.refused_updates import LATE_FAILURE, PAID, SECOND, refuse, refused

pytestmark = pytest.mark.anyio


async def paid(repository: OrderRepository, url: str) -> int:
    order_id = Orders(url).add(storefront_id=42)
    await repository.update_payment_info(order_id, PAID, Origin("first"))
    return order_id


async def test_a_refused_event_is_on_record(repository: OrderRepository, database_url: str) -> None:
    order_id = await paid(repository, database_url)
    before = Orders(database_url).row(order_id)
    update = SECOND._replace(
        payment_idempotency_key="evt_2", captured_amount=5, refunded_amount=1, currency="EUR"
    )

    reason = await refuse(repository, order_id, update, Origin("request-2", "webhooks"))

    (row,) = refused(database_url)
    requested = {name: row[name] for name in row if name in PaymentUpdate._fields}
    assert requested.items() <= update._asdict().items()
    of_order = {name: row[f"order_{name}"] for name in before if f"order_{name}" in row}  # and id
    assert of_order.items() <= before.items()
    assert len(of_order) == 9
    assert (row["order_id"], row["storefront_id"], row["written"]) == (order_id, 42, False)
    assert reason == row["reason"] == "PAYMENT_DUPLICATE"
    assert (row["requested_state"], row["order_payment_state"]) == (9, 9)
    assert (row["request_id"], row["caller"], row["times"]) == ("request-2", "webhooks", 1)
    assert row["first_refused_at"] <= row["last_refused_at"]
    assert Orders(database_url).row(order_id) == before


async def test_equal_events_are_counted(repository: OrderRepository, database_url: str) -> None:
    """Whatever their key, time and etag are, and however words are spelled."""
    order_id = await paid(repository, database_url)
    for number, (provider, word) in enumerate(
        [("stripe", "failed"), ("Stripe", "failed"), ("STR-ipe ", "Fai_led")]
    ):
        update = LATE_FAILURE._replace(
            payment_idempotency_key=f"evt_{number}",
            payment_provider=provider,
            payment_status=word,
        )
        assert await refuse(repository, order_id, update, Origin(f"{number}")) == (
            "PAYMENT_STATUS_REFUSED"
        )
    await refuse(repository, order_id, LATE_FAILURE._replace(payment_transaction_id="other"))

    first, other = refused(database_url)
    assert (first["times"], first["payment_idempotency_key"], first["request_id"]) == (
        *(3, "evt_0", "0"),
    )
    assert (first["payment_provider"], first["payment_status"]) == ("stripe", "failed")
    assert first["last_refused_at"] > first["first_refused_at"]
    assert (other["times"], other["payment_transaction_id"]) == (1, "other")


async def test_an_override_that_is_refused_has_its_reason_on_record(
    repository: OrderRepository, database_url: str
) -> None:
    order_id = await paid(repository, database_url)
    update = SECOND._replace(override_reason="the customer has called", currency="USD")
    for reason in ("the customer has called", "he has called again"):
        overridden = update._replace(override_reason=reason)
        assert await refuse(repository, order_id, overridden) == "PAYMENT_CURRENCY_MISMATCH"
    (row,) = refused(database_url)
    assert (row["override_reason"], row["times"]) == ("the customer has called", 2)


async def test_what_is_not_refused_is_not_on_record(
    repository: OrderRepository, database_url: str
) -> None:
    order_id = await paid(repository, database_url)
    with pytest.raises(errors.EtagMismatch):
        await repository.update_payment_info(
            order_id, LATE_FAILURE._replace(etag="0"), Origin("request")
        )
    with pytest.raises(errors.OrderNotFound):
        await repository.update_payment_info(10**15, LATE_FAILURE, Origin("request"))
    overridden = LATE_FAILURE._replace(override_reason="a mistake of the provider")
    await repository.update_payment_info(order_id, overridden, Origin("request"))
    assert refused(database_url) == []
    assert Orders(database_url).row(order_id)["payment_status"] == "failed"


@pytest.mark.parametrize(("guard", "count"), [(Guard.SHADOW, 1), (Guard.OFF, 0)])
async def test_the_guard_in_shadow_and_off(database_url: str, guard: Guard, count: int) -> None:
    async with opened(database_url) as database:
        repository = OrderRepository(database, guard=guard)
        order_id = await paid(repository, database_url)
        update = await repository.update_payment_info(order_id, LATE_FAILURE, Origin("request"))
        assert update.order.payment_status == "failed"
        assert (update.would_be_refused is not None) == bool(count)
        # A wrong currency is refused in any case.
        wrong = PaymentUpdate(captured_amount=1, currency="USD")
        assert await refuse(repository, order_id, wrong) == "PAYMENT_CURRENCY_MISMATCH"
    found = [(row["written"], row["reason"]) for row in refused(database_url)]
    assert found == [(True, "PAYMENT_STATUS_REFUSED")] * count + [
        (False, "PAYMENT_CURRENCY_MISMATCH")
    ]


async def test_what_the_shadow_has_written_is_no_second_payment(database_url: str) -> None:
    """A refund with an id of its own follows up on the payment that the order has."""
    provider = "allsecure"  # whose refunds have one
    paid = PAID._replace(payment_provider=provider)
    second = PaymentUpdate(payment_session_id="cs_2", payment_status="paid")
    refund = PaymentUpdate(
        payment_session_id="cs_3", payment_intent_id="pi_3", payment_status="refunded"
    )
    async with opened(database_url) as database:
        order_id = Orders(database_url).add()
        shadow = OrderRepository(database, guard=Guard.SHADOW)
        await shadow.update_payment_info(order_id, paid, Origin("first"))
        update = await shadow.update_payment_info(order_id, second, Origin("second"))
        assert update.would_be_refused is not None
        assert update.would_be_refused.reason is Reason.DUPLICATE
        found = await OrderRepository(database).update_payment_info(
            order_id, refund, Origin("refund")
        )
    assert found.order.payment_status == "refunded"


@pytest.mark.parametrize(
    ("word", "tells_of_money"),
    [
        ("failed", False),
        ("cancelled", False),
        ("returned", True),  # it leads to FAILED
        ("dispute_won", True),
        ("refund_failed", True),
    ],
)
async def test_what_tells_of_money_is_always_a_row(
    repository: OrderRepository,
    database_url: str,
    monkeypatch: pytest.MonkeyPatch,
    word: str,
    tells_of_money: bool,
) -> None:
    """By the meaning of the word, also on an order that is open."""
    monkeypatch.setattr(refused_events, "MAX_ROWS", 0)
    refused_events._is_full.cache_clear()
    order_id = Orders(database_url).add()
    await repository.update_payment_info(
        order_id, PAID._replace(payment_status="processing"), Origin("first")
    )
    other = PaymentUpdate(payment_intent_id="pi_2", payment_status=word)
    assert await refuse(repository, order_id, other) == "PAYMENT_ATTEMPT_NOT_CURRENT"
    refused_events._is_full.cache_clear()
    (row,) = refused(database_url)
    assert row["tells_of_money"] == tells_of_money
    assert row["payment_status"] == (word if tells_of_money else None)


async def test_an_order_has_no_more_rows_than_the_limit(
    repository: OrderRepository, database_url: str
) -> None:
    """Further events are counted by their reason; those that tell of money have rows."""
    order_id = await paid(repository, database_url)
    with connect(database_url) as connection:
        connection.execute(
            "INSERT INTO refused_payment_events"
            " (order_id, digest, written, tells_of_money, reason, request_id)"
            " SELECT %s, md5(n::text)::uuid, false, false, 'PAYMENT_EVENT_LATE', 'request'"
            " FROM generate_series(1, %s) n",
            (order_id, refused_events.MAX_ROWS - 1),
        )
    counted = refused_events.MAX_ROWS - 1
    await refuse(repository, order_id, LATE_FAILURE)  # the last row
    for number in range(3):
        further = LATE_FAILURE._replace(payment_transaction_id=f"{number}")
        await refuse(repository, order_id, further)
    await refuse(repository, order_id, LATE_FAILURE)
    await refuse(repository, order_id, PaymentUpdate(payment_status="piad"))
    await refuse(repository, order_id, SECOND)
    await refuse(repository, order_id, SECOND._replace(payment_status="refunded"))
    await refuse(repository, order_id, PaymentUpdate(captured_amount=1, currency="USD"))

    found = [
        (row["reason"], row["payment_status"], row["times"])
        for row in refused(database_url)[counted:]
    ]
    assert found == [
        ("PAYMENT_STATUS_REFUSED", "failed", 2),
        ("PAYMENT_STATUS_REFUSED", None, 3),
        ("PAYMENT_STATUS_UNKNOWN", None, 1),
        ("PAYMENT_DUPLICATE", "succeeded", 1),
        ("PAYMENT_ATTEMPT_NOT_CURRENT", "refunded", 1),
        ("PAYMENT_CURRENCY_MISMATCH", None, 1),
    ]


async def test_a_refusal_that_cannot_be_recorded_is_another_error(
    repository: OrderRepository, database_url: str
) -> None:
    order_id = await paid(repository, database_url)
    with connect(database_url) as connection:
        connection.execute(f"REVOKE INSERT ON refused_payment_events FROM {APPLICATION}")
    with pytest.raises(errors.RefusalNotRecorded):
        await repository.update_payment_info(order_id, LATE_FAILURE, Origin("request"))
    assert issubclass(errors.RefusalNotRecorded, errors.DatabaseUnavailable)
    assert Orders(database_url).row(order_id)["payment_status"] == "paid"


# Who may change the record.

CHANGES: Final = {
    "reason": "UPDATE refused_payment_events SET reason = 'PAYMENT_EVENT_LATE'",
    "caller": "UPDATE refused_payment_events SET times = times + 1, caller = 'somebody'",
    "delete": "DELETE FROM refused_payment_events",
    "truncate": "TRUNCATE refused_payment_events",
}


@pytest.fixture
def recorded(database_url: str) -> list[dict[str, Any]]:
    """The only row of the record."""
    with connect(database_url) as connection:
        connection.execute(
            "INSERT INTO refused_payment_events"
            " (order_id, digest, written, tells_of_money, reason, request_id)"
            " VALUES (1, gen_random_uuid(), false, true, 'PAYMENT_DUPLICATE', 'request')"
        )
    return refused(database_url)


@pytest.mark.parametrize("statement", CHANGES.values(), ids=CHANGES)
@pytest.mark.parametrize("role", [None, APPLICATION], ids=["owner", "application"])
def test_rows_of_the_record_cannot_be_changed(
    database_url: str, recorded: list[dict[str, Any]], role: str | None, statement: str
) -> None:
    url = database_url if role is None else databases.with_role(database_url, role)
    message = "can be added and counted" if role is None else "permission denied"
    with (
        psycopg.connect(url, autocommit=True) as connection,
        pytest.raises(psycopg.errors.InsufficientPrivilege, match=message),
    ):
        connection.execute(statement.encode())
    assert refused(database_url) == recorded


@pytest.mark.parametrize("role", [None, APPLICATION], ids=["owner", "application"])
def test_rows_of_the_record_can_be_counted(
    database_url: str, recorded: list[dict[str, Any]], role: str | None
) -> None:
    url = database_url if role is None else databases.with_role(database_url, role)
    with psycopg.connect(url) as connection:
        connection.execute(
            "UPDATE refused_payment_events"
            " SET times = times + 1, last_refused_at = clock_timestamp()"
        )
    (row,) = refused(database_url)
    assert row == recorded[0] | {"times": 2, "last_refused_at": row["last_refused_at"]}


def test_rows_of_the_record_are_deleted_by_a_purge_of_the_owner_alone(
    database_url: str, recorded: list[dict[str, Any]]
) -> None:
    del recorded
    statement = "SET LOCAL listings.purge = 'on'; DELETE FROM refused_payment_events"
    with (
        psycopg.connect(databases.with_role(database_url, APPLICATION)) as connection,
        pytest.raises(psycopg.errors.InsufficientPrivilege, match="permission denied"),
    ):
        connection.execute(statement)
    with psycopg.connect(database_url) as connection:
        connection.execute(statement)
    assert refused(database_url) == []
