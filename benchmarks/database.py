"""The database of a run: its own, filled with orders, and gone afterwards."""

import asyncio
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import psutil
import psycopg
from psycopg import sql

from persistence import embedded, migrations, seeding
from persistence.roles import APPLICATION


@dataclass(frozen=True)
class OrderDatabase:
    """A migrated database of demo orders, numbered from 1.

    ``url`` is for who is measured: by a user with the rights of the service and no others.
    ``connection`` is the owner's. ``postmaster`` is PostgreSQL's first process, or None where it
    runs on another machine.
    """

    url: str
    orders: int
    version: str
    postmaster: psutil.Process | None
    connection: psycopg.Connection

    def tidy(self, *, history: bool) -> None:
        """Remove dead rows, so that nobody is slowed down by what others have left.

        Also turn the triggers on or off that keep the history.
        """
        self.connection.execute("VACUUM orders")
        switch = "ENABLE" if history else "DISABLE"
        self.connection.execute(f"ALTER TABLE orders {switch} TRIGGER USER")


@contextmanager
def prepared(orders: int) -> Iterator[OrderDatabase]:
    """Make the database, and drop it at the end.

    The server is the one that LISTINGS_DATABASE_URL names, by a role that may create databases and
    roles, or else an embedded one that runs meanwhile.
    """
    with ExitStack() as stack:
        server = os.environ.get("LISTINGS_DATABASE_URL") or stack.enter_context(_embedded())
        url = stack.enter_context(_own_database(server))
        migrations.up(url)
        asyncio.run(seeding.seed(url, orders, lambda _: None))
        connection = stack.enter_context(psycopg.connect(url, autocommit=True))
        # So that each of them may be paid: by the rules, what was refunded stays refunded.
        connection.execute(
            "UPDATE orders SET payment_status = 'paid' WHERE payment_status = 'refunded'"
        )
        # Between rounds, we do it; in the midst of one, it would be charged to whoever is measured.
        connection.execute("ALTER TABLE orders SET (autovacuum_enabled = false)")
        yield OrderDatabase(
            stack.enter_context(_for_service(connection, url)),
            orders,
            connection.info.parameter_status("server_version") or "?",
            _postmaster(connection),
            connection,
        )


@contextmanager
def _embedded() -> Iterator[str]:
    directory = Path(tempfile.mkdtemp(prefix="listings-bench-"))
    try:
        directory.chmod(0o755)  # below it, the embedded server sees to its own
        with embedded.running(directory / "postgres") as url:
            yield url
    finally:
        shutil.rmtree(directory, ignore_errors=True)


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
    """Make a user as the README says, and yield the URL by which they come to the database."""
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
    """Return the parent of the process behind ``connection``, if that is on this machine.

    A process of that number may be somebody else's, where PostgreSQL is elsewhere or in a
    container: PostgreSQL's own has the name of the database in its title.
    """
    try:
        backend = psutil.Process(connection.info.backend_pid)
        title = " ".join(backend.cmdline())
        return backend.parent() if f" {connection.info.dbname} " in title else None
    except psutil.Error:
        return None
