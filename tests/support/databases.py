"""Databases for tests: clones of a migrated template, on a real PostgreSQL."""

import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import psycopg
from psycopg import sql

from persistence import embedded, migrations
from persistence.database import Database
from persistence.roles import APPLICATION
from tests.support import pooler

# The workers of a parallel run find the server that the first process started by these.
_SERVER = "LISTINGS_TEST_SERVER_URL"
_TEMPLATE = "LISTINGS_TEST_TEMPLATE"


def start() -> ExitStack:
    """Start the server and make the template. Close the result to undo both.

    The server is the one that LISTINGS_DATABASE_URL names, by a role that may create databases and
    roles, or else an embedded one in a directory of its own.
    """
    stack = ExitStack()
    url = os.environ.get("LISTINGS_DATABASE_URL")
    if not url:
        directory = Path(tempfile.mkdtemp(prefix="listings-test-"))
        stack.callback(shutil.rmtree, directory, ignore_errors=True)
        directory.chmod(0o755)  # below it, the embedded server sees to its own
        url = stack.enter_context(embedded.running(directory / "postgres"))
    template = f"listings_test_{uuid.uuid4().hex[:12]}"
    os.environ[_SERVER] = url
    os.environ[_TEMPLATE] = template
    stack.enter_context(_database(template, "template0"))
    prepare(_with_database(url, template))
    return stack


def server() -> str:
    """Return the URL of the server's own database."""
    return os.environ[_SERVER]


def prepare(url: str) -> None:
    """Migrate a database, and let the application role log in, with the password of ``url``."""
    migrations.up(url)
    let_in = sql.SQL("ALTER ROLE {} LOGIN PASSWORD {}")
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(
            let_in.format(sql.Identifier(APPLICATION), sql.Literal(urlsplit(url).password))
        )


def with_role(url: str, role: str) -> str:
    """Return the URL by which ``role`` comes to the database at ``url``; its password stays."""
    parts = urlsplit(url)
    user, at, host = parts.netloc.rpartition("@")
    password = user[len(user.partition(":")[0]) :]
    return urlunsplit(parts._replace(netloc=f"{role}{password}{at}{host}"))


def for_service(url: str) -> str:
    """Return the URL by which what is under test comes to that database.

    As the application role, and through a pooler, if there is one in front of it.
    """
    return pooler.through(with_role(url, APPLICATION))


def pool(url: str, **limits: float) -> Database:
    """Return the service's pool on the database at ``url``, with some limits of one's own."""
    usual = {"max_connections": 2, "connect_timeout": 5.0, "statement_timeout": 5.0}
    options: dict[str, Any] = usual | {"prepared_statements": not pooler.is_used()} | limits
    return Database(for_service(url), **options)


@contextmanager
def clone() -> Iterator[str]:
    """Yield the URL of a fresh, migrated, empty database."""
    template = os.environ[_TEMPLATE]
    name = f"{template}_{uuid.uuid4().hex[:12]}"
    with _database(name, template) as url:
        yield url


@contextmanager
def empty() -> Iterator[str]:
    """Yield the URL of a fresh database without any table."""
    name = f"{os.environ[_TEMPLATE]}_{uuid.uuid4().hex[:12]}"
    with _database(name, "template0") as url:
        yield url


@contextmanager
def _database(name: str, template: str) -> Iterator[str]:
    with psycopg.connect(server(), autocommit=True) as connection:
        create = sql.SQL("CREATE DATABASE {} TEMPLATE {}")
        connection.execute(create.format(sql.Identifier(name), sql.Identifier(template)))
    try:
        yield _with_database(server(), name)
    finally:
        with psycopg.connect(server(), autocommit=True) as connection:
            drop = sql.SQL("DROP DATABASE {} WITH (FORCE)")
            connection.execute(drop.format(sql.Identifier(name)))


def _with_database(url: str, name: str) -> str:
    return urlunsplit(urlsplit(url)._replace(path=f"/{name}"))


def server_and_name(url: str) -> tuple[str, str]:
    """Return the URL of the server's own database, and the name of the one at ``url``."""
    return server(), urlsplit(url).path.removeprefix("/")
