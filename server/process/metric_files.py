"""The directory of files in which several processes of the service add up their metrics.

Each process that uses it holds a shared lock on a file in it, and the last one removes it. The
kernel releases the locks of processes that are killed: what they leave is removed by the next
start.
"""

import fcntl
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

_VARIABLE: Final = "PROMETHEUS_MULTIPROC_DIR"
_PREFIX: Final = "listings-metrics-"
_LOCK: Final = "lock"


@contextmanager
def shared_metrics() -> Iterator[None]:
    """Have the processes that are forked before the exit add up their metrics, in shared files.

    Enter it before prometheus_client is imported:
    https://prometheus.github.io/client_python/multiprocess/
    """
    _remove_unused()
    while True:
        directory = Path(tempfile.mkdtemp(prefix=_PREFIX))
        with _used(directory):
            # Another start may have removed it before it was locked.
            if (directory / _LOCK).exists():
                os.environ[_VARIABLE] = str(directory)
                yield
                return


@contextmanager
def inherited_metrics() -> Iterator[None]:
    """Use the directory in a forked process. It stays while this one or its parent runs."""
    with _used(Path(os.environ[_VARIABLE])):
        yield


@contextmanager
def _used(directory: Path) -> Iterator[None]:
    # lockf and not flock: a forked process does not share the lock of its parent.
    lock = os.open(directory / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.lockf(lock, fcntl.LOCK_SH)
        yield
    finally:
        # Before the exclusive lock: of two processes that end at once, one gets that.
        fcntl.lockf(lock, fcntl.LOCK_UN)
        _remove_unless_locked(directory, lock)
        os.close(lock)


def _remove_unused() -> None:
    for directory in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        try:
            status = directory.lstat()
            if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid():
                continue
            lock = os.open(directory / _LOCK, os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:  # it is being made, or removed
            continue
        try:
            _remove_unless_locked(directory, lock)
        finally:
            os.close(lock)


def _remove_unless_locked(directory: Path, lock: int) -> None:
    try:
        fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return
    shutil.rmtree(directory, ignore_errors=True)
