"""``listings refused purge``: which refused events it deletes."""

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Final

import psycopg
import pytest

from persistence import refused_purge
from persistence.database import Database
from persistence.decision import Reason
from persistence.errors import MaintenanceError
from persistence.history import PaymentHistory
from persistence.models import Origin, PaymentUpdate
from persistence.payment_states import Meaning, PaymentState
from persistence.refused_events import Refusal, RefusedEvents
from persistence.refused_purge import OldEvents, count, purge
from tests.support import databases, far_times
from tests.support.history import connect
from tests.support.orders import Orders

pytestmark = pytest.mark.anyio

# Reason of what was refused, and what its status means: of money, then others.
MONEY: Final = [
    (Reason.STATUS_REFUSED, PaymentState.PAID),
    (Reason.LATE, PaymentState.RETURNED),
    (Reason.DUPLICATE, PaymentState.AUTHORIZED),
    (Reason.CURRENCY_MISMATCH, PaymentState.PENDING),
    (Reason.CURRENCY_MISMATCH, None),
    (Reason.KEY_REUSED, PaymentState.REFUNDED),
]
OTHERS: Final = [
    (Reason.STATUS_UNKNOWN, PaymentState.UNKNOWN),
    (Reason.ATTEMPT_NOT_CURRENT, PaymentState.FAILED),
    (Reason.KEY_REUSED, None),
]


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    async with databases.pool(database_url) as database:
        yield database


async def refuse(
    database: Database, order_id: int, reason: Reason, state: PaymentState | None
) -> None:
    update = PaymentUpdate(payment_idempotency_key=f"evt_{order_id}")
    meaning = None if state is None else Meaning(state)
    refusal = Refusal(reason, order_id, None, update, meaning)
    await RefusedEvents(database).record(refusal, Origin("r"))


def left(url: str) -> list[int]:
    with connect(url) as connection:
        rows = connection.execute("SELECT order_id FROM refused_payment_events ORDER BY id")
        return [row["order_id"] for row in rows]


@pytest.mark.parametrize("batch", [1, 3, 1_000])
async def test_old_ones_are_deleted_and_those_of_money_on_request(
    database_url: str, database: Database, monkeypatch: pytest.MonkeyPatch, batch: int
) -> None:
    monkeypatch.setattr(refused_purge, "_BATCH", batch)
    for number, (reason, state) in enumerate(MONEY + OTHERS):
        await refuse(database, number, reason, state)
    cutoff = datetime.now(UTC)
    await refuse(database, 100, *OTHERS[0])
    await refuse(database, len(MONEY), *OTHERS[0])  # once more: it is not old
    old = OldEvents(others=len(OTHERS) - 1, money=len(MONEY))
    assert await count(database_url, cutoff) == old

    assert await purge(database_url, cutoff, money=False) == old.others
    kept = [*range(len(MONEY) + 1), 100]
    assert left(database_url) == kept
    assert await purge(database_url, cutoff, money=False) == 0
    assert await purge(database_url, cutoff, money=True) == old.money
    assert left(database_url) == [len(MONEY), 100]
    assert await count(database_url, cutoff) == OldEvents(0, 0)


async def test_the_last_event_of_all_stays(database_url: str, database: Database) -> None:
    """Positions have a mark of it."""
    await refuse(database, 1, *OTHERS[0])
    await refuse(database, 2, *OTHERS[0])
    history = PaymentHistory(database)
    position = await history.durable(None)
    later = datetime.now(UTC) + timedelta(days=1)
    assert await count(database_url, later) == OldEvents(1, 0)
    assert await purge(database_url, later, money=True) == 1
    assert left(database_url) == [2]
    assert await history.checked(position) == position
    Orders(database_url).add(payment_status="paid")
    assert await purge(database_url, later, money=True) == 1


async def test_nothing_else_deletes_them(database_url: str, database: Database) -> None:
    await refuse(database, 1, *OTHERS[0])
    Orders(database_url).add(payment_status="paid")
    later = datetime.now(UTC) + timedelta(days=1)
    with pytest.raises(MaintenanceError, match="LISTINGS_MIGRATION_DATABASE_URL"):
        await purge(databases.for_service(database_url), later, money=True)
    assert await purge(database_url, later, money=True) == 1
    await refuse(database, 1, *OTHERS[0])
    with (
        connect(database_url) as connection,
        pytest.raises(psycopg.errors.InsufficientPrivilege),
    ):
        connection.execute("DELETE FROM refused_payment_events")
    assert left(database_url) == [1]


@pytest.mark.parametrize("batch", [1, 1_000])
async def test_times_that_a_datetime_cannot_hold(
    database_url: str, monkeypatch: pytest.MonkeyPatch, batch: int
) -> None:
    monkeypatch.setattr(refused_purge, "_BATCH", batch)
    with connect(database_url) as connection:
        for number, moment in enumerate(sorted(far_times.EDGES)):
            connection.execute(
                "INSERT INTO refused_payment_events (order_id, digest, written, tells_of_money,"
                " reason, request_id, first_refused_at, last_refused_at)"
                " VALUES (%s, gen_random_uuid(), false, false, 'PAYMENT_EVENT_LATE', 'r', %s, %s)",
                (number, *[far_times.text(moment)] * 2),
            )
    old = sum(moment < 0 for moment in far_times.EDGES)
    now = datetime.now(UTC)
    assert await count(database_url, now) == OldEvents(others=old, money=0)
    assert await purge(database_url, now, money=False) == old
    assert left(database_url) == list(range(old, len(far_times.EDGES)))
