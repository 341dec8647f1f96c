"""How yoyo connects to the database and locks it: the scheme ``listings:`` of yoyo's database URLs.

``listings migrate`` uses this backend, and so does the command ``yoyo``, because ``yoyo.ini`` names
the scheme. So both find the database by the same variables, and wait for each other.
"""

import getpass
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final, Self

import psycopg
from psycopg.conninfo import make_conninfo
from yoyo.backends import PostgresqlPsycopgBackend
from yoyo.connections import DatabaseURI
from yoyo.migrations import default_migration_table

from persistence.dsn import parameters

VARIABLES: Final = (
    "LISTINGS_MIGRATION_DATABASE_URL",
    "LISTINGS_DIRECT_DATABASE_URL",
    "LISTINGS_DATABASE_URL",
)
"""The environment variables with a libpq URL; the first one that is set names the database."""

_ADVISORY_LOCK = 0x6C697374696E6773  # "listings" in ASCII, as one 64-bit key
_POLL_SECONDS = 0.1


class ListingsBackend(PostgresqlPsycopgBackend):
    """A connection of yoyo's. Use it as a context manager, which closes it.

    yoyo's own backend reads a URL with one host only and locks by a row, which a killed process
    leaves behind. This one takes any libpq URL, and an advisory lock besides the row: PostgreSQL
    releases it when the session of its holder ends.
    """

    @classmethod
    def open(cls, url: str) -> Self:
        """Connect to the database at ``url``, a libpq URL; ``lock`` prepares it for yoyo.

        Raises InvalidDatabaseURL or psycopg.Error.
        """
        uri = DatabaseURI("listings", None, None, None, None, None, {"url": url})
        return cls(uri, default_migration_table)

    def connect(self, dburi: DatabaseURI) -> psycopg.Connection:
        """Connect to the ``url`` among the arguments of ``dburi``, or as VARIABLES say.

        Raises InvalidArgument, which the command ``yoyo`` shows, when none of them is set.
        """
        try:
            getpass.getuser()
        except (KeyError, OSError):  # a numeric user without a name, as in a container
            os.environ["LOGNAME"] = str(os.getuid())  # yoyo logs who migrates
        self._url: str = dburi.args.get("url") or _url_from_environment()
        return connect(self._url)

    @contextmanager
    def lock(self, timeout: float = 10) -> Iterator[None]:
        """Hold yoyo's lock. Waits for other processes that use this backend, without a limit.

        It does not wait for one that uses another backend, but takes its lock away. ``timeout``, in
        seconds, has an effect only if that one takes it again at the same moment.
        """
        if self._is_locked:
            yield
            return
        with _advisory_lock(self._url):
            self.init_database()  # type: ignore[no-untyped-call] # yoyo's tables, with DDL
            # The row of a process that was killed. Of a live one, it would hold the advisory lock.
            self.break_lock()  # type: ignore[no-untyped-call]
            with super().lock(timeout):
                yield


def connect(url: str) -> psycopg.Connection:
    """Connect to a libpq URL, in autocommit mode. Raises InvalidDatabaseURL or psycopg.Error."""
    return psycopg.connect(make_conninfo(**parameters(url)), autocommit=True)


@contextmanager
def _advisory_lock(url: str) -> Iterator[None]:
    with connect(url) as connection:
        # Polled, because a statement that waits for the lock is an old transaction, for which the
        # holder's CREATE INDEX CONCURRENTLY would wait in turn.
        while not _try_lock(connection):
            time.sleep(_POLL_SECONDS)
        yield


def _try_lock(connection: psycopg.Connection[Any]) -> bool:
    row = connection.execute("SELECT pg_try_advisory_lock(%s)", (_ADVISORY_LOCK,)).fetchone()
    return row is not None and bool(row[0])


def _url_from_environment() -> str:
    for name in VARIABLES:
        if url := os.environ.get(name):
            return url
    from yoyo.scripts.main import InvalidArgument

    raise InvalidArgument(
        f"name the database: set {VARIABLES[-1]} to a libpq URL, or give "
        "--database postgresql+psycopg://user:password@host/database"
    )
