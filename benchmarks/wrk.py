"""Load by wrk over HTTP/1.1, with a body and a key for each call from ``wrk.lua``."""

import re
import secrets
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from benchmarks.errors import BenchmarkError
from benchmarks.jobs import Job, Timing
from benchmarks.wire import PATH, PROTOCOLS

_SCRIPT: Final = Path(__file__).with_name("wrk.lua")
_PAUSE: Final = 0.005
_SLOWEST: Final = 50.0  # calls a second; a slower load is considered hung
_GRACE: Final = 30.0
_END_SECONDS: Final = 10.0
_ANSWERED: Final = re.compile(r"answered (\d+) in ([\d.]+)")
_ENDED: Final = re.compile(r"ended (\d+) (\d+)")


def run(job: Job, alive: Callable[[], bool]) -> Timing:
    """Do ``job``. Raises BenchmarkError when a call fails, or the server has ended."""
    limit = job.calls / _SLOWEST + _GRACE
    command = ["wrk", "--threads=1", f"--connections={job.connections}", f"--duration={limit:.0f}s"]
    command += ["--timeout=20s", f"--script={_SCRIPT}", job.base_url + PATH, "--"]
    command += [PROTOCOLS[job.protocol].headers["content-type"], str(job.orders), str(job.calls)]
    command += [str(job.connections), "keyed" if job.keyed else "", secrets.token_hex(8)]
    with TemporaryDirectory(prefix="listings-wrk-") as directory:
        output = Path(directory) / "output"
        with (
            output.open("wb") as file,
            subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                start_new_session=True,
            ) as process,
        ):
            try:
                _wait(process, output, alive)
                process.send_signal(signal.SIGINT)
                process.wait(_END_SECONDS)
            except subprocess.TimeoutExpired as error:
                raise BenchmarkError("wrk did not end") from error
            finally:
                process.kill()
        return _timing(output.read_text(errors="replace"), job.calls)


def _wait(process: "subprocess.Popen[bytes]", output: Path, alive: Callable[[], bool]) -> None:
    """Return when wrk has reported that all calls are answered, or has ended."""
    while process.poll() is None and not _ANSWERED.search(output.read_text(errors="replace")):
        if not alive():
            raise BenchmarkError("the server has ended")
        time.sleep(_PAUSE)


def _timing(output: str, calls: int) -> Timing:
    answered, ended = _ANSWERED.search(output), _ENDED.search(output)
    if not answered or not ended:
        raise BenchmarkError(f"not all calls of wrk were answered: {output.strip()[-500:]}")
    if (int(ended[1]), int(ended[2])) != (calls, 0):
        raise BenchmarkError(f"wrk had {ended[2]} errors, and {ended[1]} answers to {calls} calls")
    return Timing(calls, calls / float(answered[2]))
