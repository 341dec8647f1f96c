"""The database of a run: created for it, filled with orders, and dropped at the end."""

import os
import shutil
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, LiteralString
from urllib.parse import urlsplit, urlunsplit

import psutil
import psycopg
from psycopg import sql

from benchmarks.errors import BenchmarkError
from benchmarks.filling import fill
from persistence import embedded, migrations
from persistence.roles import APPLICATION

_LEAVE_SECONDS: Final = 20.0

# PostgreSQL's default of shared_buffers suits the smallest machines. Its documentation recommends a
# quarter of the memory, and a max_wal_size so large that checkpoints are started by time.
_BUFFERS: Final = 0.25
_MOST_WAL: Final = "8GB"

_VERSION: Final = """
    SELECT current_setting('server_version')
        || ', shared_buffers ' || current_setting('shared_buffers')
"""

_CONNECTED: Final = """
    SELECT count(*) FROM pg_stat_activity
    WHERE datname = current_database() AND pid <> pg_backend_pid()
        AND backend_type IN ('client backend', 'parallel worker')
"""

_COUNTS: Final = """
    SELECT
        (SELECT n_tup_upd FROM pg_stat_user_tables WHERE relname = 'orders'),
        (SELECT n_tup_ins FROM pg_stat_user_tables WHERE relname = 'order_payment_events'),
        (SELECT xact_rollback FROM pg_stat_database WHERE datname = current_database())
"""


@dataclass(frozen=True)
class Counts:
    """PostgreSQL's statistics of a database: rows updated, rows inserted, and rollbacks.

    Rows of transactions that were rolled back are counted as well.
    """

    updates: int
    events: int
    rollbacks: int

    def __sub__(self, other: "Counts") -> "Counts":
        return Counts(
            self.updates - other.updates,
            self.events - other.events,
            self.rollbacks - other.rollbacks,
        )


@dataclass(frozen=True)
class OrderDatabase:
    """A migrated database of demo orders, numbered from 1.

    ``url`` is for the contestant: its user has exactly the privileges of the service.
    ``connection`` is the owner's. ``postmaster`` is PostgreSQL's first process, or None where it
    runs on another machine.
    """

    url: str
    orders: int
    postmaster: psutil.Process | None
    connection: psycopg.Connection

    @property
    def version(self) -> str:
        """Return PostgreSQL's version and its shared_buffers."""
        return str(self._value(_VERSION))

    def tidy(self, *, history: bool) -> None:
        """Remove the dead rows of the contestant before, and switch the triggers of the history."""
        self.connection.execute("VACUUM orders")
        switch = "ENABLE" if history else "DISABLE"
        self.connection.execute(f"ALTER TABLE orders {switch} TRIGGER USER")

    def counts(self) -> Counts:
        """Return the statistics so far, once all other connections are closed.

        Backends report their statistics when they end, at the latest.
        """
        deadline = time.monotonic() + _LEAVE_SECONDS
        while self._value(_CONNECTED):
            if time.monotonic() > deadline:
                raise BenchmarkError("a server has ended, and its connections have not")
            time.sleep(0.01)
        self.connection.execute("SELECT pg_stat_force_next_flush()")
        return Counts(*self._row(_COUNTS))

    def _value(self, statement: LiteralString) -> Any:
        return self._row(statement)[0]

    def _row(self, statement: LiteralString) -> tuple[Any, ...]:
        row = self.connection.execute(statement).fetchone()
        assert row is not None
        return row


@contextmanager
def postgres() -> Iterator[str]:
    """Yield the URL of a server.

    It is the one that LISTINGS_DATABASE_URL names, by a role that may create databases and roles,
    or else an embedded one, which runs within the context.
    """
    given = os.environ.get("LISTINGS_DATABASE_URL")
    with nullcontext(given) if given else _embedded() as url:
        yield url


@contextmanager
def prepared(server: str, orders: int, *, schema: str | None = None) -> Iterator[OrderDatabase]:
    """Create the database, and drop it at the end.

    Its schema is the newest, or that of the migration ``schema``. The newest is filled, and then
    rolled back, so that the orders are the same.
    """
    with ExitStack() as stack:
        url = stack.enter_context(_own_database(server))
        migrations.up(url)
        connection = stack.enter_context(psycopg.connect(url, autocommit=True))
        fill(connection, orders)
        if schema is not None:
            migrations.down(url, schema)
        yield OrderDatabase(
            stack.enter_context(_for_service(connection, url)),
            orders,
            _postmaster(connection),
            connection,
        )


@contextmanager
def _embedded() -> Iterator[str]:
    directory = Path(tempfile.mkdtemp(prefix="listings-bench-"))
    try:
        directory.chmod(0o755)  # the embedded server protects its own directories below
        with embedded.running(directory / "postgres") as url:
            _configure(url)
        with embedded.running(directory / "postgres") as url:
            yield url
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def _configure(url: str) -> None:
    """Set the parameters that take effect at the next start of the server."""
    megabytes = psutil.virtual_memory().total * _BUFFERS // 2**20
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(
            sql.SQL("ALTER SYSTEM SET shared_buffers = {}").format(f"{megabytes:.0f}MB")
        )
        connection.execute(sql.SQL("ALTER SYSTEM SET max_wal_size = {}").format(_MOST_WAL))


@contextmanager
def _own_database(server: str) -> Iterator[str]:
    name = f"listings_bench_{uuid.uuid4().hex[:12]}"
    with psycopg.connect(server, autocommit=True) as connection:
        create = sql.SQL("CREATE DATABASE {} TEMPLATE template0")
        connection.execute(create.format(sql.Identifier(name)))
    try:
        yield urlunsplit(urlsplit(server)._replace(path=f"/{name}"))
    finally:
        with psycopg.connect(server, autocommit=True) as connection:
            drop = sql.SQL("DROP DATABASE {} WITH (FORCE)")
            connection.execute(drop.format(sql.Identifier(name)))


@contextmanager
def _for_service(connection: psycopg.Connection, url: str) -> Iterator[str]:
    """Create a user as in docs/operations.md, and yield the URL of the database for it."""
    name = f"listings_bench_{uuid.uuid4().hex[:12]}"
    password = uuid.uuid4().hex
    create = sql.SQL("CREATE ROLE {} LOGIN PASSWORD {} IN ROLE {}")
    connection.execute(
        create.format(sql.Identifier(name), sql.Literal(password), sql.Identifier(APPLICATION))
    )
    try:
        parts = urlsplit(url)
        host = parts.netloc.rpartition("@")[2]
        yield urlunsplit(parts._replace(netloc=f"{name}:{password}@{host}"))
    finally:
        connection.execute(sql.SQL("DROP ROLE {}").format(sql.Identifier(name)))


def _postmaster(connection: psycopg.Connection) -> psutil.Process | None:
    """Return the parent of the backend of ``connection``, if it runs on this machine.

    If PostgreSQL runs elsewhere or in a container, the backend's PID may be that of an unrelated
    process here; the title of a backend contains the name of the database.
    """
    try:
        backend = psutil.Process(connection.info.backend_pid)
        title = " ".join(backend.cmdline())
        return backend.parent() if f" {connection.info.dbname} " in title else None
    except psutil.Error:
        return None
