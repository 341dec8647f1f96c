"""``listings doctor`` and the start of ``serve`` on a database that was changed by hand."""

import re
from pathlib import Path
from urllib.parse import urlsplit

import psycopg
import pytest

from persistence.roles import APPLICATION
from tests.support import service
from tests.support.command_line import listings
from tests.support.databases import with_role
from tests.support.doctor import examined, problem
from tests.support.history import connect
from tests.support.orders import Orders
from tests.support.waiting import eventually, lock_waits


def assert_refused(url: str, text: str) -> None:
    """Check that ``serve`` refuses to start with that text."""
    refused = listings("serve", url=url)
    assert (refused.returncode, refused.stderr) == (1, f"Error: {text}\n")


def run(url: str, statements: str) -> None:
    """Run what is told to do."""
    with connect(url) as owner:
        for statement in filter(None, map(str.strip, statements.split(";"))):
            owner.execute(statement.encode())


def test_an_index_that_a_promise_rests_on(database_url: str, tmp_path: Path) -> None:
    url = with_role(database_url, APPLICATION)
    run(database_url, "DROP INDEX idx_order_payment_events_idempotency_key")
    text = problem(examined(url), "objects")
    assert "an idempotency key may take effect for two orders" in text
    assert_refused(url, text)
    run(database_url, text.partition(". ")[2])
    examined(url, healthy=True)
    with service.running(database_url, tmp_path / "log") as running:
        assert running.stop() == 0


def test_what_reindex_concurrently_has_left(database_url: str, tmp_path: Path) -> None:
    """Interrupted while it waits for an older transaction, it leaves an index of its own."""
    Orders(database_url).add()
    with psycopg.connect(database_url) as older, psycopg.connect(database_url) as building:
        older.execute("SELECT FROM orders FOR UPDATE")
        building.autocommit = True
        building.execute("SET statement_timeout = '300ms'")
        with pytest.raises(psycopg.errors.QueryCanceled):
            building.execute("REINDEX INDEX CONCURRENTLY idx_orders_idempotency_key")
    verdict, text = examined(database_url, healthy=True)["objects"]
    assert verdict == "warning"
    assert re.search("index idx_orders_idempotency_key_cc(new|old) is invalid", text)
    with service.running(database_url, tmp_path / "log") as running:
        assert running.stop() == 0
    run(database_url, text.partition(". ")[2])
    assert examined(database_url, healthy=True)["objects"][0] == "ok"


def test_an_index_that_is_being_built(database_url: str) -> None:
    """By its owner, and by a user who is not shown what is being built."""
    Orders(database_url).add()
    run(database_url, "DROP INDEX idx_orders_idempotency_key")
    with psycopg.connect(database_url) as older, connect(database_url) as building:
        older.execute("UPDATE orders SET updated_at = updated_at")
        create = (
            "CREATE UNIQUE INDEX CONCURRENTLY idx_orders_idempotency_key"
            " ON orders (payment_idempotency_key)"
        )
        building.pgconn.send_query(create.encode())
        eventually(lambda: lock_waits(database_url) == 1)
        for url in (database_url, with_role(database_url, APPLICATION)):
            text = problem(examined(url), "objects")
            assert text.startswith("index idx_orders_idempotency_key is being built. Wait until")
        older.rollback()
        while building.pgconn.get_result() is not None:
            pass
    examined(database_url, healthy=True)


def test_an_interrupted_migration(database_url: str) -> None:
    """`listings migrate up` builds an invalid index again; until then, nothing else is told."""
    run(
        database_url,
        "DELETE FROM _yoyo_migration WHERE migration_id ="
        " '20261130000005_index_replaced_references';"
        "UPDATE pg_index SET indisvalid = false WHERE indexrelid ="
        " 'idx_order_payment_events_payment_intent_id_before'::regclass",
    )
    report = examined(database_url)
    assert "listings migrate up" in problem(report, "schema")
    assert listings("migrate", "up", url=database_url).returncode == 0
    assert examined(database_url, healthy=True)["objects"][0] == "ok"


@pytest.mark.parametrize("how", ["DISABLE", "ENABLE REPLICA"])
def test_triggers_that_do_not_fire(database_url: str, how: str) -> None:
    url = with_role(database_url, APPLICATION)
    run(database_url, f"ALTER TABLE orders {how} TRIGGER payment_updated")
    text = problem(examined(url), "objects")
    assert "changes of payments may be missing in the history" in text
    assert_refused(url, text)
    run(database_url, text.partition(". ")[2])
    examined(url, healthy=True)


def test_sessions_in_which_triggers_do_not_fire(database_url: str) -> None:
    """By a setting of the service's user, or of another one."""
    name = urlsplit(database_url).path[1:]
    altered = f"ALTER ROLE {APPLICATION} IN DATABASE {name}"
    run(database_url, f"{altered} SET session_replication_role = replica")
    url = with_role(database_url, APPLICATION)
    text = problem(examined(url), "objects")
    assert f"session_replication_role is replica (by {altered}): triggers do not fire" in text
    assert_refused(url, text)
    other = problem(examined(database_url), "objects")
    assert "not in the history" in other
    assert other.endswith(f"{altered} RESET session_replication_role;")
    run(database_url, text.partition(". ")[2])
    examined(url, healthy=True)


def test_tables_that_the_search_path_hides(database_url: str) -> None:
    """The only advice is that on the search_path: the migrations are there."""
    name = urlsplit(database_url).path[1:]
    url = with_role(database_url, APPLICATION)
    run(database_url, f"ALTER DATABASE {name} SET search_path = shop")
    report = examined(url)
    text = problem(report, "rights")
    assert "the tables are in schema public, and search_path is shop (by ALTER DATABASE" in text
    assert report["schema, objects, history, classification, unknown words, processes"] == (
        "skipped",
        "until the problem of rights is solved",
    )
    assert "migrate" not in " ".join(text for _, text in report.values())
    assert_refused(url, text)
    run(database_url, text.partition("Run ")[2])
    examined(url, healthy=True)

    options = f"{url}&options=-csearch_path%3Delsewhere"
    text = problem(examined(options), "rights")
    assert "search_path is elsewhere (by the options of the connection)" in text
    assert text.endswith("Remove search_path from the options in LISTINGS_DATABASE_URL.")


def test_a_function_of_postgresql_that_was_revoked(database_url: str) -> None:
    """As by hardening guides: it tells which cluster this is."""
    url = with_role(database_url, APPLICATION)
    run(database_url, "REVOKE EXECUTE ON FUNCTION pg_control_system() FROM PUBLIC")
    text = problem(examined(url), "rights")
    assert f"{APPLICATION} lacks EXECUTE ON FUNCTION pg_control_system(). As a superuser" in text
    assert_refused(url, text)
    run(database_url, text.partition("server: ")[2])
    examined(url, healthy=True)
    run(database_url, "GRANT EXECUTE ON FUNCTION pg_control_system() TO PUBLIC")


@pytest.mark.parametrize("table", ["orders", "order_payment_events"])
def test_a_table_that_is_locked(database_url: str, table: str) -> None:
    """The start says which one it is, and which session has locked it."""
    with psycopg.connect(database_url) as holder:
        holder.execute(f"LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE".encode())
        refused = listings(
            "serve",
            url=with_role(database_url, APPLICATION),
            settings={"connect_timeout": "1"},
        )
        pid = holder.info.backend_pid
        assert (refused.returncode, refused.stderr) == (
            1,
            f"Error: the database does not answer within 1 s: session {pid} has locked {table}. "
            "Wait until its transaction has ended, or end it: "
            f"SELECT pg_terminate_backend({pid});\n",
        )


def test_a_table_of_the_same_name_elsewhere(empty_database_url: str) -> None:
    """It is another application's: what is missing are the migrations."""
    run(empty_database_url, "CREATE SCHEMA legacy; CREATE TABLE legacy.orders (id int)")
    assert "listings migrate up" in problem(examined(empty_database_url), "schema")


def test_rights_of_every_user(database_url: str) -> None:
    url = with_role(database_url, APPLICATION)
    name = urlsplit(database_url).path[1:]
    run(database_url, "GRANT CREATE ON SCHEMA public TO PUBLIC")
    report = examined(url, healthy=True)
    assert report["rights"] == ("ok", "listings_app may do what the service does, and no more")
    verdict, text = report["PUBLIC"]
    assert verdict == "warning"
    for words in (
        "CREATE ON SCHEMA public",
        f"TEMPORARY ON DATABASE {name}",
        "the large-object functions",
        "REVOKE CREATE ON SCHEMA public FROM PUBLIC;",
        "pg_catalog.lo_creat(integer)",
    ):
        assert words in text
    run(database_url, text.partition("do not give: ")[2])
    assert examined(url, healthy=True)["PUBLIC"][0] == "ok"
    with psycopg.connect(url, autocommit=True) as application:
        for statement in ("CREATE TEMPORARY TABLE a ()", "SELECT lo_creat(-1)"):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                application.execute(statement.encode())
