"""Load by h2load: a fleet of 32 processes, each with orders of its own.

h2load sends the same body repeatedly, and an update that changes nothing costs PostgreSQL less: no
event is inserted into the history. But h2load reads the body from its file for each request. So the
files are mapped into memory here and overwritten during the load, with another order and another
transaction. ``measuring`` counts in the history how often that was in time for the next call.
"""

import mmap
import re
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import cycle
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO, Final, NamedTuple

from benchmarks.errors import BenchmarkError
from benchmarks.jobs import Job, Timing
from benchmarks.wire import LANES, PATH, PROTOCOLS, Protocol, bodies

MOST_CALLS: Final = 1_900
"""Per connection. After some 2,000, the service sends GOAWAY, and h2load never reconnects."""

_PAUSE: Final = 0.0005
_PAUSE_A_LANE: Final = 0.00006  # limits the CPU time that replacing the bodies takes
_SETTLING: Final = 0.5  # seconds of a paced load in which processes and connections are still new
_PAUSES_A_LOOK: Final = 200
_MOST_PROCESSES: Final = 128
_TICKS: Final = 100  # of h2load's clock, per second
_SLOWEST: Final = 50.0  # calls a second; a slower load is considered hung
_GRACE: Final = 30.0
_DOCUMENT: Final = 100
_COUNTS: Final = re.compile(
    r"(\d+) total, \d+ started, (\d+) done, (\d+) succeeded, "
    r"(\d+) failed, (\d+) errored, (\d+) timeout"
)
_DATA: Final = re.compile(r"\((\d+)\) data")


class _Call(NamedTuple):
    start: float
    end: float


def run(job: Job, alive: Callable[[], bool]) -> Timing:
    """Do ``job``. The number of calls is rounded, so that all processes make equally many.

    Raises BenchmarkError when a call fails, or ``alive`` returns False: the server has ended.
    """
    # A process with several connections sends the same body on all that are due together.
    processes = job.connections if job.connections <= _MOST_PROCESSES else LANES
    connections = job.connections // processes
    requests = max(connections, round(job.calls / processes))
    if requests > connections * MOST_CALLS:
        raise BenchmarkError(
            f"{job.calls:,} calls over {job.connections} connections are more than {MOST_CALLS:,}"
            " over each; let the load take fewer seconds"
        )
    with TemporaryDirectory(prefix="listings-fleet-") as name, ExitStack() as stack:
        directory = Path(name)
        lanes = [
            stack.enter_context(_lane(directory / f"body{lane}", job, lane % LANES))
            for lane in range(processes)
        ]
        options = [f"--requests={requests}", f"--clients={connections}"]
        if job.rate:
            options += _pace(job.rate / processes, connections)
        commands = [_command(job, directory, lane, options) for lane in range(processes)]
        expected = job.calls / (job.rate or _SLOWEST)
        _race(commands, directory, lanes, time.monotonic() + expected * 2 + _GRACE, alive)
        for lane in range(processes):
            check(directory / f"output{lane}", requests, PROTOCOLS[job.protocol])
        logs = [_calls(directory / f"log{lane}") for lane in range(processes)]
        return _timing(logs, _SETTLING if job.rate else 0.0)


def _pace(rate: float, connections: int) -> list[str]:
    """Return the options of a process for a paced load of ``rate`` calls a second."""
    options = [f"--rps={rate / connections:.3f}"]
    if rate / connections <= _TICKS:
        # A slow call must not delay the start of the next one.
        options.append("--max-concurrent-streams=8")
    if connections > 1:
        # The connections must not all be due at the same time.
        options += ["--rate=1", f"--rate-period={max(1, round(1000 / rate))}ms"]
    return options


def _command(job: Job, directory: Path, lane: int, options: Sequence[str]) -> list[str]:
    protocol = PROTOCOLS[job.protocol]
    headers = [f"--header={name}: {value}" for name, value in protocol.headers.items()]
    files = (f"--data={directory}/body{lane}", f"--log-file={directory}/log{lane}")
    version = () if protocol.http2 else ("--h1",)
    return ["h2load", job.base_url + PATH, *options, *headers, *files, *version]


@contextmanager
def _lane(path: Path, job: Job, lane: int) -> "Iterator[Callable[[], None]]":
    """Make a file with a body, and yield a function that replaces the body by another."""
    made = bodies(PROTOCOLS[job.protocol], job.orders, lane)
    path.write_bytes(next(made))
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as mapped:

        def replace() -> None:
            mapped[:] = next(made)

        yield replace


def _race(
    commands: Sequence[Sequence[str]],
    directory: Path,
    lanes: Sequence[Callable[[], None]],
    deadline: float,
    alive: Callable[[], bool],
) -> None:
    """Run all ``commands`` at once, and replace the bodies of ``lanes`` until they have ended."""
    processes: list[subprocess.Popen[bytes]] = []
    try:
        for lane, command in enumerate(commands):
            with (directory / f"output{lane}").open("wb") as output:
                processes.append(_spawn(command, output))
        running = list(processes)
        pause = max(_PAUSE, _PAUSE_A_LANE * len(lanes))
        looks = cycle(range(_PAUSES_A_LOOK))
        while running:
            for replace in lanes:
                replace()
            time.sleep(pause)
            if running[0].poll() is not None:
                running.pop(0)
            if time.monotonic() > deadline:
                raise BenchmarkError("h2load did not end: some call is never answered")
            if not next(looks) and not alive():
                raise BenchmarkError("the server has ended")
    finally:
        for process in processes:
            process.kill()
            process.wait()


def _spawn(command: Sequence[str], output: IO[bytes]) -> "subprocess.Popen[bytes]":
    return subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=output,
        start_new_session=True,
    )


def check(output: Path, requests: int, protocol: Protocol) -> None:
    """Raise BenchmarkError unless each request was answered with an order."""
    text = output.read_text(errors="replace")
    found = _COUNTS.search(text)
    if not found:
        raise BenchmarkError(f"h2load failed: {text.strip()[-500:]}")
    total, done, succeeded, *bad = map(int, found.groups())
    if not total == done == succeeded == requests or any(bad):
        raise BenchmarkError(f"h2load says: {found[0]}")
    data = _DATA.search(text)
    # h2load counts a gRPC error as a success. Its response has no order.
    if protocol.http2 and (not data or int(data[1]) < requests * _DOCUMENT):
        raise BenchmarkError("there was no order in some of the answers")


def _calls(log: Path) -> list[_Call]:
    calls = []
    for line in log.read_text().splitlines():
        start, _, took = line.split("\t")[:3]
        calls.append(_Call(int(start) / 1e6, (int(start) + int(took)) / 1e6))
    return calls


def _timing(logs: Sequence[Sequence[_Call]], settling: float) -> Timing:
    """Return the figures of the interval in which all processes were calling.

    It begins ``settling`` seconds after the last of them has begun.
    """
    everything = [call for log in logs for call in log]
    first = max(min(call.start for call in log) for log in logs) + settling
    last = min(max(call.end for call in log) for log in logs)
    within = [call for call in everything if call.start >= first and call.end <= last]
    if len(within) < len(everything) / 2:
        within = everything
        first = min(call.start for call in everything)
        last = max(call.end for call in everything)
    seconds = sorted(call.end - call.start for call in within)
    ended = sum(first <= call.end <= last for call in everything)
    return Timing(
        len(everything),
        ended / (last - first),
        seconds[len(seconds) // 2],
        seconds[len(seconds) * 99 // 100],
        tuple(call.end for call in everything),
    )
