"""PgBouncer in transaction mode, between the service and PostgreSQL: ``pytest --pgbouncer``.

The settings are those of docs/operations.md. Tests set up and inspect the database by a direct
connection; the code under test connects through the pooler.
"""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from urllib.parse import quote, urlsplit, urlunsplit

import psycopg

from persistence.dsn import parameters
from persistence.roles import APPLICATION
from tests.support.waiting import eventually

# By these, the workers of a parallel run find the pooler that the first process has started.
_POOLER = "LISTINGS_TEST_POOLER"
_SERVER = "LISTINGS_TEST_POOLED_SERVER"

_PORT = 6432
_START_SECONDS = 20

_SETTINGS = {
    "pool_mode": "transaction",
    "listen_addr": "",
    "listen_port": str(_PORT),  # a part of the socket's name
    "unix_socket_dir": "{directory}",
    "auth_type": "trust",
    "auth_file": "{directory}/users",
    "default_pool_size": "20",
    "max_client_conn": "1000",
    "server_login_retry": "1",
    "ignore_startup_parameters": "extra_float_digits,options",
    "logfile": "{directory}/log",
}


def binary() -> str | None:
    """Return the path of PgBouncer, if it is installed."""
    return shutil.which("pgbouncer", path=f"{os.environ['PATH']}:/usr/sbin")


def start(server_url: str) -> ExitStack:
    """Start PgBouncer for the code under test, before that server. Close the result to stop it."""
    stack = ExitStack()
    directory = stack.enter_context(running(server_url))
    os.environ[_POOLER] = str(directory)
    os.environ[_SERVER] = server_url
    stack.callback(os.environ.pop, _POOLER)
    return stack


@contextmanager
def running(server_url: str, **changed: str) -> Iterator[Path]:
    """Run PgBouncer in front of that server, and yield the directory of its socket.

    ``changed`` are settings of pgbouncer.ini.
    """
    program = binary()
    assert program, "pgbouncer is not installed; on Debian: apt-get install pgbouncer"
    directory = Path(tempfile.mkdtemp(prefix="listings-pooler-"))
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, directory, ignore_errors=True)
        server = parameters(server_url)
        users, file = directory / "users", directory / "pgbouncer.ini"
        password = server.pop("password", "")
        names = (server.pop("user"), APPLICATION)
        users.write_text("".join(f'"{name}" "{password}"\n' for name in names))
        settings = _SETTINGS | changed
        lines = (f"{name} = {value}" for name, value in settings.items())
        host = " ".join(f"{name}={server[name]}" for name in ("host", "port") if name in server)
        file.write_text(
            "\n".join(["[databases]", f"* = {host}", "[pgbouncer]", *lines, ""]).replace(
                "{directory}", str(directory)
            )
        )
        # It refuses to run as root, and needs access to the directory of PostgreSQL's socket.
        owner = Path(server["host"]).stat() if server.get("host", "").startswith("/") else None
        user = owner.st_uid if owner and os.geteuid() == 0 else None
        for path in (directory, file, users):
            os.chown(path, user if user is not None else -1, -1)
        process = subprocess.Popen(
            [program, "--quiet", str(file)], user=user, stdin=subprocess.DEVNULL
        )
        stack.callback(process.wait, 30)
        stack.callback(process.terminate)
        eventually(lambda: _answers(at(server_url, directory)), _START_SECONDS)
        yield directory


def at(url: str, directory: Path) -> str:
    """Return the URL of the same database through the PgBouncer of that directory."""
    parts = urlsplit(url)
    user = parts.netloc.rpartition("@")[0]
    query = f"host={quote(str(directory), safe='')}&port={_PORT}&sslmode=disable"
    return urlunsplit(parts._replace(netloc=f"{user}@", query=query))


def is_used() -> bool:
    """Whether the code under test connects through PgBouncer."""
    return _POOLER in os.environ


def through(url: str) -> str:
    """Return the URL of the same database through PgBouncer, if it is used."""
    pooler = os.environ.get(_POOLER)
    parts, server = urlsplit(url), urlsplit(os.environ.get(_SERVER, ""))
    host = parts.netloc.rpartition("@")[2]
    if pooler is None or (host, parts.query) != (server.netloc.rpartition("@")[2], server.query):
        return url
    return at(url, Path(pooler))


def _answers(url: str) -> bool:
    try:
        psycopg.connect(url).close()
    except psycopg.OperationalError:
        return False
    return True
