"""Starts the command line by fork, which saves the time of its imports.

Each process that runs tests has a child that has only imported the modules of ``listings``. The
child forks a process for each start, and that process runs the command line. Arguments,
environment, working directory, standard streams, signals and exit code are as with
``subprocess.Popen``; only the start of the Python interpreter is left out.
"""

import functools
import gc
import importlib
import json
import os
import select
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final, NoReturn, Protocol

from tests.support.held import until_the_end

_LENGTH: Final = struct.Struct("!I")
_NUMBER: Final = struct.Struct("!i")  # a process id, or an exit code
_FDS: Final = 4  # the standard streams, and where the exit code is written
_BUSY_SECONDS: Final = 60

_IMPORTED: Final = (
    "persistence.embedded",
    "persistence.migrations",
    "persistence.seeding",
    "server.auth.dev_tokens",
    "server.process.doctor",
    "server.process.run",
    "server.process.start",
    "server.process.supervisor",
)
"""What the commands import when they run."""

_OF_A_TEST: Final = ("LISTINGS_", "PYTEST_", "OTEL_")
"""Variables that none of these modules reads while it is imported."""


class Process(Protocol):
    """What ``subprocess.Popen`` and ``Forked`` have in common."""

    pid: int

    @property
    def returncode(self) -> int | Any:
        """The exit code, negative for a signal; None while it is not known."""

    def poll(self) -> int | None:
        """Return the exit code, if it has ended."""

    def wait(self, timeout: float | None = None) -> int:
        """Wait until it has ended; return the exit code, or raise TimeoutExpired."""

    def send_signal(self, sig: int) -> None:
        """Send a signal, unless it has ended."""

    def terminate(self) -> None:
        """Send SIGTERM."""

    def kill(self) -> None:
        """Send SIGKILL."""


class Forked:
    """A process that the fork server has started."""

    def __init__(self, pid: int, exit_code: int, arguments: Sequence[str]) -> None:
        """``exit_code`` is a descriptor: the exit code can be read from it after the end."""
        self.pid = pid
        self.returncode: int | None = None
        self._arguments = arguments
        self._exit_code = exit_code
        self._reading = threading.Lock()
        weakref.finalize(self, os.close, exit_code)

    def poll(self) -> int | None:
        with self._reading:
            if self.returncode is None and select.select([self._exit_code], [], [], 0)[0]:
                self.returncode = _read_number(self._exit_code)
            return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        select.select([self._exit_code], [], [], timeout)
        if self.poll() is None:
            raise subprocess.TimeoutExpired(list(self._arguments), timeout or 0)
        assert self.returncode is not None
        return self.returncode

    def send_signal(self, sig: int) -> None:
        if self.poll() is None:
            with suppress(ProcessLookupError):
                os.kill(self.pid, sig)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


_avoided = False


@contextmanager
def avoided() -> Iterator[None]:
    """Start a new Python interpreter for each command within the context."""
    global _avoided  # noqa: PLW0603 - one for the process, as the fork server is
    before, _avoided = _avoided, True
    try:
        yield
    finally:
        _avoided = before


def start(
    arguments: Sequence[str], env: Mapping[str, str], *, stdin: int, stdout: int, stderr: int
) -> Process:
    """Start ``listings`` with these arguments, environment and descriptors.

    Forks only if imports do not depend on ``env``: metrics of several workers are combined only if
    a variable is set before imports, and libraries may read variables of their own.
    """
    own = {name: value for name, value in env.items() if not name.startswith(_OF_A_TEST)}
    alone = env.get("LISTINGS_WORKERS") == "1" and "--workers" not in arguments
    if alone and not _avoided and (server := _running()).environment == own:
        return server.start(arguments, env, (stdin, stdout, stderr))
    return subprocess.Popen(
        [sys.executable, "-m", "server", *arguments],
        env=env,
        stdin=stdin,
        stdout=stdout,
        stderr=stderr,
    )


class _Client:
    """The connection to the fork server of this process."""

    def __init__(self) -> None:
        self.environment = {k: v for k, v in os.environ.items() if not k.startswith(_OF_A_TEST)}
        self._control, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.support.fork_server", str(theirs.fileno())],
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=(theirs.fileno(),),
            )
        self._control.settimeout(_BUSY_SECONDS)
        self._one_at_a_time = threading.Lock()

    def start(
        self, arguments: Sequence[str], env: Mapping[str, str], streams: tuple[int, int, int]
    ) -> Forked:
        request = json.dumps([list(arguments), dict(env), str(Path.cwd())]).encode()
        exit_code, theirs = os.pipe()
        try:
            with self._one_at_a_time:
                socket.send_fds(self._control, [_LENGTH.pack(len(request))], [*streams, theirs])
                self._control.sendall(request)
                pid = _NUMBER.unpack(_received(self._control, _NUMBER.size))[0]
        finally:
            os.close(theirs)
        return Forked(pid, exit_code, arguments)

    def close(self) -> None:
        self._control.close()
        self._process.wait(_BUSY_SECONDS)


@functools.cache
def _running() -> _Client:
    client = _Client()
    until_the_end.callback(client.close)
    return client


def _received(control: socket.socket, size: int) -> bytes:
    """Return exactly so many bytes, or raise EOFError."""
    received = b""
    while len(received) < size:
        part = control.recv(size - len(received))
        if not part:
            raise EOFError
        received += part
    return received


def _read_number(descriptor: int) -> int:
    written = os.read(descriptor, _NUMBER.size)
    assert written, "the fork server has ended"
    code: int = _NUMBER.unpack(written)[0]
    return code


# The fork server itself


class _Server:
    def __init__(self, control: socket.socket) -> None:
        self._control = control
        self._woken, self._waker = socket.socketpair()
        for end in (self._woken, self._waker):
            end.setblocking(False)
        self._exit_codes: dict[int, int] = {}  # by process id: the descriptor to write it to
        self._interrupted = signal.signal(signal.SIGINT, signal.SIG_IGN)  # the tests handle it
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(self._waker.fileno())

    def serve(self) -> list[str]:
        """Fork for each request until the tests end. Returns in each child, with its arguments."""
        while True:
            ready, _, _ = select.select([self._control, self._woken], [], [])
            if self._woken in ready:
                with suppress(BlockingIOError):
                    while self._woken.recv(4096):
                        pass
                self._bury()
            if self._control in ready:
                arguments = self._fork()
                if arguments is not None:
                    return arguments

    def _bury(self) -> None:
        """Reap the children that have ended, and write their exit codes."""
        with suppress(ChildProcessError):
            while (ended := os.waitpid(-1, os.WNOHANG)) != (0, 0):
                pid, status = ended
                descriptor = self._exit_codes.pop(pid)
                with suppress(BrokenPipeError):
                    os.write(descriptor, _NUMBER.pack(os.waitstatus_to_exitcode(status)))
                os.close(descriptor)

    def _fork(self) -> list[str] | None:
        head, descriptors, _, _ = socket.recv_fds(self._control, _LENGTH.size, _FDS)
        if not head:
            self._leave()
        head += _received(self._control, _LENGTH.size - len(head))
        request = json.loads(_received(self._control, _LENGTH.unpack(head)[0]))
        *streams, exit_code = descriptors
        pid = os.fork()
        if pid == 0:
            self._become_child(request, streams, exit_code)
            arguments: list[str] = request[0]
            return arguments
        for descriptor in streams:
            os.close(descriptor)
        self._exit_codes[pid] = exit_code
        self._control.sendall(_NUMBER.pack(pid))
        return None

    def _become_child(self, request: Any, streams: Sequence[int], exit_code: int) -> None:
        """Set up this process as a newly started one, without state of the fork server."""
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.signal(signal.SIGINT, self._interrupted)
        for target, descriptor in enumerate(streams):
            os.dup2(descriptor, target)
        for descriptor in (*streams, exit_code, *self._exit_codes.values()):
            os.close(descriptor)
        for end in (self._control, self._woken, self._waker):
            end.close()
        arguments, env, directory = request
        os.environ.clear()
        os.environ.update(env)
        time.tzset()
        os.chdir(directory)
        sys.argv[1:] = arguments

    def _leave(self) -> NoReturn:
        """Kill the remaining children, and exit."""
        for pid in self._exit_codes:
            os.kill(pid, signal.SIGKILL)
        raise SystemExit(0)


def _main() -> None:
    control = socket.socket(fileno=int(sys.argv[1]))
    control.set_inheritable(False)

    for name in _IMPORTED:
        importlib.import_module(name)
    from server.cli import main

    assert threading.active_count() == 1, "a thread does not survive a fork"
    assert not any(name.startswith("opentelemetry") for name in sys.modules), "it reads OTEL_…"
    gc.freeze()  # the memory is shared, until a collection writes to it
    arguments = _Server(control).serve()
    main(arguments, prog_name="python -m server")


if __name__ == "__main__":
    _main()
