"""Orders that are inserted with a payment."""

from datetime import timedelta

from tests.support.history import connect, events
from tests.support.orders import Orders
from tests.support.state_migrations import (
    UPDATED,
    derived,
)


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
