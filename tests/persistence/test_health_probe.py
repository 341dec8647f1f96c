"""The probe that readiness goes by: it sees what makes every call fail, and no more than that."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from urllib.parse import urlsplit

import psycopg
import pytest

from persistence import health_probe, migrations
from persistence.database import Database
from persistence.diagnostics import Fault, connected, pooling
from persistence.health_probe import HealthProbe
from persistence.models import Origin
from persistence.orders import OrderRepository
from persistence.roles import APPLICATION
from tests.support import databases, pooler, postgres
from tests.support.databases import with_role
from tests.support.history import connect, update
from tests.support.orders import Orders
from tests.support.waiting import eventually_async

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(pooler.is_used(), reason="starts a pooler where it needs one"),
]

_MISSING = "tables or functions are missing, or not on the search_path"
_RIGHTS = "the database user lacks rights"
_FULL = "the database has no connection left for us"
_LOGIN = "the database refuses our user or password"


@asynccontextmanager
async def probing(url: str, pool: Database | None = None) -> AsyncIterator[HealthProbe]:
    """Probe the database as the application role; calls have no connection without a ``pool``."""
    async with HealthProbe(url, pool or databases.pool(url), lambda: None) as probe:
        yield probe


def sleeping(database_url: str) -> int:
    """Return how many statements on the database sleep."""
    with connect(database_url) as observer:
        row = observer.execute(
            "SELECT count(*) FROM pg_stat_activity"
            " WHERE wait_event = 'PgSleep' AND datname = current_database()"
        ).fetchone()
    assert row is not None
    return int(row["count"])


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
            await asyncio.sleep(1)
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


@pytest.mark.parametrize(
    ("refuse", "undo", "fault"),
    [
        ("ALTER ROLE {role} CONNECTION LIMIT 1", "ALTER ROLE {role} CONNECTION LIMIT -1", _FULL),
        (
            "ALTER DATABASE {name} CONNECTION LIMIT 1",
            "ALTER DATABASE {name} CONNECTION LIMIT -1",
            _FULL,
        ),
        ("ALTER ROLE {role} NOLOGIN", "ALTER ROLE {role} LOGIN", _LOGIN),
        (
            "ALTER DATABASE {name} ALLOW_CONNECTIONS false",
            "ALTER DATABASE {name} ALLOW_CONNECTIONS true",
            "the database reports an error (55000)",
        ),
    ],
)
async def test_further_connections_are_refused(
    database_url: str, refuse: str, undo: str, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is a fault when calls have none: not while they have some, also if the probe has none."""
    monkeypatch.setattr(health_probe, "_RENEWAL", 0.5)
    name = urlsplit(database_url).path[1:]
    role = f"role_{name}"
    url = with_role(database_url, role)
    refuse, undo = (each.format(role=role, name=name) for each in (refuse, undo))
    server = postgres.server()
    with changed(server, f"CREATE ROLE {role} LOGIN IN ROLE {APPLICATION}", f"DROP ROLE {role}"):
        pool = Database(url, max_connections=2, connect_timeout=5, statement_timeout=5)
        async with pool, probing(url, pool) as probe:
            with changed(server, refuse, undo):
                await asyncio.sleep(1)
                assert probe.fault is None
                ((pid,),) = await pool.fetch("SELECT pg_backend_pid()")
                with connect(server) as owner:  # which leaves the probe without one
                    owner.execute(
                        "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity"
                        " WHERE usename = %s AND pid <> %s",
                        (role, pid),
                    )
                await asyncio.sleep(1)
                assert probe.fault is None
                assert await pool.fetch("SELECT 1") == [(1,)]
        empty = databases.pool(url)
        with psycopg.connect(url), changed(server, refuse, undo):
            async with probing(url, empty) as probe:
                assert probe.fault == fault


async def test_the_probe_has_no_connection_and_calls_fail(database_url: str, url: str) -> None:
    """Then it asks on those that calls have."""
    name = urlsplit(database_url).path[1:]
    allow = f"ALTER DATABASE {name} ALLOW_CONNECTIONS"
    async with databases.pool(database_url) as pool, probing(url, pool) as probe:
        ((pid,),) = await pool.fetch("SELECT pg_backend_pid()")
        with (
            connect(database_url) as owner,
            changed(postgres.server(), f"{allow} false", f"{allow} true"),
        ):
            owner.execute(
                "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity"
                " WHERE datname = %s AND pid NOT IN (%s, %s)",
                (name, pid, owner.info.backend_pid),
            )
            owner.execute(f"REVOKE SELECT ON orders FROM {APPLICATION}".encode())
            await turns(probe, _RIGHTS)
            owner.execute(f"GRANT SELECT ON orders TO {APPLICATION}".encode())
            await turns(probe, None)


async def test_the_migration_before_the_last_one(database_url: str, url: str) -> None:
    """As in a deployment that is rolled back: a function for CHECKs goes with them."""
    order_id = Orders(database_url).add()
    async with databases.pool(database_url) as pool, probing(url, pool) as probe:
        await asyncio.to_thread(
            migrations.down, database_url, migrations.status(database_url)[-2].id
        )
        await asyncio.sleep(1)
        assert probe.fault is None
        paid = update({"payment_provider": "stripe", "payment_status": "paid"})
        assert await OrderRepository(pool).update_payment_info(order_id, paid, Origin("r"))
        async with probing(url) as later:
            assert later.fault is None


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


@pytest.mark.skipif(pooler.binary() is None, reason="PgBouncer is not installed")
async def test_a_pooler_of_sessions_that_has_no_further_clients(
    database_url: str, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether it keeps prepared statements takes several clients, and is asked once."""
    monkeypatch.setattr(health_probe, "_RENEWAL", 0.5)
    asked = []
    are_kept = pooling.are_kept

    async def counted(url: str) -> bool | None:
        asked.append(await are_kept(url))
        return asked[-1]

    monkeypatch.setattr(pooling, "are_kept", counted)
    with pooler.running(postgres.server(), pool_mode="session", max_client_conn="3") as directory:
        pooled = pooler.at(url, directory)
        pool = Database(pooled, max_connections=2, connect_timeout=5, statement_timeout=5)
        async with pool:
            calls = [asyncio.create_task(pool.fetch("SELECT pg_sleep(2)")) for _ in range(2)]
            await eventually_async(lambda: pool.in_use == 2 and sleeping(database_url) == 2)
            async with connected(pooled, timeout=5) as other:  # as `serve` does
                text = await pooling.check_prepared_statements(other, pooled, are_used=True)
                assert "not found out" in text
                with pytest.raises(Fault, match=r"no connection left.*max_client_conn.*Raise that"):
                    await connected(pooled, timeout=5).__aenter__()
            async with probing(pooled, pool) as probe:
                assert probe.fault is None
                await asyncio.gather(*calls)
                await asyncio.sleep(1)
                assert probe.fault is None
                socket = directory / ".s.PGSQL.6432"
                socket.rename(directory / "away")  # no one can connect any more
                await asyncio.sleep(1)
                assert probe.fault is None
    assert asked == [None, None]


@pytest.mark.skipif(pooler.binary() is None, reason="PgBouncer is not installed")
async def test_a_pooler_whose_database_is_away(database_url: str, url: str) -> None:
    """The connections of calls are those to the pooler."""
    with pooler.running(postgres.server()) as directory:
        pooled = pooler.at(url, directory)
        pool = Database(
            pooled,
            max_connections=2,
            connect_timeout=5,
            statement_timeout=5,
            prepared_statements=False,
        )
        async with pool, probing(pooled, pool) as probe:
            assert await pool.fetch("SELECT 1") == [(1,)]
            with databases.unreachable(database_url):
                await eventually_async(lambda: probe.fault is not None)
                assert pool.has_connections
            await turns(probe, None)


@pytest.mark.skipif(pooler.binary() is None, reason="PgBouncer is not installed")
@pytest.mark.parametrize("mode", ["session", "transaction"])
async def test_a_pooler_keeps_its_connections_when_it_is_asked(url: str, mode: str) -> None:
    with pooler.running(postgres.server(), pool_mode=mode) as directory:
        assert await pooling.are_kept(pooler.at(url, directory)) is (mode == "session")
        log = (directory / "log").read_text()
        assert "closing because: client close request" in log
        assert [line for line in log.splitlines() if " S-" in line and "closing" in line] == []
