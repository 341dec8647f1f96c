"""The application role has exactly the privileges that the service needs."""

import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import psycopg
import pytest

from persistence import migrations
from persistence.errors import MigrationError
from persistence.models import OrderFilter, Origin
from persistence.orders import OrderRepository
from persistence.roles import APPLICATION, CALLED
from tests.support import cluster, databases
from tests.support.cluster import Cluster
from tests.support.history import (
    PAYMENT,
    after,
    connect,
    events,
    log_in,
    only_event,
    opened,
    update,
)
from tests.support.orders import Orders

RIGHTS = "20261125000001_grant_rights_to_listings_app"
LATER = [
    "20261130000001_create_status_words",
    "20261130000002_add_payment_states",
    "20261130000003_create_refused_payment_events",
    "20261130000004_index_payment_states",
    "20261130000005_index_replaced_references",
    "20261201000001_create_payment_history_epochs",
    "20261201000002_check_ledger_texts",
]

REFUSED = {
    "forge history": (
        "INSERT INTO order_payment_events (order_id, storefront_id, payment_status_after)"
        " VALUES (1, 1, 'paid')"
    ),
    "copy into history": "COPY order_payment_events FROM STDIN",
    "change history": "UPDATE order_payment_events SET caller = 'somebody'",
    "delete history": "DELETE FROM order_payment_events",
    "truncate history": "TRUNCATE order_payment_events",
    "insert an order": (
        "INSERT INTO orders (order_number, buyer_id, storefront_id, currency, subtotal_amount,"
        " total_amount) VALUES ('1', 1, 1, 'EUR', 1, 1)"
    ),
    "delete refused events": "DELETE FROM refused_payment_events",
    "truncate refused events": "TRUNCATE refused_payment_events",
    "change refused events": "UPDATE refused_payment_events SET caller = 'somebody'",
    "open an epoch": (
        "INSERT INTO payment_history_epochs (last_event_id, last_refused_event_id) VALUES (9, 9)"
    ),
    "change an epoch": "UPDATE payment_history_epochs SET last_event_id = 0",
    "delete epochs": "DELETE FROM payment_history_epochs",
    "truncate epochs": "TRUNCATE payment_history_epochs",
    "change a word": "UPDATE status_words SET state = 9",
    "add a word": "INSERT INTO status_words (state, word) VALUES (9, 'pending')",
    "delete words": "DELETE FROM status_words",
    "delete orders": "DELETE FROM orders",
    "truncate orders": "TRUNCATE orders",
    "change an amount": "UPDATE orders SET total_amount = 0",
    "change an id": "UPDATE orders SET id = id + 1",
    "change a status": "UPDATE orders SET payment_status = 'paid', status = 'shipped'",
    "mark a migration": "DELETE FROM _yoyo_migration",
    "make a table": "CREATE TABLE mine (id int)",
    "make a function": "CREATE FUNCTION mine() RETURNS int LANGUAGE sql AS 'SELECT 1'",
    "make a schema": "CREATE SCHEMA mine",
    "make a trigger": (
        "CREATE TRIGGER mine BEFORE UPDATE ON orders FOR EACH ROW"
        " EXECUTE FUNCTION refuse_change_of_order_payment_events()"
    ),
    "drop the trigger": "DROP TRIGGER payment_updated ON orders",
    "disable the trigger": "ALTER TABLE orders DISABLE TRIGGER payment_updated",
    "bypass the triggers": "SET session_replication_role = replica",
    "replace the trigger's function": (
        "CREATE OR REPLACE FUNCTION record_payment_change() RETURNS trigger"
        " LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'"
    ),
    "loosen the trigger's function": "ALTER FUNCTION record_payment_change() RESET ALL",
    "drop the trigger's function": "DROP FUNCTION record_payment_change() CASCADE",
    "become a superuser": f"ALTER ROLE {APPLICATION} SUPERUSER",
}


@pytest.fixture
def application(database_url: str) -> Iterator[psycopg.Connection]:
    """A connection of the application role, to a database that has a paid order."""
    Orders(database_url).add(**PAYMENT)
    with psycopg.connect(
        databases.with_role(database_url, APPLICATION), autocommit=True
    ) as connection:
        yield connection


@pytest.mark.parametrize("statement", REFUSED.values(), ids=REFUSED)
def test_statements_that_postgresql_denies_the_application_role(
    database_url: str, application: psycopg.Connection, statement: str
) -> None:
    """By missing privileges, not by a trigger."""
    kept = events(database_url), Orders(database_url).row(1)
    with pytest.raises(
        psycopg.errors.InsufficientPrivilege, match=r"permission denied|must be owner"
    ):
        application.execute(statement.encode())
    assert (events(database_url), Orders(database_url).row(1)) == kept


def test_the_role_cannot_attach_the_history_trigger_to_its_own_table(
    database_url: str, application: psycopg.Connection
) -> None:
    """Rows of such a table could record false events for any order."""
    kept = events(database_url)
    application.execute("CREATE TEMPORARY TABLE forged (LIKE orders)")
    with pytest.raises(psycopg.errors.InsufficientPrivilege, match="permission denied for func"):
        application.execute(
            "CREATE TRIGGER forge AFTER INSERT ON forged"
            " FOR EACH ROW EXECUTE FUNCTION record_payment_change()"
        )
    assert events(database_url) == kept


def test_the_trigger_function_ignores_the_search_path_of_the_session(
    database_url: str, application: psycopg.Connection
) -> None:
    """Even if the role may create functions, as in schema public before PostgreSQL 15."""
    with connect(database_url) as owner:
        owner.execute(f"CREATE SCHEMA loot AUTHORIZATION {APPLICATION}")
    application.execute(
        """
        CREATE FUNCTION loot.current_setting(text, boolean) RETURNS text LANGUAGE plpgsql AS $$
        BEGIN
            DELETE FROM public._yoyo_migration;
            RETURN 'looted';
        END $$
        """
    )
    application.execute("CREATE TEMPORARY TABLE order_payment_events (LIKE orders)")
    application.execute("SET search_path = loot, pg_temp, pg_catalog, public")

    application.execute("UPDATE public.orders SET payment_status = 'refunded'")

    assert events(database_url)[-1]["request_id"] is None
    assert after(events(database_url)[-1])["payment_status"] == "refunded"
    assert all(each.applied_at for each in migrations.status(database_url))


@pytest.mark.anyio
async def test_updates_by_the_service_are_recorded_with_the_session_user(database_url: str) -> None:
    order_id = Orders(database_url).add()
    async with opened(database_url) as database:
        await OrderRepository(database).update_payment_info(
            order_id, update(PAYMENT), Origin("request-1")
        )

    event = only_event(database_url, order_id)
    assert (event["database_role"], event["request_id"]) == (APPLICATION, "request-1")


@pytest.mark.parametrize("database", ["database_url", "closed_url"])
def test_updating_orders_needs_no_privilege_beside_that(
    request: pytest.FixtureRequest, database: str
) -> None:
    """For roles of other applications, such as the shop that inserts the orders."""
    database_url: str = request.getfixturevalue(database)
    shop = f"shop_{uuid.uuid4().hex[:12]}"
    order_id = Orders(database_url).add()
    with connect(database_url) as connection:
        owner = connection.info.user
        connection.execute(f"CREATE ROLE {shop}")
        try:
            connection.execute(f"GRANT SELECT, UPDATE ON orders TO {shop}")
            log_in(connection, shop)
            connection.execute("UPDATE orders SET payment_status = 'paid', captured_amount = 1")
        finally:
            log_in(connection, owner)
            connection.execute(f"DROP OWNED BY {shop}")
            connection.execute(f"DROP ROLE {shop}")
    assert only_event(database_url, order_id)["database_role"] == shop


@pytest.fixture
def closed_url(empty_database_url: str) -> str:
    """The URL of a migrated database where no role may call a function unless it is granted."""
    with connect(empty_database_url) as connection:
        connection.execute("ALTER DEFAULT PRIVILEGES REVOKE EXECUTE ON FUNCTIONS FROM PUBLIC")
    migrations.up(empty_database_url)
    return empty_database_url


def test_the_functions_that_the_service_may_call_are_those_that_it_needs(closed_url: str) -> None:
    with connect(closed_url) as connection:
        rows = connection.execute(
            """
            SELECT oid, has_function_privilege(%s, oid, 'EXECUTE') AS granted FROM pg_proc
            WHERE pronamespace = 'public'::regnamespace AND prorettype <> 'trigger'::regtype
            """,
            (APPLICATION,),
        ).fetchall()
    needed = {
        Orders(closed_url).value(f"SELECT to_regprocedure('{each.function}')::oid")
        for each in CALLED
    }
    assert {row["oid"] for row in rows} == {row["oid"] for row in rows if row["granted"]} == needed


@pytest.mark.anyio
async def test_the_service_where_functions_are_closed_to_public(closed_url: str) -> None:
    """Keys, the index of amounts that disagree, the trigger, and the list by that index."""
    order_id = Orders(closed_url).add()
    async with opened(closed_url) as database:
        repository = OrderRepository(database)
        for status in ("pending", "paid"):
            await repository.update_payment_info(
                order_id,
                update(PAYMENT | {"payment_status": status, "captured_amount": 99}),
                Origin("request-1"),
            )
        wanted = OrderFilter(amounts_disagree=True)
        assert [each.id for each in await repository.list_orders(wanted, 10)] == [order_id]
    assert len(events(closed_url, order_id)) == 2


def test_a_rollback_revokes_the_privileges_and_keeps_the_role(database_url: str) -> None:
    order_id = Orders(database_url).add()
    url = databases.with_role(database_url, APPLICATION)
    assert migrations.down(database_url, "20261123000002") == [*LATER[::-1], RIGHTS]
    with psycopg.connect(url, autocommit=True) as application:
        for table in ("orders", "order_payment_events", "_yoyo_migration"):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                application.execute(f"SELECT FROM {table}".encode())
        assert migrations.up(database_url) == [RIGHTS, *LATER]
        application.execute("UPDATE orders SET payment_status = 'paid'")
    assert only_event(database_url, order_id)["database_role"] == APPLICATION


def test_an_interrupted_run_can_be_repeated(database_url: str) -> None:
    with connect(database_url) as connection:
        connection.execute("DELETE FROM _yoyo_migration WHERE migration_id = %s", (RIGHTS,))
        connection.execute(f"REVOKE UPDATE (payment_status) ON orders FROM {APPLICATION}")

    assert migrations.up(database_url) == [RIGHTS]

    Orders(database_url).add()
    with psycopg.connect(databases.with_role(database_url, APPLICATION)) as application:
        application.execute("UPDATE orders SET payment_status = 'paid'")


@pytest.fixture(scope="module")
def server() -> Iterator[Cluster]:
    """A server of its own, where tests may create and drop roles."""
    with cluster.running() as running:
        yield running


@contextmanager
def without_role(server: Cluster) -> Iterator[None]:
    """Drop the application role from the server; migrate again at the end."""
    migrations.down(server.url, "0")
    server.execute(f"DROP ROLE {APPLICATION}")
    try:
        yield
    finally:
        migrations.up(server.url)


def test_two_databases_of_a_server_are_migrated_concurrently(server: Cluster) -> None:
    """The other migration creates the role first; its name is shared by the whole server."""
    with (
        without_role(server),
        ThreadPoolExecutor(1) as pool,
        psycopg.connect(server.url) as other,
    ):
        other.execute(f"CREATE ROLE {APPLICATION}".encode())
        running = pool.submit(migrations.up, server.url)
        while not server.execute(
            "SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'CREATE ROLE%'"
            " AND wait_event_type = 'Lock'"
        ):
            assert not running.done(), running.result()
        other.commit()
        assert RIGHTS in running.result(timeout=30)


def test_without_createrole_the_error_has_the_statement_to_run(server: Cluster) -> None:
    """Once a superuser has run it, the owner of the database can migrate."""
    server.execute("CREATE ROLE clerk LOGIN")
    server.execute("CREATE DATABASE clerks OWNER clerk")
    url = databases.with_role(server.url.replace("/shop?", "/clerks?"), "clerk")
    with without_role(server):
        with pytest.raises(MigrationError) as caught:
            migrations.up(url)
        assert "clerk may not create it" in str(caught.value)
        statement = str(caught.value).partition("run ")[2].partition(";")[0]
        assert statement == "CREATE ROLE listings_app NOLOGIN"
        server.execute(statement)

        assert migrations.up(url) == [RIGHTS, *LATER]

        server.execute("ALTER ROLE listings_app LOGIN")
        order_id = Orders(url).add()
        with psycopg.connect(databases.with_role(url, APPLICATION)) as application:
            application.execute("UPDATE orders SET payment_status = 'paid'")
        assert only_event(url, order_id)["database_role"] == APPLICATION
        migrations.down(url, "0")
        server.execute("DROP ROLE listings_app")
