"""The processes of a run: started and always stopped here."""

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, cast

import psutil

from benchmarks.contestants import Contestant
from benchmarks.errors import BenchmarkError
from benchmarks.jobs import Job, Timing

_POOL_SIZE = 10
_START_SECONDS = 30
_STOP_SECONDS = 15
_LOG_CHARACTERS = 2_000


@dataclass(frozen=True)
class Server:
    """A running contestant."""

    base_url: str
    process: psutil.Process
    log: Path

    def is_alive(self) -> bool:
        """Return whether its first process still runs."""
        with suppress(psutil.Error):
            return bool(self.process.status() != psutil.STATUS_ZOMBIE)
        return False


@contextmanager
def server(contestant: Contestant, database_url: str, log: Path) -> Iterator[Server]:
    """Run a contestant on a free port, with its settings and the defaults of all others."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("LISTINGS_")} | {
        "LISTINGS_DATABASE_URL": database_url,
        "LISTINGS_PORT": "0",
        "LISTINGS_POOL_SIZE": str(_POOL_SIZE),
        "LISTINGS_WORKERS": str(contestant.workers),
        **contestant.settings,
    }
    with (
        log.open("wb") as output,
        _running(contestant.command, environment, stdout=output, stderr=output) as process,
    ):
        yield Server(_base_url(contestant, process, log), psutil.Process(process.pid), log)


class Load:
    """A client of the process of ``benchmarks.load``."""

    def __init__(self, jobs: IO[bytes], answers: IO[bytes]) -> None:
        self._jobs = jobs
        self._answers = answers

    def run(self, job: Job) -> Timing:
        """Do ``job``. Raises BenchmarkError when a call fails."""
        self._jobs.write(json.dumps(asdict(job)).encode() + b"\n")
        self._jobs.flush()
        answer = json.loads(self._answers.readline() or '{"error": "the load has ended"}')
        if "error" in answer:
            raise BenchmarkError(answer["error"])
        return Timing(**answer)


@contextmanager
def load() -> Iterator[Load]:
    """Run the load process."""
    environment = os.environ | {"no_proxy": "127.0.0.1"}
    command = (sys.executable, "-m", "benchmarks.load")
    with _running(command, environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        yield Load(cast(IO[bytes], process.stdin), cast(IO[bytes], process.stdout))


def cpu_seconds(process: psutil.Process) -> float:
    """Return the CPU time, user and system, of ``process`` and all its children, ended ones too."""
    total = 0.0
    for child in process.children(recursive=True):
        with suppress(psutil.NoSuchProcess):  # ended: counted in its parent's children
            total += _own_cpu_seconds(child)
    return total + _own_cpu_seconds(process)


def _own_cpu_seconds(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system + times.children_user + times.children_system)


def resident_bytes(process: psutil.Process) -> float:
    """Return the resident memory of ``process``; with children, their average.

    A process with children, as with a process per core, only supervises them.
    """
    sizes = [each.memory_info().rss for each in process.children(recursive=True)]
    return float(sum(sizes) / len(sizes) if sizes else process.memory_info().rss)


@contextmanager
def _running(
    command: Sequence[str],
    environment: dict[str, str],
    *,
    stdin: int = subprocess.DEVNULL,
    stdout: "int | IO[bytes]",
    stderr: "IO[bytes] | None" = None,
) -> "Iterator[subprocess.Popen[bytes]]":
    """Run ``command``; at the end send SIGTERM, and SIGKILL if that is not enough.

    In a session of its own, so that Ctrl-C reaches the benchmark alone, which ends them in order.
    """
    with subprocess.Popen(
        command, env=environment, stdin=stdin, stdout=stdout, stderr=stderr, start_new_session=True
    ) as process:
        try:
            yield process
        finally:
            try:
                process.terminate()
                with suppress(subprocess.TimeoutExpired):
                    process.wait(_STOP_SECONDS)
            finally:
                process.kill()
                process.wait()


def _base_url(contestant: Contestant, process: "subprocess.Popen[bytes]", log: Path) -> str:
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        if found := re.search(r"http://127\.0\.0\.1:\d+", log.read_text()):
            return found[0]
        time.sleep(0.005)
    raise BenchmarkError(f"{contestant.name} did not start:\n{log_tail(log)}")


def log_tail(log: Path) -> str:
    """Return the end of what a server has printed."""
    return log.read_text(errors="replace")[-_LOG_CHARACTERS:]
