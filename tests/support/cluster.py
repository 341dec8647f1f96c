"""A PostgreSQL server of a test's own, to be killed, suspended, filled up and failed over.

It runs the programs of the embedded PostgreSQL, or those of another version. The embedded server
itself cannot be used here: the processes that use it control when it runs.
"""

import os
import shlex
import shutil
import signal
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace

import psutil
import psycopg

from persistence.embedded import location
from persistence.embedded.location import Location
from tests.support import postgres, postgres_versions
from tests.support.embedded import open_directory, servers_below
from tests.support.waiting import eventually

_USER = "listings"
_DATABASE = "shop"
_START_SECONDS = 60

_SETTINGS = {
    "listen_addresses": "",
    "shared_buffers": "16MB",
    "log_min_messages": "warning",
}

_IS_SYNCHRONOUS = """
    SELECT EXISTS (SELECT FROM pg_stat_replication
                   WHERE application_name = %s AND sync_state = 'sync')
"""


@dataclass(frozen=True)
class Cluster:
    """A server on a Unix socket, with the default fsync = on."""

    place: Location
    settings: Mapping[str, str] = field(default_factory=dict)
    """Parameters from the start on."""

    @property
    def url(self) -> str:
        """The URL of its migrated database."""
        return url_of(self)

    def start(self) -> None:
        """Start the server, and wait until it takes connections."""
        directory = self.place.socket_directory()
        settings = _SETTINGS | {"unix_socket_directories": str(directory)} | dict(self.settings)
        options = " ".join(f"-c {name}={shlex.quote(value)}" for name, value in settings.items())
        # The postmaster.pid of a killed server names a process that may not have been reaped yet.
        left = ("pgdata/postmaster.pid", directory / f"{location.SOCKET}.lock")
        self.place.account.run("rm", "-f", *left, cwd=self.place.home)
        self.run(
            "pg_ctl",
            "start",
            "--pgdata=pgdata",
            "--log=postgres.log",
            f"--options={options}",
            "--wait",
            f"--timeout={_START_SECONDS}",
        )

    def kill(self) -> None:
        """Send SIGKILL to all processes while they are stopped, and wait until they have ended."""
        for process in self._suspend():
            with suppress(psutil.NoSuchProcess):
                process.kill()
        self.wait_until_gone()

    def kill_postmaster(self) -> None:
        """Kill the postmaster alone, and wait until the other processes have ended."""
        pid = (self.place.pgdata / "postmaster.pid").read_text().split("\n")[0]
        os.kill(int(pid), signal.SIGKILL)
        self.wait_until_gone()

    def kill_backend(self) -> None:
        """Kill one backend. PostgreSQL then ends all backends and runs crash recovery."""
        backend = self.execute(
            "SELECT pid FROM pg_stat_activity WHERE backend_type = 'client backend'"
            " AND pid <> pg_backend_pid() ORDER BY random() LIMIT 1"
        )
        assert isinstance(backend, int)
        os.kill(backend, signal.SIGKILL)

    @contextmanager
    def suspended(self) -> Iterator[None]:
        """Send SIGSTOP to all processes, so that the server does not answer; SIGCONT at the end."""
        stopped = self._suspend()
        try:
            yield
        finally:
            for process in stopped:
                with suppress(psutil.NoSuchProcess):
                    process.resume()

    @contextmanager
    def unreachable(self) -> Iterator[None]:
        """Take the socket away and end all sessions; give it back at the end, which takes no time.

        For clients, it is as if the server restarts, however long the machine takes for that.
        """
        socket = self.place.socket_directory() / location.SOCKET
        away = socket.with_suffix(".away")
        with psycopg.connect(self.url, autocommit=True) as connection:
            socket.rename(away)
            connection.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()"
            )
        try:
            yield
        finally:
            away.rename(socket)

    def wait_until_ready(self) -> None:
        """Wait until the server takes connections."""
        eventually(self._is_ready, _START_SECONDS)

    def wait_until_gone(self) -> None:
        """Wait until none of its processes is left."""
        eventually(lambda: not any(servers_below(self.place.home)), _START_SECONDS)

    def execute(self, statement: str, *parameters: object) -> object:
        """Run a statement; return the first value of its first row, if there is one."""
        with psycopg.connect(self.url, autocommit=True) as connection:
            cursor = connection.execute(statement.encode(), parameters or None)
            row = cursor.fetchone() if cursor.description else None
            return row[0] if row else None

    def configure(self, name: str, value: str) -> None:
        """Set a parameter that needs no restart, for all sessions."""
        self.execute(f"ALTER SYSTEM SET {name} = '{value}'")
        self.execute("SELECT pg_reload_conf()")
        eventually(lambda: self.execute(f"SHOW {name}") == value)

    def promote(self) -> None:
        """Promote a standby, and wait until it is the primary."""
        self.run("pg_ctl", "promote", "--pgdata=pgdata", "--wait", f"--timeout={_START_SECONDS}")

    def run(self, program: str, *arguments: str) -> None:
        """Run one of PostgreSQL's programs in the directory of the server; it must succeed."""
        finished = self.place.run(program, *arguments)
        log = self.place.log.read_text() if self.place.log.exists() else ""
        assert finished.returncode == 0, f"{program}: {finished.stderr}\n{log[-4096:]}"

    @contextmanager
    def standby(self, name: str = "standby") -> Iterator["Cluster"]:
        """Yield a synchronous standby: from now on, each commit on this server waits for it."""
        with _empty() as standby:
            standby.run(
                "pg_basebackup",
                "--pgdata=pgdata",
                f"--dbname=host={self.place.socket_directory()} user={_USER}"
                f" application_name={name}",
                "--write-recovery-conf",
                "--checkpoint=fast",
                "--no-sync",
            )
            standby.start()
            # Set after the backup, which copies settings: a promoted standby would wait for itself.
            self.configure("synchronous_standby_names", name)
            eventually(lambda: self.execute(_IS_SYNCHRONOUS, name))
            yield standby

    def _suspend(self) -> list[psutil.Process]:
        """Send SIGSTOP to all processes, and to those that they start meanwhile."""
        stopped: list[psutil.Process] = []
        while found := [each for each in servers_below(self.place.home) if each not in stopped]:
            for process in found:
                with suppress(psutil.NoSuchProcess):
                    process.suspend()
            stopped += found
        return stopped

    def _is_ready(self) -> bool:
        try:
            self.execute("SELECT")
        except psycopg.OperationalError:
            return False
        return True


def url_of(*clusters: Cluster, **options: str) -> str:
    """Return a URL that names several servers, with libpq's options."""
    hosts = ",".join(str(each.place.socket_directory()) for each in clusters)
    ports = ",".join("5432" for _ in clusters)
    others = "".join(f"&{name}={value}" for name, value in options.items())
    return f"postgresql://{_USER}@/{_DATABASE}?host={hosts}&port={ports}{others}"


@contextmanager
def running(
    *, major: int | None = None, is_migrated: bool = True, **settings: str
) -> Iterator[Cluster]:
    """Yield a new server with an empty database, which is migrated unless it is not to be.

    ``major`` is a version of ``postgres_versions``, None for the embedded one. ``settings`` are
    parameters from the start on.
    """
    with _empty() as prepared:
        place = prepared.place
        if major is not None:
            place = replace(place, programs=postgres_versions.programs(major))
        cluster = Cluster(place, settings)
        cluster.run(
            "initdb",
            "--pgdata=pgdata",
            f"--username={_USER}",
            "--encoding=UTF8",
            "--locale=C",
            "--auth=trust",
            "--no-sync",
        )
        cluster.start()
        maintenance = cluster.url.replace(f"/{_DATABASE}?", "/postgres?")
        with psycopg.connect(maintenance, autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {_DATABASE}".encode())
        if is_migrated:
            postgres.prepare(cluster.url)
        yield cluster


@contextmanager
def _empty() -> Iterator[Cluster]:
    directory = open_directory()
    cluster = Cluster(location.prepare(directory / "postgres"))
    try:
        yield cluster
    finally:
        cluster.kill()
        shutil.rmtree(directory, ignore_errors=True)
