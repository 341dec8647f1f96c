"""Tables, indexes, triggers and functions that are not as the migrations have made them.

Each damage is done in a transaction, in which the application role then looks, and rolled back.
"""

import re
from collections.abc import AsyncIterator, Iterator
from typing import Any

import psycopg
import pytest

from persistence import migrations
from persistence.diagnostics import Advice, Connection, Fault, connected
from persistence.diagnostics.object_checks import check_objects, require_objects
from persistence.diagnostics.objects import FUNCTIONS, INDEXES, TABLES, TRIGGERS, Index
from persistence.roles import APPLICATION, CALLED
from tests.support import databases

UNIQUE = [each for each in INDEXES if each.risk]
FOR_SPEED = [each for each in INDEXES if not each.risk]

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with databases.clone() as url:
        yield url


@pytest.fixture
async def connection(url: str) -> AsyncIterator[Connection]:
    async with connected(url, timeout=10) as connection:
        yield connection


async def found(connection: Connection, *damage: str, remedied: bool = False) -> str:
    """Return what is wrong after these statements; empty when nothing is.

    ``remedied`` runs what is told to do, and checks that nothing is wrong any more.
    """
    await connection.execute("BEGIN")
    try:
        for statement in damage:
            await connection.execute(statement)
        await connection.execute(f"SET LOCAL ROLE {APPLICATION}")
        text = await fault_of(connection)
        if text and remedied:
            await connection.execute("RESET ROLE")
            # In a transaction, nothing is built concurrently.
            await connection.execute(text.partition(". ")[2].replace(" CONCURRENTLY", ""))
            await connection.execute(f"SET LOCAL ROLE {APPLICATION}")
            await check_objects(connection)
        return text
    finally:
        await connection.execute("ROLLBACK")


async def fault_of(connection: Connection) -> str:
    try:
        await require_objects(connection)
    except Fault as fault:
        return str(fault)
    return ""


async def warned(connection: Connection, *damage: str) -> str:
    await connection.execute("BEGIN")
    try:
        for statement in damage:
            await connection.execute(statement)
        with pytest.raises(Advice) as caught:
            await check_objects(connection)
        assert not isinstance(caught.value.__cause__, Fault)
        return str(caught.value)
    finally:
        await connection.execute("ROLLBACK")


def dropped(index: Index) -> str:
    if index.name.startswith("idx_"):
        return f"DROP INDEX {index.name}"
    return f"ALTER TABLE {index.table} DROP CONSTRAINT {index.name}"


def invalid(name: str) -> str:
    return f"UPDATE pg_index SET indisvalid = false WHERE indexrelid = '{name}'::regclass"


def built(index: Index, name: str) -> str:
    return index.statement(name).replace(" CONCURRENTLY", "")


async def test_a_newly_migrated_database_has_these_and_no_others(
    url: str, connection: Connection
) -> None:
    async def names(sql: str) -> list[Any]:
        return sorted(name for (name,) in await connection.fetch(sql, TABLES))

    of_tables = "FROM pg_class WHERE oid = ANY ($1::regclass[])"
    assert await names(
        "SELECT relname FROM pg_class WHERE relkind = 'r' AND relname !~ 'yoyo'"
        " AND relnamespace = 'public'::regnamespace AND $1::text[] IS NOT NULL"
    ) == sorted(TABLES)
    assert await names(
        f"SELECT i.relname FROM pg_index JOIN pg_class i ON i.oid = indexrelid"
        f" WHERE indrelid IN (SELECT oid {of_tables})"
    ) == sorted(index.name for index in INDEXES)
    unique = "WHERE indisunique AND indrelid = ANY ($1::regclass[])"
    assert await names(
        f"SELECT relname FROM pg_index JOIN pg_class ON oid = indexrelid {unique}"
    ) == sorted(index.name for index in UNIQUE)
    assert await names(
        f"SELECT tgname FROM pg_trigger WHERE tgrelid IN (SELECT oid {of_tables})"
    ) == sorted(trigger.name for trigger in TRIGGERS)
    called = [
        await connection.fetchval("SELECT to_regprocedure($1)::text", each.function)
        for each in CALLED
    ]
    triggered = await names(
        f"SELECT DISTINCT tgfoid::regprocedure::text FROM pg_trigger"
        f" WHERE tgrelid IN (SELECT oid {of_tables})"
    )
    assert sorted([*called, *triggered]) == sorted(each.signature for each in FUNCTIONS)
    assert await found(connection) == ""
    await check_objects(connection)


async def test_the_statements_make_what_the_migrations_made(connection: Connection) -> None:
    """Those that are told where something is missing."""
    text = "SELECT pg_get_triggerdef(oid) FROM pg_trigger WHERE tgname = $1"
    shape = "SELECT replace(pg_get_indexdef($1::text::regclass), $1, '') "
    await connection.execute("BEGIN")
    for trigger in TRIGGERS:
        before = await connection.fetchval(text, trigger.name)
        await connection.execute(trigger.statement)
        assert await connection.fetchval(text, trigger.name) == before
    for index in INDEXES:
        await connection.execute(built(index, "copied"))
        copied, original = [
            await connection.fetchval(shape, name) for name in ("copied", index.name)
        ]
        assert copied == original
        await connection.execute("DROP INDEX copied")


async def test_a_unique_index_that_is_missing(connection: Connection) -> None:
    for index in UNIQUE:
        text = await found(connection, dropped(index), remedied=True)
        assert f"index {index.name} on {index.table} ({index.columns}) is missing" in text
        assert index.risk in text


async def test_a_unique_index_that_is_invalid(connection: Connection) -> None:
    for index in UNIQUE:
        text = await found(connection, invalid(index.name))
        assert f"index {index.name} is invalid" in text
        assert text.endswith(f"REINDEX INDEX CONCURRENTLY {index.name};")


async def test_an_index_that_is_not_unique(connection: Connection) -> None:
    for index in UNIQUE:
        plain = built(index, index.name).replace("UNIQUE ", "")
        text = await found(connection, dropped(index), plain, remedied=True)
        assert "no index" in text
        assert "is unique" in text


async def test_a_unique_index_for_some_rows_is_none_for_all(connection: Connection) -> None:
    for index in UNIQUE:
        column = index.columns.partition(",")[0]
        whole = built(index, index.name).rstrip(";").partition(" WHERE ")[0]
        narrowed = f"{whole} WHERE {column} IS NULL"
        assert "is missing" in await found(connection, dropped(index), narrowed)


async def test_an_index_by_another_name(connection: Connection) -> None:
    """As after a build by hand; also of all rows where that of some is enough."""
    for index in UNIQUE:
        assert not await found(connection, f"ALTER INDEX {index.name} RENAME TO renamed")
        assert not await found(connection, built(index, "rebuilt"), dropped(index))
        of_all = built(index, "rebuilt").partition(" WHERE ")[0]
        assert not await found(connection, of_all, dropped(index))
        tuned = built(index, "tuned").replace(")", ") WITH (fillfactor = 70)", 1)
        assert not await found(connection, tuned, dropped(index))


async def test_an_index_that_serves_speed_alone(connection: Connection) -> None:
    for index in FOR_SPEED:
        assert not await found(connection, dropped(index))
        text = await warned(connection, dropped(index))
        assert f"index {index.name} on" in text
        assert index.statement(index.name) in text
        text = await warned(connection, invalid(index.name))
        assert text.endswith(f"REINDEX INDEX CONCURRENTLY {index.name};")
        assert "DROP" not in text


@pytest.mark.parametrize("name", ["{}_ccnew", "{}_ccnew1", "{}_ccold", "half"])
async def test_what_an_interrupted_build_has_left(connection: Connection, name: str) -> None:
    """Of an index that is valid: PostgreSQL's manual says to drop it."""
    for index in (UNIQUE[-1], FOR_SPEED[0]):
        left = name.format(index.name)
        damage = built(index, left), invalid(left)
        assert not await found(connection, *damage)
        text = await warned(connection, *damage)
        assert f"index {left} is invalid" in text
        assert text.endswith(f"DROP INDEX CONCURRENTLY {left};")


async def test_a_trigger_that_is_missing(connection: Connection) -> None:
    for trigger in TRIGGERS:
        drop = f"DROP TRIGGER {trigger.name} ON {trigger.table}"
        text = await found(connection, drop, remedied=True)
        assert f"trigger {trigger.name} on {trigger.table} is missing" in text
        assert trigger.risk in text


@pytest.mark.parametrize(
    ("state", "words"), [("DISABLE", "disabled"), ("ENABLE REPLICA", "enabled for replicas only")]
)
async def test_a_trigger_that_does_not_fire(connection: Connection, state: str, words: str) -> None:
    for trigger in TRIGGERS:
        change = f"ALTER TABLE {trigger.table} {state} TRIGGER {trigger.name}"
        text = await found(connection, change, remedied=True)
        assert f"trigger {trigger.name} on {trigger.table} is {words}" in text


async def test_a_trigger_that_fires_for_less(connection: Connection) -> None:
    for trigger in TRIGGERS:
        if "ROW" not in trigger.statement:
            continue
        narrowed = trigger.statement.replace(
            f" WHEN ({trigger.condition})" if trigger.condition else "", ""
        )
        if not trigger.condition:
            narrowed = narrowed.replace(" EXECUTE", " WHEN (false) EXECUTE")
        assert await found(connection, narrowed, remedied=True)
        if trigger.condition:
            for less in (
                "NEW.payment_provider = 'stripe'",
                f"({trigger.condition}) AND NEW.id > 9",
            ):
                other = trigger.statement.replace(trigger.condition, less)
                assert trigger.risk in await found(connection, other, remedied=True)
    of_column = TRIGGERS[2].statement.replace("UPDATE", "UPDATE OF payment_status")
    assert "payment_updated" in await found(connection, of_column, remedied=True)


async def test_a_trigger_that_fires_as_it_should(connection: Connection) -> None:
    for trigger in TRIGGERS:
        renamed = f"ALTER TRIGGER {trigger.name} ON {trigger.table} RENAME TO renamed"
        assert not await found(connection, renamed)
        always = f"ALTER TABLE {trigger.table} ENABLE ALWAYS TRIGGER {trigger.name}"
        assert not await found(connection, always)
        # Also where a session replays what another server did.
        assert "session_replication_role" in await found(
            connection, "SET LOCAL session_replication_role = replica"
        )


async def test_a_function_that_is_missing_or_another_one(connection: Connection) -> None:
    for function in FUNCTIONS:
        name = function.signature.partition("(")[0]
        text = await found(connection, f"DROP FUNCTION {function.signature} CASCADE")
        assert f"function {function.signature} is missing" in text
        text = await found(connection, f"ALTER FUNCTION {function.signature} RENAME TO renamed")
        assert f"function {function.signature} is missing" in text
        text = await found(
            connection,
            f"UPDATE pg_proc SET prosrc = 'BEGIN RETURN NULL; END' WHERE proname = '{name}'",
        )
        assert f"function {function.signature} is not the one that the migrations have made" in text
    for change in ("SECURITY INVOKER", "RESET search_path"):
        text = await found(connection, f"ALTER FUNCTION record_payment_change() {change}")
        assert "is not SECURITY DEFINER" in text


async def test_functions_are_restored_from_a_database_that_has_them(
    url: str, connection: Connection
) -> None:
    """All of them by one statement, which is told once."""
    signatures = ", ".join(f"'{each.signature}'::regprocedure" for each in FUNCTIONS)
    damage = (
        f"UPDATE pg_proc SET prosrc = 'BEGIN END', prosecdef = false WHERE oid IN ({signatures})"
    )
    text = await found(connection, damage)
    assert text.count(". ") == 1
    assert text.count("is not the one that the migrations have made") == len(FUNCTIONS)
    (statement,) = re.findall("`(SELECT .*?)`", text)
    async with connected(url, timeout=10) as sound:
        restored = [function for (function,) in await sound.fetch(statement)]
    assert len(restored) == len(FUNCTIONS)
    assert not await found(connection, damage, *restored)


async def test_a_table_that_is_missing(connection: Connection) -> None:
    for table in TABLES:
        text = await found(connection, f"DROP TABLE {table} CASCADE")
        assert f"table {table} is missing" in text
        assert "backup" in text
        assert " index " not in text


async def test_several_faults_are_told_together(connection: Connection) -> None:
    text = await found(
        connection,
        "DROP INDEX idx_orders_idempotency_key",
        "ALTER TABLE orders DISABLE TRIGGER USER",
        remedied=True,
    )
    assert "idx_orders_idempotency_key" in text
    for name in ("payment_begins", "payment_inserted", "payment_updated"):
        assert f"trigger {name} on orders is disabled" in text


async def test_a_newer_version_has_objects_of_its_own(connection: Connection) -> None:
    """Then nothing is checked, and `doctor` says so. A shop's own migrations say nothing."""
    applied = "INSERT INTO _yoyo_migration (migration_hash, migration_id) VALUES ('x', '{}')"
    damage = "DROP INDEX idx_orders_idempotency_key"
    assert await found(connection, damage)
    assert await found(connection, damage, applied.format("20260101_shop"))
    newer = damage, applied.format("3000_new")
    assert not await found(connection, *newer)
    assert (await warned(connection, *newer)).startswith("nothing was checked")


async def test_triggers_that_always_fire(connection: Connection) -> None:
    """Also where session_replication_role is replica, and a shop has triggers that do not."""
    always = [
        f"ALTER TABLE {trigger.table} ENABLE ALWAYS TRIGGER {trigger.name}" for trigger in TRIGGERS
    ]
    replica = "SET LOCAL session_replication_role = replica"
    of_shop = (
        "CREATE TRIGGER mine BEFORE INSERT ON orders EXECUTE FUNCTION"
        " refuse_change_of_order_payment_events()"
    )
    assert not await found(connection, *always, of_shop, replica)
    assert "session_replication_role" in await found(connection, *always[1:], of_shop, replica)


@pytest.mark.parametrize("schema", ["my shop", "listings", "event"])
async def test_another_schema(empty_database_url: str, schema: str) -> None:
    """Also one by whose name a function knows something else: a setting, an alias of a table."""
    with psycopg.connect(empty_database_url, autocommit=True) as owner:
        owner.execute(f'CREATE SCHEMA "{schema}"'.encode())
        owner.execute(
            f"ALTER ROLE CURRENT_USER IN DATABASE {owner.info.dbname}"
            f' SET search_path = "{schema}"'.encode()
        )
    migrations.up(empty_database_url)
    async with connected(empty_database_url, timeout=10) as connection:
        await check_objects(connection)
        assert "is missing" in await found(connection, dropped(UNIQUE[0]))


@pytest.mark.parametrize("schema", ["new", "old", "orders", "payment", "catalog", "public.orders"])
async def test_a_schema_in_which_the_functions_are_made_anew(
    connection: Connection, schema: str
) -> None:
    """Their bodies name its tables, and things that are called as it is."""
    await connection.execute("BEGIN")
    await connection.execute(f'ALTER SCHEMA public RENAME TO "{schema}"')
    await connection.execute(f'SET LOCAL search_path = "{schema}"')
    assert "is not the one" in await fault_of(connection)
    await connection.execute(
        "UPDATE pg_proc SET prosrc = regexp_replace(prosrc,"
        " '( )public([.](orders|order_payment_events))', format('\\1%I\\2', $1::text), 'g')"
        " WHERE oid = ANY ($2::regprocedure[])",
        schema,
        [each.signature for each in FUNCTIONS],
    )
    assert await fault_of(connection) == ""
    await connection.execute("ROLLBACK")
