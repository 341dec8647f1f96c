"""Databases for tests: clones of a migrated template, on a real PostgreSQL."""

import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import psycopg
from psycopg import sql

from persistence.database import Database
from persistence.roles import APPLICATION
from tests.support import catalog, pooler, postgres

_unused: list[str] = []
"""Clones of this process whose schema is unchanged, to be used again."""


def with_role(url: str, role: str) -> str:
    """Return ``url`` with ``role`` as the user; the password stays."""
    parts = urlsplit(url)
    user, at, host = parts.netloc.rpartition("@")
    password = user[len(user.partition(":")[0]) :]
    return urlunsplit(parts._replace(netloc=f"{role}{password}{at}{host}"))


def for_service(url: str) -> str:
    """Return the URL of that database for the code under test.

    It has the application role, and leads through the pooler, if one is used.
    """
    return pooler.through(with_role(url, APPLICATION))


def pool(url: str, **limits: float) -> Database:
    """Return the service's pool on the database at ``url``, with some limits changed."""
    usual = {"max_connections": 2, "connect_timeout": 5.0, "statement_timeout": 5.0}
    options: dict[str, Any] = usual | {"prepared_statements": not pooler.is_used()} | limits
    return Database(for_service(url), **options)


@contextmanager
def clone() -> Iterator[str]:
    """Yield the URL of a migrated, empty database, which nothing else uses meanwhile.

    It is a fresh one, or one whose rows alone were changed by the tests that had it before.
    """
    template = postgres.template()
    name = _unused.pop() if _unused else _created(template.name)
    unchanged = False
    try:
        yield postgres.at(name)
        unchanged = catalog.empty(postgres.at(name), template.fingerprint)
    finally:
        if unchanged:
            _unused.append(name)
        else:
            postgres.drop(name)


@contextmanager
def empty() -> Iterator[str]:
    """Yield the URL of a fresh database without any table."""
    name = _created("template0")
    try:
        yield postgres.at(name)
    finally:
        postgres.drop(name)


@contextmanager
def unreachable(url: str) -> Iterator[Callable[[], None]]:
    """End all connections to the database at ``url``, and refuse others.

    Yields a function that ends this early.
    """
    server, name = server_and_name(url)
    allow = sql.SQL("ALTER DATABASE {} ALLOW_CONNECTIONS {}")

    with psycopg.connect(server, autocommit=True) as connection:

        def set_reachable(reachable: bool = True) -> None:
            connection.execute(allow.format(sql.Identifier(name), sql.Literal(reachable)))

        set_reachable(False)
        connection.execute(
            "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE datname = %s",
            (name,),
        )
        try:
            yield set_reachable
        finally:
            set_reachable()


def _created(source: str) -> str:
    name = f"{postgres.template().name}_{uuid.uuid4().hex[:12]}"
    postgres.create(name, source)
    return name


def server_and_name(url: str) -> tuple[str, str]:
    """Return the URL of the server's own database, and the name of the one at ``url``."""
    return postgres.server(), urlsplit(url).path.removeprefix("/")
