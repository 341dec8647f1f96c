"""The command line, run as a process."""

import os
import subprocess
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from tempfile import TemporaryFile

from tests.support import fork_server, service
from tests.support.fork_server import Process

_SECONDS = 60


def listings(
    *arguments: str, url: str = "", answer: str = "", settings: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end on the database at ``url``, or on an embedded one."""
    with TemporaryFile() as stdin, TemporaryFile() as stdout, TemporaryFile() as stderr:
        stdin.write(answer.encode())
        stdin.seek(0)
        process = fork_server.start(
            arguments,
            service.environment(url, settings),
            stdin=stdin.fileno(),
            stdout=stdout.fileno(),
            stderr=stderr.fileno(),
        )
        try:
            code = process.wait(_SECONDS)
        finally:
            process.kill()
            process.wait()
        printed = []
        for each in (stdout, stderr):
            each.seek(0)
            printed.append(each.read().decode())
        return subprocess.CompletedProcess(arguments, code, *printed)


@contextmanager
def started(*arguments: str, url: str, stdout: int, stderr: int) -> Iterator[Process]:
    """Start a command on the database at ``url``, and kill it at the end if it still runs.

    ``stdout`` and ``stderr`` are descriptors, of which the command has copies.
    """
    with open(os.devnull, "rb") as nothing:
        process = fork_server.start(
            arguments,
            service.environment(url),
            stdin=nothing.fileno(),
            stdout=stdout,
            stderr=stderr,
        )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


@contextmanager
def on_terminal(*arguments: str, url: str) -> Iterator[tuple[Process, Callable[[], str]]]:
    """Start a command whose output is a terminal; yield it, and what returns all it has shown."""
    ours, theirs = os.openpty()
    os.set_blocking(ours, False)
    read: list[bytes] = []

    def seen() -> str:
        try:
            while chunk := os.read(ours, 65536):
                read.append(chunk)
        except BlockingIOError:
            pass
        return b"".join(read).decode().replace("\r\n", "\n")

    try:
        with started(*arguments, url=url, stdout=theirs, stderr=theirs) as process:
            yield process, seen
    finally:
        os.close(ours)
        os.close(theirs)
