"""The migration that adds CHECKs: on rows that do not comply, and on tables in use."""

import logging
import re
from concurrent.futures import ThreadPoolExecutor
from typing import Final

import psycopg
import pytest
from psycopg import errors

from persistence import migration_support, migrations
from persistence.errors import MigrationError
from tests.support.history import connect, events
from tests.support.objects import catalog
from tests.support.orders import Orders
from tests.support.state_migrations import MIGRATIONS
from tests.support.waiting import eventually, lock_waits

CHECKS, BEFORE = MIGRATIONS[-1], MIGRATIONS[-2]
ADDED: Final = {
    ("orders", "orders_updated_at_in_range"),
    ("order_payment_events", "order_payment_events_texts_bounded"),
    ("refused_payment_events", "refused_payment_events_texts_bounded"),
}
FAR: Final = "10000-01-01 00:00:00+00"


@pytest.fixture
def unchecked_url(database_url: str) -> str:
    """The URL of a database without the CHECKs."""
    assert migrations.down(database_url, BEFORE) == [CHECKS]
    return database_url


def checks(url: str) -> dict[tuple[str, str], bool]:
    """Return the CHECKs, and whether each holds for all rows."""
    with connect(url) as connection:
        rows = connection.execute(
            "SELECT conrelid::regclass::text AS table, conname AS name, convalidated"
            " FROM pg_constraint"
            " WHERE contype = 'c'"
        ).fetchall()
    found = {(row["table"], row["name"]): row["convalidated"] for row in rows}
    return {each: found[each] for each in ADDED if each in found}


def add_event(url: str, **texts: str) -> None:
    values: dict[str, object] = {
        "order_id": 1,
        "storefront_id": 1,
        "payment_status_after": "paid",
    } | texts
    insert_into(url, "order_payment_events", values)


def add_refused(url: str, **texts: str) -> None:
    values: dict[str, object] = {
        "order_id": 1,
        "digest": f"{len(str(texts)):032x}",
        "written": False,
        "tells_of_money": False,
        "reason": "PAYMENT_EVENT_LATE",
        "request_id": "r",
    }
    insert_into(url, "refused_payment_events", values | texts)


def insert_into(url: str, table: str, values: dict[str, object]) -> None:
    names, places = ", ".join(values), ", ".join(["%s"] * len(values))
    with connect(url) as connection:
        statement = f"INSERT INTO {table} ({names}) VALUES ({places})"
        connection.execute(statement.encode(), list(values.values()))


def test_the_checks_hold_for_all_rows(database_url: str) -> None:
    assert checks(database_url) == dict.fromkeys(ADDED, True)
    add_event(database_url, request_id="\u00e9" * 128, caller="\u00e9" * 255)
    add_refused(database_url, request_id="\u00e9" * 128, caller="\u00e9" * 255)
    for add in (add_event, add_refused):
        for texts in ({"request_id": "x" * 129}, {"caller": "x" * 256}):
            with pytest.raises(errors.CheckViolation):
                add(database_url, **texts)
    orders = Orders(database_url)
    order_id = orders.add(updated_at="9999-12-31 23:59:59.999999+00")
    with pytest.raises(errors.CheckViolation):
        orders.change(order_id, updated_at="infinity")
    with pytest.raises(errors.CheckViolation):
        orders.add(updated_at=FAR)


def test_orders_whose_updated_at_cannot_move_forward(unchecked_url: str) -> None:
    """They are named, and nothing is refused until they are mended."""
    orders = Orders(unchecked_url)
    times = ("infinity", FAR, *["infinity"] * 11)
    far = [orders.add(updated_at=time) for time in times]
    usual = orders.add(updated_at="-infinity")
    kept = catalog(unchecked_url)

    with pytest.raises(MigrationError) as caught:
        migrations.up(unchecked_url)

    assert catalog(unchecked_url) == kept
    named = ", ".join(map(str, far[:10]))
    assert f"{named}, and 3 more" in str(caught.value)
    orders.change(far[0], status="shipped")
    mended = re.search(r"UPDATE orders .+(?=; then)", str(caught.value))
    assert mended
    with connect(unchecked_url) as connection:
        assert connection.execute(mended[0].encode()).rowcount == len(far)
    assert migrations.up(unchecked_url) == [CHECKS]
    assert checks(unchecked_url) == dict.fromkeys(ADDED, True)
    assert orders.value(f"SELECT updated_at::text FROM orders WHERE id = {usual}") == "-infinity"


def test_what_the_history_has_been_told_stays(
    unchecked_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    long = "x" * 1_000
    add_event(unchecked_url, caller=long)
    add_refused(unchecked_url, request_id=long)

    with caplog.at_level(logging.WARNING):
        migrations.up(unchecked_url)

    assert checks(unchecked_url) == {each: each[0] == "orders" for each in ADDED}
    (event,) = events(unchecked_url, 1)
    refused_id = Orders(unchecked_url).value("SELECT id FROM refused_payment_events")
    ids = {"order_payment_events": event["id"], "refused_payment_events": refused_id}
    assert [record.getMessage() for record in caplog.records] == [
        f"{table}_texts_bounded stays NOT VALID: rows of {table} do not comply, and are kept: {id_}"
        for table, id_ in ids.items()
    ]
    assert event["caller"] == long
    with pytest.raises(errors.CheckViolation):
        add_event(unchecked_url, caller=long)


def test_writers_do_not_wait_while_the_rows_are_checked(unchecked_url: str) -> None:
    """The lock of the other session is that of an autovacuum that must not be interrupted."""
    order_id = Orders(unchecked_url).add()
    with ThreadPoolExecutor(1) as pool, psycopg.connect(unchecked_url) as vacuuming:
        vacuuming.execute("LOCK TABLE order_payment_events IN SHARE UPDATE EXCLUSIVE MODE")
        running = pool.submit(migrations.up, unchecked_url)
        eventually(lambda: lock_waits(unchecked_url))
        with connect(unchecked_url) as writer:
            writer.execute("SET statement_timeout = '2s'")
            writer.execute("UPDATE orders SET payment_status = 'paid'")
        vacuuming.rollback()
        assert running.result(timeout=30) == [CHECKS]
    assert [event["payment_status_after"] for event in events(unchecked_url, order_id)] == ["paid"]


def test_a_row_that_comes_just_before_the_check(
    unchecked_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The CHECK is dropped again: it would refuse each change of the order."""
    orders = Orders(unchecked_url)
    add = migration_support.add_checks

    def add_late(*arguments: object) -> None:
        orders.add(updated_at="infinity")
        add(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(migration_support, "add_checks", add_late)
    with pytest.raises(MigrationError, match="UPDATE orders SET updated_at"):
        migrations.up(unchecked_url)
    assert checks(unchecked_url) == {}


def test_a_run_that_was_interrupted_is_continued(unchecked_url: str) -> None:
    with connect(unchecked_url) as connection:
        connection.execute(
            "ALTER TABLE orders ADD CONSTRAINT orders_updated_at_in_range"
            " CHECK (updated_at IS NOT NULL) NOT VALID"
        )
    assert migrations.up(unchecked_url) == [CHECKS]
    assert checks(unchecked_url) == dict.fromkeys(ADDED, True)
