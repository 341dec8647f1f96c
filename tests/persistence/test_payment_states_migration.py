"""The migrations to the states of payments: classification, locks, interruptions, rollbacks."""

import string
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import psycopg
import pytest
from yoyo import read_migrations

from persistence import migration_support, migrations
from persistence.errors import MigrationError
from persistence.payment_states import PaymentState
from persistence.schema import migrations_directory
from persistence.status_words import StatusWords
from persistence.yoyo_backend import ListingsBackend
from tests.support import databases, version_0_1
from tests.support.history import PAYMENT, connect, events
from tests.support.objects import catalog
from tests.support.orders import Orders
from tests.support.waiting import eventually, lock_waits

MIGRATIONS: Final = (
    "20261130000001_create_status_words",
    "20261130000002_add_payment_states",
    "20261130000003_create_refused_payment_events",
    "20261130000004_index_payment_states",
)
WORDS, STATES = MIGRATIONS[:2]
NEVER_BEGUN: Final = {"payment_state": None, "payment_status_since": None}
UPDATED: Final = datetime(2026, 1, 2, tzinfo=UTC)
TIMES: Final = {"created_at": UPDATED - timedelta(days=1), "updated_at": UPDATED}

_STATEMENTS_AT_MOST: Final = 100


class Killed(BaseException):
    """Raised to interrupt a migration."""


class Killable(psycopg.Connection[Any]):
    """A connection that is interrupted before its statement number ``last``."""

    last = -1
    ran = 0

    def execute(self, *args: Any, **options: Any) -> Any:
        """Run the statement, or raise Killed."""
        if self.ran == self.last:
            raise Killed
        self.ran += 1
        return super().execute(*args, **options)


@pytest.fixture
def live_url(database_url: str) -> str:
    """The URL of a database with the schema of the version before."""
    down = migrations.down(database_url, version_0_1.MIGRATION)
    assert down == list(MIGRATIONS[::-1])
    return database_url


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


@contextmanager
def open_reader(url: str) -> Iterator[psycopg.Connection[Any]]:
    """Yield a transaction that has read ``orders``, which ALTER TABLE waits for."""
    with psycopg.connect(url) as reader:
        reader.execute("SELECT FROM orders LIMIT 1")
        yield reader
        reader.rollback()


def waits_for_the_table(url: str) -> bool:
    with connect(url) as observer:
        waiting = observer.execute(
            "SELECT FROM pg_stat_activity WHERE datname = current_database()"
            " AND wait_event_type = 'Lock' AND query LIKE '%ACCESS EXCLUSIVE%'"
        )
        return waiting.fetchone() is not None


def spellings(word: str) -> Iterator[str]:
    yield word
    yield word.upper()
    yield " " + word.title() + "\v"
    yield "-".join((word[:2], word[2:])) + "\t\r\n\f"
    yield f"{word[:-1]}_{word[-1]}"


def test_each_word_in_each_spelling_gets_the_state_that_it_has_in_the_table(live_url: str) -> None:
    known = [each for word in StatusWords.builtin().meanings for each in spellings(word)]
    # Each letter alone, because a word that lacks one may be a word, too.
    unknown = [*string.ascii_letters, "", "-", "piad", "paid!", "zahlung", "bezahlt\xa0", "PAİD"]
    with connect(live_url) as connection, connection.cursor() as cursor:
        cursor.executemany(
            "INSERT INTO orders (order_number, buyer_id, storefront_id, currency, subtotal_amount,"
            " total_amount, payment_provider, payment_status)"
            " VALUES (gen_random_uuid()::text::varchar(32), 1, 1, 'EUR', 1, 1, 'any', %s)",
            [(word,) for word in known + unknown],
        )

    migrations.up(live_url)

    words = StatusWords.builtin()
    with psycopg.connect(live_url) as connection:
        found = connection.execute("SELECT payment_status, payment_state FROM orders").fetchall()
    assert sorted(found) == sorted((word, words.state(word)) for word in known + unknown)


def test_the_words_on_record_are_those_of_the_table(database_url: str) -> None:
    assert words_in_force(database_url) == sorted(
        (word, meaning.state.value, meaning.reverses and meaning.reverses.value)
        for word, meaning in StatusWords.builtin().meanings.items()
    )


def test_only_payments_that_have_begun_are_classified(live_url: str) -> None:
    orders = Orders(live_url)
    begun = [orders.add(**{name: value}, **TIMES) for name, value in PAYMENT.items()]
    waiting = orders.add(payment_provider="stripe", payment_status="pending", **TIMES)
    never = [orders.add(status="confirmed", **TIMES) for _ in range(3)]
    every = (*begun, waiting, *never)
    rows, history = {each: orders.row(each) for each in every}, events(live_url)

    migrations.up(live_url)

    for order_id in begun:
        state = 9 if rows[order_id]["payment_status"] == "paid" else 2
        assert derived(live_url, order_id) == {
            "payment_state": state,
            "payment_status_since": UPDATED,
        }
    assert derived(live_url, waiting)["payment_state"] == PaymentState.PENDING
    assert [derived(live_url, order_id) for order_id in never] == [NEVER_BEGUN] * 3
    for order_id, row in rows.items():
        assert row.items() <= orders.row(order_id).items()
    assert [each["id"] for each in events(live_url)] == [each["id"] for each in history]


def test_more_payments_than_one_batch(live_url: str) -> None:
    with connect(live_url) as connection:
        connection.execute(
            "INSERT INTO orders (id, order_number, buyer_id, storefront_id, currency,"
            " subtotal_amount, total_amount, payment_status) SELECT n * 3, n, 1, 1, 'EUR', 1, 1,"
            " CASE n % 4 WHEN 0 THEN 'pending' ELSE 'paid' END FROM generate_series(1, 5000) n"
        )

    migrations.up(live_url)

    with psycopg.connect(live_url) as connection:
        found = connection.execute(
            "SELECT payment_status, payment_state, count(*) FROM orders GROUP BY 1, 2 ORDER BY 1"
        ).fetchall()
    assert found == [("paid", 9, 3750), ("pending", None, 1250)]


def test_a_run_can_be_repeated_after_an_interruption_at_each_statement(live_url: str) -> None:
    """And each change that the version before makes meanwhile is in the history, once."""
    orders = Orders(live_url)
    changed, untouched = orders.add(payment_status="paid"), orders.add(**PAYMENT, **TIMES)
    words = ["paid"]
    for name in MIGRATIONS:
        apply = getattr(module(name), "add" if name == STATES else "create")
        for last in range(_STATEMENTS_AT_MOST):
            with Killable.connect(live_url, autocommit=True) as connection:
                connection.last = last
                with suppress(Killed):
                    apply(connection)
                    break
            words.append(f"word {len(words)}")
            orders.change(changed, payment_status=words[-1])
        # The rows of the words are not counted, and in one transaction with their table.
        assert last == 3 if name == WORDS else 3 < last < _STATEMENTS_AT_MOST - 1

    assert [each["payment_status_after"] for each in events(live_url, changed)] == words
    assert derived(live_url, untouched) == {"payment_state": 9, "payment_status_since": UPDATED}
    with databases.clone() as never_interrupted:
        assert catalog(live_url) == catalog(never_interrupted)
        assert words_in_force(live_url) == words_in_force(never_interrupted)
    migrations.up(live_url)
    with databases.clone() as never_interrupted:
        assert catalog(live_url) == catalog(never_interrupted)


def test_a_rollback_can_be_repeated_after_an_interruption_at_each_statement(
    database_url: str,
) -> None:
    for name in MIGRATIONS[::-1]:
        undo = getattr(module(name), "remove" if name == STATES else "drop")
        for last in range(_STATEMENTS_AT_MOST):
            with Killable.connect(database_url, autocommit=True) as connection:
                connection.last = last
                with suppress(Killed):
                    undo(connection)
                    break
        assert last == 2 if name == WORDS else 2 < last < _STATEMENTS_AT_MOST - 1
    with version_before() as url:
        assert catalog(database_url) == catalog(url)


def test_down_leaves_the_schema_of_the_version_before(database_url: str) -> None:
    full = catalog(database_url)
    with version_before() as url:
        before = catalog(url)
    for _ in range(2):
        migrations.down(database_url, version_0_1.MIGRATION)
        assert catalog(database_url) == before
        migrations.up(database_url)
        assert catalog(database_url) == full


def test_down_keeps_words_and_history_and_loses_what_is_derived(database_url: str) -> None:
    orders = Orders(database_url)
    order_id = orders.add(**PAYMENT, captured_amount=1, payment_state=9, **TIMES)
    orders.change(
        order_id, payment_status="disputed", payment_state=12, contested_from=10, refunded_amount=1
    )
    migrations.down(database_url, version_0_1.MIGRATION)
    assert orders.row(order_id)["payment_status"] == "disputed"
    assert [each["payment_status_after"] for each in events(database_url, order_id)] == [
        "paid",
        "disputed",
    ]
    orders.change(order_id, payment_transaction_id="by the version before")

    migrations.up(database_url)

    row = orders.row(order_id)
    lost = ("contested_from", "captured_amount", "refunded_amount", "payment_version")
    assert [row[name] for name in lost] == [None] * len(lost)
    assert derived(database_url, order_id) == {"payment_state": 12, "payment_status_since": UPDATED}
    assert len(events(database_url, order_id)) == 3


@pytest.mark.parametrize("direction", ["up", "down"])
def test_writers_do_not_wait_while_the_migration_waits_for_a_reader(
    live_url: str, direction: str
) -> None:
    """Neither other writers, nor the reader itself, once it writes."""
    orders = Orders(live_url)
    order_id = orders.add()
    if direction == "down":
        migrations.up(live_url)
        migrations.down(live_url, STATES)  # the later ones wait for readers, and no writer for them
    with ThreadPoolExecutor(1) as pool, open_reader(live_url) as reader:
        if direction == "up":
            running = pool.submit(migrations.up, live_url)
        else:
            running = pool.submit(migrations.down, live_url, version_0_1.MIGRATION)
        eventually(lambda: waits_for_the_table(live_url))
        with connect(live_url) as writer:
            writer.execute("SET statement_timeout = '2s'")
            writer.execute("UPDATE orders SET payment_status = 'failed'")
        eventually(lambda: waits_for_the_table(live_url))
        reader.execute("SET statement_timeout = '2s'")
        reader.execute("UPDATE orders SET payment_status = 'paid'")
        reader.commit()
        assert STATES in running.result(timeout=30)

    assert [each["payment_status_after"] for each in events(live_url, order_id)] == [
        "failed",
        "paid",
    ]


def test_without_a_gap_between_readers_nothing_is_changed(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(migration_support, "_CHANGE_SECONDS", 0.0)
    migrations.down(database_url, STATES)
    kept = catalog(database_url)
    with open_reader(database_url), pytest.raises(MigrationError, match="held a lock"):
        migrations.down(database_url, version_0_1.MIGRATION)
    assert catalog(database_url) == kept


def test_a_payment_that_changes_while_it_is_classified(database_url: str) -> None:
    """The classification waits for the row, and takes the new word."""
    order_id = Orders(database_url).add(payment_status="paid")
    with (
        ThreadPoolExecutor(1) as pool,
        psycopg.connect(database_url, autocommit=True) as classifying,
        psycopg.connect(database_url) as changing,
    ):
        changing.execute("UPDATE orders SET payment_status = 'refunded'")
        running = pool.submit(module(STATES)._classify, classifying)
        eventually(lambda: lock_waits(database_url))
        changing.commit()
        running.result(timeout=30)
    assert derived(database_url, order_id)["payment_state"] == PaymentState.REFUNDED
    assert len(events(database_url, order_id)) == 2


def test_autovacuum_gives_way(live_url: str) -> None:
    """Its lock is that of the first statement, and stays while the table is vacuumed."""
    with ThreadPoolExecutor(1) as pool, psycopg.connect(live_url) as vacuuming:
        vacuuming.execute("LOCK TABLE orders IN SHARE UPDATE EXCLUSIVE MODE")
        running = pool.submit(migrations.up, live_url)
        eventually(lambda: lock_waits(live_url))
        with connect(live_url) as writer:
            writer.execute("SET statement_timeout = '50ms'")
            for _ in range(20):
                writer.execute("UPDATE orders SET payment_status = 'failed'")
        vacuuming.rollback()
        assert running.result(timeout=30) == list(MIGRATIONS)


def test_triggers_of_the_shop(live_url: str) -> None:
    """One that sets updated_at leaves the age of a payment as it was."""
    order_id = Orders(live_url).add(**PAYMENT, **TIMES)
    with connect(live_url) as connection:
        connection.execute("""
            CREATE FUNCTION touch() RETURNS trigger LANGUAGE plpgsql AS $$
            BEGIN
                NEW.updated_at := now();
                RETURN NEW;
            END
            $$;
            CREATE TRIGGER a_touch BEFORE UPDATE ON orders FOR EACH ROW EXECUTE FUNCTION touch();
        """)

    migrations.up(live_url)

    assert derived(live_url, order_id) == {"payment_state": 9, "payment_status_since": UPDATED}
    Orders(live_url).change(order_id, payment_status="refunded")
    assert derived(live_url, order_id)["payment_state"] is None
    assert len(events(live_url, order_id)) == 2
    migrations.down(live_url, version_0_1.MIGRATION)


def test_an_order_that_is_inserted_with_a_payment_is_written_once(database_url: str) -> None:
    insert = (
        "INSERT INTO orders (order_number, buyer_id, storefront_id, currency, subtotal_amount,"
        " total_amount, updated_at, payment_status, payment_status_since)"
        " VALUES (gen_random_uuid()::text::varchar(32), 1, 1, 'EUR', 1, 1, %s, %s, %s)"
        " RETURNING id, ctid"
    )
    later = UPDATED + timedelta(days=1)
    for word, given, expected in (
        ("paid", None, UPDATED),
        ("paid", later, later),
        ("pending", None, None),
    ):
        with connect(database_url) as connection:
            written = connection.execute(insert, (UPDATED, word, given)).fetchone()
            assert written is not None
            found = connection.execute(
                "SELECT id, ctid, payment_status_since FROM orders WHERE id = %(id)s", written
            ).fetchone()
        assert found == written | {"payment_status_since": expected}
        assert len(events(database_url, written["id"])) == (word == "paid")


def test_a_payment_that_a_later_trigger_of_the_shop_brings(database_url: str) -> None:
    with connect(database_url) as connection:
        connection.execute("""
            CREATE FUNCTION by_invoice() RETURNS trigger LANGUAGE plpgsql AS $$
            BEGIN
                NEW.payment_provider := 'invoice';
                RETURN NEW;
            END
            $$;
            CREATE TRIGGER zz_by_invoice BEFORE INSERT ON orders
            FOR EACH ROW EXECUTE FUNCTION by_invoice();
        """)
    order_id = Orders(database_url).add()
    assert derived(database_url, order_id)["payment_status_since"] is not None
    assert len(events(database_url, order_id)) == 1


def test_an_owner_in_a_schema_of_its_own(empty_database_url: str) -> None:
    """Who is no superuser; names in public are not taken for those of the schema."""
    owner = f"owner_{uuid.uuid4().hex[:12]}"
    with connect(empty_database_url) as connection:
        connection.execute(f"CREATE ROLE {owner} LOGIN PASSWORD 'secret'")
        try:
            connection.execute(f'CREATE SCHEMA "Shop" AUTHORIZATION {owner}')
            connection.execute(f'ALTER ROLE {owner} SET search_path = "Shop", public')
            connection.execute("CREATE TABLE orders (id int); CREATE TABLE status_words (id int)")
            url = databases.with_role(empty_database_url, owner)
            migrations.up(url)
            order_id = Orders(url).add(**PAYMENT)
            Orders(url).change(order_id, payment_status="refunded")
            assert derived(url, order_id)["payment_state"] is None
            assert len(events(url, order_id)) == 2
            assert len(words_in_force(url)) == len(StatusWords.builtin().meanings)
            migrations.down(url, version_0_1.MIGRATION)
            migrations.up(url)
            assert derived(url, order_id)["payment_state"] == PaymentState.REFUNDED
        finally:
            connection.execute(f"DROP OWNED BY {owner} CASCADE")
            connection.execute(f"DROP ROLE {owner}")
