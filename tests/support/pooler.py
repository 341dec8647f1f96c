"""PgBouncer in transaction mode, between the service and PostgreSQL: ``pytest --pgbouncer``.

The settings are those of docs/operations.md. Tests set up and inspect the database by a direct
connection; the code under test connects through the pooler.
"""

import os
import shutil
import subprocess
import tempfile
from contextlib import ExitStack
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

_SETTINGS = """
[databases]
* = {server}

[pgbouncer]
pool_mode = transaction
listen_addr =
listen_port = {port}
unix_socket_dir = {directory}
auth_type = trust
auth_file = {directory}/users
default_pool_size = 20
max_client_conn = 1000
server_login_retry = 1
ignore_startup_parameters = extra_float_digits,options
logfile = {directory}/log
"""


def start(server_url: str) -> ExitStack:
    """Start PgBouncer in front of that server. Close the result to stop it."""
    binary = shutil.which("pgbouncer", path=f"{os.environ['PATH']}:/usr/sbin")
    assert binary, "pgbouncer is not installed; on Debian: apt-get install pgbouncer"
    stack = ExitStack()
    directory = Path(tempfile.mkdtemp(prefix="listings-pooler-"))
    stack.callback(shutil.rmtree, directory, ignore_errors=True)
    server = parameters(server_url)
    users, settings = directory / "users", directory / "pgbouncer.ini"
    password = server.pop("password", "")
    names = (server.pop("user"), APPLICATION)
    users.write_text("".join(f'"{name}" "{password}"\n' for name in names))
    del server["dbname"]
    settings.write_text(
        _SETTINGS.format(
            server=" ".join(f"{name}={value}" for name, value in server.items()),
            port=_PORT,
            directory=directory,
        )
    )
    # It refuses to run as root, and needs access to the directory of PostgreSQL's socket.
    owner = Path(server["host"]).stat() if server.get("host", "").startswith("/") else None
    user = owner.st_uid if owner and os.geteuid() == 0 else None
    for path in (directory, settings, users):
        os.chown(path, user if user is not None else -1, -1)
    process = subprocess.Popen(
        [binary, "--quiet", str(settings)], user=user, stdin=subprocess.DEVNULL
    )
    stack.callback(process.wait, 30)
    stack.callback(process.terminate)
    os.environ[_POOLER] = str(directory)
    os.environ[_SERVER] = server_url
    stack.callback(os.environ.pop, _POOLER)
    eventually(lambda: _answers(through(server_url)), _START_SECONDS)
    return stack


def is_used() -> bool:
    """Whether the code under test connects through PgBouncer."""
    return _POOLER in os.environ


def through(url: str) -> str:
    """Return the URL of the same database through PgBouncer, if it is used."""
    pooler = os.environ.get(_POOLER)
    parts, server = urlsplit(url), urlsplit(os.environ.get(_SERVER, ""))
    user, _, host = parts.netloc.rpartition("@")
    if pooler is None or (host, parts.query) != (server.netloc.rpartition("@")[2], server.query):
        return url
    query = f"host={quote(pooler, safe='')}&port={_PORT}&sslmode=disable"
    return urlunsplit(parts._replace(netloc=f"{user}@", query=query))


def _answers(url: str) -> bool:
    try:
        psycopg.connect(url).close()
    except psycopg.OperationalError:
        return False
    return True
