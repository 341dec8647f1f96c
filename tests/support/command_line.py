"""The command line, run as a process."""

import subprocess
from collections.abc import Mapping
from tempfile import TemporaryFile

from tests.support import fork_server, service

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
