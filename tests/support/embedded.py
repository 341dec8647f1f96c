"""Shared by tests of the embedded PostgreSQL: processes that use it, and its own processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import psycopg

ROOT = os.geteuid() == 0
ENVIRONMENT = {
    **os.environ,
    "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[2]), *sys.path]),
}

USER = """
import signal
import sys
from pathlib import Path
from persistence.embedded import running

signal.signal(signal.SIGINT, signal.default_int_handler)  # it may have come to us ignored
with running(Path(sys.argv[1])) as url:
    try:
        print(url, flush=True)
        command = sys.stdin.readline()
    except KeyboardInterrupt:
        print("interrupted", flush=True)
        command = sys.stdin.readline()
"""


class User:
    """Another process that uses the server of a data directory until ``leave`` is called."""

    def __init__(self, data_dir: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", USER, str(data_dir)],
            cwd="/",
            env=ENVIRONMENT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def line(self) -> str:
        """The next line that it prints: first the URL."""
        assert self.process.stdout is not None and self.process.stderr is not None
        line = self.process.stdout.readline().strip()
        assert line, self.process.stderr.read()
        return line

    def leave(self) -> None:
        _, errors = self.process.communicate("leave\n", timeout=60)
        assert self.process.returncode == 0, errors

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate(timeout=60)


def open_directory() -> Path:
    """A new directory that every account can enter."""
    directory = Path(os.path.realpath(tempfile.mkdtemp(prefix="pg", dir="/tmp")))
    directory.chmod(0o755)
    return directory


def servers_below(directory: Path) -> Iterator[psutil.Process]:
    """PostgreSQL's processes that work in or below `directory`."""
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.name() == "postgres" and process.cwd().startswith(f"{directory}/"):
                yield process


def postmaster(data_dir: Path) -> int:
    return int((data_dir / "pgdata" / "postmaster.pid").read_text().split("\n")[0])


def processes(data_dir: Path) -> list[int]:
    """All processes of the server, the postmaster first, so that it can stop before the others."""
    parent = psutil.Process(postmaster(data_dir))
    return [parent.pid, *(child.pid for child in parent.children())]


def signal_all(pids: list[int], number: signal.Signals) -> None:
    """Send a signal to those that still run: some serve a connection that has ended."""
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, number)


@contextmanager
def suspended(data_dir: Path) -> Iterator[None]:
    """Suspend the server: it accepts connections, and sends nothing."""
    pids = processes(data_dir)
    signal_all(pids, signal.SIGSTOP)
    try:
        yield
    finally:
        signal_all(pids, signal.SIGCONT)


def alive(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def ask(url: str, statement: str) -> object:
    with psycopg.connect(url, autocommit=True) as connection:
        cursor = connection.execute(statement)
        row = cursor.fetchone() if cursor.description else None
        return row[0] if row else None


def snapshot(directory: Path) -> dict[str, tuple[int, int, int, int]]:
    """Owner, mode and change time of everything in `directory`."""
    found = {}
    for path in (directory, *directory.rglob("*")):
        status = path.lstat()
        found[str(path)] = (status.st_uid, status.st_gid, status.st_mode, status.st_ctime_ns)
    return found
