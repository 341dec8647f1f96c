"""The migrations to the states of payments, and what tests of them read."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import psycopg
from yoyo import read_migrations

from persistence import migrations
from persistence.schema import migrations_directory
from persistence.yoyo_backend import ListingsBackend
from tests.support import databases, version_0_1
from tests.support.orders import Orders

MIGRATIONS: Final = (
    "20261130000001_create_status_words",
    "20261130000002_add_payment_states",
    "20261130000003_create_refused_payment_events",
    "20261130000004_index_payment_states",
    "20261130000005_index_replaced_references",
    "20261201000001_create_payment_history_epochs",
    "20261201000002_check_ledger_texts",
)
WORDS, STATES = MIGRATIONS[:2]
NEVER_BEGUN: Final = {"payment_state": None, "payment_status_since": None}
UPDATED: Final = datetime(2026, 1, 2, tzinfo=UTC)
TIMES: Final = {"created_at": UPDATED - timedelta(days=1), "updated_at": UPDATED}


def undone(url: str) -> str:
    """Give the database at ``url`` the schema of the version before, and return ``url``."""
    assert migrations.down(url, version_0_1.MIGRATION) == list(MIGRATIONS[::-1])
    return url


def module(name: str) -> Any:
    for migration in read_migrations(str(migrations_directory())):
        if migration.id == name:
            migration.load()
            return migration.module
    raise AssertionError(f"there is no {name}")


def derived(url: str, order_id: int) -> dict[str, Any]:
    row = Orders(url).row(order_id)
    return {name: row[name] for name in NEVER_BEGUN}


def words_in_force(url: str) -> list[tuple[Any, ...]]:
    with psycopg.connect(url) as connection:
        rows = connection.execute("SELECT word, state, reverses FROM status_words").fetchall()
    return sorted(rows)


@contextmanager
def version_before() -> Iterator[str]:
    """Yield the URL of a database that has never had these migrations."""
    kept = migrations.up_to(version_0_1.MIGRATION)
    with databases.empty() as url:
        with ListingsBackend.open(url) as backend, backend.lock():
            every = read_migrations(str(migrations_directory()))
            backend.apply_migrations(every.filter(lambda each: each.id in kept))
        yield url
