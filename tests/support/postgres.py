"""The PostgreSQL server that all tests of a run share, started by the first test that needs it.

It is the one that LISTINGS_DATABASE_URL names, by a role that may create databases and roles, or
else an embedded one in a directory of its own. Of that one, each process of a parallel run is a
user, and the last one stops it.
"""

import fcntl
import functools
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit, urlunsplit

import psycopg
from psycopg import sql

from persistence import embedded, migrations
from persistence.roles import APPLICATION
from tests.support import catalog
from tests.support.held import until_the_end

# By this, the processes of a parallel run find the directory that the first of them has made.
_DIRECTORY = "LISTINGS_TEST_DIRECTORY"


class Template(NamedTuple):
    """The migrated, empty database that others are copies of."""

    name: str
    fingerprint: str
    """The result of ``catalog.fingerprint``."""


@contextmanager
def shared() -> Iterator[None]:
    """Let this process, and those that inherit its environment, share a server.

    Enter it in the first process only, and leave it after the others have ended.
    """
    directory = Path(tempfile.mkdtemp(prefix="listings-test-"))
    directory.chmod(0o755)  # below it, the embedded server sees to its own
    os.environ[_DIRECTORY] = str(directory)
    try:
        yield
        external = os.environ.get("LISTINGS_DATABASE_URL")
        if external and _made(directory).exists():
            _drop_all(external, _prefix(directory))
    finally:
        del os.environ[_DIRECTORY]
        shutil.rmtree(directory, ignore_errors=True)


@functools.cache
def server() -> str:
    """Return the URL of the server's own database. Starts the server if it does not run."""
    if external := os.environ.get("LISTINGS_DATABASE_URL"):
        return external
    return until_the_end.enter_context(embedded.running(_directory() / "postgres"))


@functools.cache
def template() -> Template:
    """Return the template. Makes it if no other process has."""
    directory, url = _directory(), server()
    with (directory / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        made = _made(directory)
        if not made.exists():
            name = _prefix(directory)
            if "LISTINGS_DATABASE_URL" not in os.environ:
                _forgo_durability(url)
            create(name, "template0")
            prepare(at(name))
            found = Template(name, catalog.fingerprint(at(name)))
            made.write_text(json.dumps(found))
        return Template(*json.loads(made.read_text()))


def create(name: str, source: str) -> None:
    """Create a database as a copy of another one."""
    statement = sql.SQL("CREATE DATABASE {} TEMPLATE {}")
    with psycopg.connect(server(), autocommit=True) as connection:
        connection.execute(statement.format(sql.Identifier(name), sql.Identifier(source)))


def drop(name: str) -> None:
    """Drop a database, and terminate the sessions that use it."""
    _drop(server(), name)


def at(name: str) -> str:
    """Return the URL of that database of the server."""
    return urlunsplit(urlsplit(server())._replace(path=f"/{name}"))


def prepare(url: str) -> None:
    """Migrate a database, and let the application role log in, with the password of ``url``."""
    migrations.up(url)
    let_in = sql.SQL("ALTER ROLE {} LOGIN PASSWORD {}")
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(
            let_in.format(sql.Identifier(APPLICATION), sql.Literal(urlsplit(url).password))
        )


def _directory() -> Path:
    return Path(os.environ[_DIRECTORY])


def _made(directory: Path) -> Path:
    return directory / "template.json"


def _prefix(directory: Path) -> str:
    return directory.name.replace("-", "_").lower()


def _forgo_durability(url: str) -> None:
    """Turn off what makes data survive a crash. Tests of crashes use a server of their own."""
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("ALTER SYSTEM SET fsync = off")
        connection.execute("ALTER SYSTEM SET full_page_writes = off")
        connection.execute("ALTER SYSTEM SET max_wal_size = '4GB'")
        connection.execute("ALTER SYSTEM SET checkpoint_timeout = '1h'")
        connection.execute("SELECT pg_reload_conf()")


def _drop_all(url: str, prefix: str) -> None:
    with psycopg.connect(url, autocommit=True) as connection:
        found = connection.execute(
            "SELECT datname FROM pg_database WHERE starts_with(datname, %s)", (prefix,)
        ).fetchall()
    for (name,) in found:
        _drop(url, name)


def _drop(url: str, name: str) -> None:
    with psycopg.connect(url, autocommit=True) as connection:
        statement = sql.SQL("DROP DATABASE {} WITH (FORCE)")
        connection.execute(statement.format(sql.Identifier(name)))
