"""The probe that readiness goes by: it sees what makes every call fail, and no more than that."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from urllib.parse import urlsplit

import psycopg
import pytest

from persistence import health_probe
from persistence.database import Database
from persistence.health_probe import HealthProbe
from persistence.roles import APPLICATION
from tests.support import databases, pooler, postgres
from tests.support.databases import with_role
from tests.support.history import connect
from tests.support.orders import Orders
from tests.support.waiting import eventually_async

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(pooler.is_used(), reason="starts a pooler where it needs one"),
]

_MISSING = "tables or functions are missing, or not on the search_path"
_RIGHTS = "the database user lacks rights"
_FULL = "the database has no connection left for us"


@asynccontextmanager
async def probing(url: str, pool: Database | None = None) -> AsyncIterator[HealthProbe]:
    """Probe the database as the application role; calls have no connection without a ``pool``."""
    async with HealthProbe(url, pool or databases.pool(url), lambda: None) as probe:
        yield probe


async def turns(probe: HealthProbe, fault: str | None) -> None:
    """Wait until that is the fault."""
    try:
        await eventually_async(lambda: probe.fault == fault)
    except TimeoutError:
        raise AssertionError(f"the fault is {probe.fault}") from None


@pytest.fixture
def url(database_url: str) -> str:
    return with_role(database_url, APPLICATION)


@contextmanager
def changed(database_url: str, statement: str, undo: str) -> Iterator[None]:
    with connect(database_url) as owner:
        owner.execute(statement.encode())
        try:
            yield
        finally:
            owner.execute(undo.encode())


@pytest.mark.parametrize(
    ("statement", "undo", "fault"),
    [
        (
            "ALTER TABLE orders RENAME TO gone",
            "ALTER TABLE gone RENAME TO orders",
            _MISSING,
        ),
        ("ALTER SCHEMA public RENAME TO gone", "ALTER SCHEMA gone RENAME TO public", _MISSING),
        (
            "ALTER FUNCTION is_other_payment_request RENAME TO gone",
            "ALTER FUNCTION gone RENAME TO is_other_payment_request",
            _MISSING,
        ),
        (
            "REVOKE USAGE ON SCHEMA public FROM PUBLIC, listings_app",
            "GRANT USAGE ON SCHEMA public TO PUBLIC, listings_app",
            _MISSING,
        ),
        (
            "REVOKE SELECT ON orders FROM listings_app",
            "GRANT SELECT ON orders TO listings_app",
            _RIGHTS,
        ),
        (
            "REVOKE UPDATE (payment_status) ON orders FROM listings_app",
            "GRANT UPDATE (payment_status) ON orders TO listings_app",
            _RIGHTS,
        ),
        (
            "REVOKE EXECUTE ON FUNCTION payment_amounts_disagree FROM PUBLIC, listings_app",
            "GRANT EXECUTE ON FUNCTION payment_amounts_disagree TO PUBLIC",
            _RIGHTS,
        ),
    ],
)
async def test_what_makes_every_call_fail(
    database_url: str, url: str, statement: str, undo: str, fault: str
) -> None:
    async with probing(url) as probe:
        assert probe.fault is None
        with changed(database_url, statement, undo):
            await turns(probe, fault)
        await turns(probe, None)


async def test_a_table_that_is_locked_is_no_fault(database_url: str, url: str) -> None:
    """As by a migration: the probe takes no lock."""
    with psycopg.connect(database_url) as holder:
        holder.execute("LOCK TABLE orders IN ACCESS EXCLUSIVE MODE")
        async with probing(url) as probe:
            assert probe.fault is None
            await asyncio.sleep(1.5)
            assert probe.fault is None


async def test_what_only_new_connections_meet(
    database_url: str, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is no fault while calls have connections, whose settings are those of before."""
    monkeypatch.setattr(health_probe, "_RENEWAL", 0.5)
    name = urlsplit(database_url).path[1:]
    order_id = Orders(database_url).add()
    async with (
        databases.pool(database_url) as pool,
        probing(url, pool) as probe,
        probing(url) as probe_of_none,
    ):
        assert (probe.fault, probe_of_none.fault) == (None, None)
        with changed(
            database_url,
            f"ALTER DATABASE {name} SET search_path = nowhere",
            f"ALTER DATABASE {name} RESET search_path",
        ):
            await turns(probe_of_none, _MISSING)
            await asyncio.sleep(1)
            assert probe.fault is None
            assert await pool.fetch("SELECT id FROM orders") == [(order_id,)]
        await turns(probe_of_none, None)


@pytest.mark.parametrize("of", ["user", "database"])
async def test_a_limit_of_connections(
    database_url: str, of: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is a fault when calls have none: not while they have some, also if the probe has none."""
    monkeypatch.setattr(health_probe, "_RENEWAL", 0.5)
    name = urlsplit(database_url).path[1:]
    role = f"role_{name}"
    limit = f"ALTER {'ROLE' if of == 'user' else 'DATABASE'} {role if of == 'user' else name}"
    url = with_role(database_url, role)
    with changed(
        database_url,
        f"CREATE ROLE {role} LOGIN IN ROLE {APPLICATION}",
        f"DROP ROLE {role}",
    ):
        pool = Database(url, max_connections=2, connect_timeout=5, statement_timeout=5)
        async with pool, probing(url, pool) as probe:
            full = f"{limit} CONNECTION LIMIT 1"
            with changed(database_url, full, f"{limit} CONNECTION LIMIT -1"):
                await asyncio.sleep(1.5)
                assert probe.fault is None
                ((pid,),) = await pool.fetch("SELECT pg_backend_pid()")
                with connect(database_url) as owner:  # which leaves the probe without one
                    owner.execute(
                        "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity"
                        " WHERE usename = %s AND pid <> %s",
                        (role, pid),
                    )
                await asyncio.sleep(1.5)
                assert probe.fault is None
                assert await pool.fetch("SELECT 1") == [(1,)]
        empty = databases.pool(url)
        with (
            psycopg.connect(url),
            changed(database_url, full, f"{limit} CONNECTION LIMIT -1"),
        ):
            async with probing(url, empty) as probe:
                assert probe.fault == _FULL


@pytest.mark.skipif(pooler.binary() is None, reason="PgBouncer is not installed")
async def test_a_pooler_that_loses_prepared_statements(database_url: str, url: str) -> None:
    """Also while it is idle, and would always take the same connection."""
    with pooler.running(postgres.server()) as directory:
        pooled = pooler.at(url, directory)
        async with probing(pooled) as probe:
            for _ in range(3):
                assert probe.fault is not None
                assert "loses prepared statements" in probe.fault
                await asyncio.sleep(0.5)
        async with probing(pooled, databases.pool(url, prepared_statements=False)) as probe:
            assert probe.fault is None
