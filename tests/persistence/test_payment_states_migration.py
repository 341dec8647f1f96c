"""The migrations to the states of payments: what they classify, and what a rollback leaves."""

import string
import uuid
from collections.abc import Iterator

import psycopg

from persistence import migrations
from persistence.payment_states import PaymentState
from persistence.status_words import StatusWords
from tests.support import databases, version_0_1
from tests.support.history import PAYMENT, connect, events
from tests.support.objects import catalog
from tests.support.orders import Orders
from tests.support.state_migrations import (
    NEVER_BEGUN,
    TIMES,
    UPDATED,
    derived,
    version_before,
    words_in_force,
)


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
