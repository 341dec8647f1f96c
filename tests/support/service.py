"""The service as a process, started by its command line."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil
from prometheus_client.parser import text_string_to_metric_families

from persistence.roles import APPLICATION
from tests.support import databases, fork_server, pooler
from tests.support.fork_server import Process

_START_SECONDS = 30
_STOP_SECONDS = 30


@dataclass(frozen=True)
class Service:
    """A running service, the URL of its database, and its log."""

    base_url: str
    database_url: str
    process: Process
    log: Path

    @property
    def port(self) -> int:
        """The port that it listens on, at 127.0.0.1."""
        return int(self.base_url.rpartition(":")[2])

    def serving_processes(self) -> list[psutil.Process]:
        """The workers, or the process itself where it has none."""
        process = psutil.Process(self.process.pid)
        return process.children() or [process]

    def logged(self, **wanted: object) -> list[dict[str, Any]]:
        """Return the entries of the log that have these values, oldest first."""
        lines = self.log.read_text().splitlines(keepends=True)
        # The last line may be incomplete.
        entries = [json.loads(line) for line in lines if line.endswith("\n")]
        return [entry for entry in entries if wanted.items() <= entry.items()]

    def metrics(self) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
        """Return the metrics of /metrics: values by name and labels."""
        page = httpx.get(f"{self.base_url}/metrics", trust_env=False).text
        return {
            (sample.name, frozenset(sample.labels.items())): sample.value
            for family in text_string_to_metric_families(page)
            for sample in family.samples
        }

    def metric(self, name: str, **labels: str) -> float:
        """Return one value, or 0 if it does not exist."""
        return self.metrics().get((name, frozenset(labels.items())), 0)

    def stop(self) -> int:
        """Send SIGTERM and return the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(_STOP_SECONDS)


@contextmanager
def running(
    database_url: str, log: Path, *, terminal: str | None = None, **settings: str
) -> Iterator[Service]:
    """Run ``listings serve`` on a free port, and kill it at the end if it still runs.

    On the database at ``database_url``, as the application role, or on an embedded one.
    ``terminal`` is the path of its controlling terminal, if any.
    """
    env = environment_on(database_url, settings)
    process: Process
    with log.open("wb") as output, open(os.devnull, "rb") as nothing:
        if terminal:  # the first terminal that a session leader opens controls it
            process = subprocess.Popen(
                ["sh", "-c", 'exec "$@" <"$0"', terminal, sys.executable, "-m", "server", "serve"],
                start_new_session=True,
                env=env,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        else:
            out = output.fileno()
            process = fork_server.start(
                ["serve"], env, stdin=nothing.fileno(), stdout=out, stderr=out
            )
    try:
        yield Service(_base_url(process, log), database_url, process, log)
    finally:
        process.kill()
        process.wait()


@contextmanager
def on_own_database(log: Path, **settings: str) -> Iterator[Service]:
    """Run ``listings serve`` on a new database; at the end, it must exit with 0."""
    with databases.clone() as url, running(url, log, **settings) as service:
        yield service
        assert service.stop() == 0


def environment_on(database_url: str, settings: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return an environment for a service on the database at ``database_url``.

    The service connects as the application role, and through the pooler, if one is used.
    """
    if not database_url:
        return environment("", settings)
    own = {}
    if pooler.is_used():
        direct = databases.with_role(database_url, APPLICATION)
        own = {"prepared_statements": "off", "direct_database_url": direct}
    return environment(databases.for_service(database_url), own | dict(settings or {}))


def environment(database_url: str, settings: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return an environment for the command line, with these ``LISTINGS_…`` settings alone."""
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("LISTINGS_")}
    # An empty value is like an unset one. One worker, unless a test needs several.
    own = {"LISTINGS_DATABASE_URL": database_url, "LISTINGS_PORT": "0", "LISTINGS_WORKERS": "1"}
    given = {f"LISTINGS_{name.upper()}": value for name, value in (settings or {}).items()}
    return inherited | own | given


def _base_url(process: Process, log: Path) -> str:
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline:
        if found := re.search(r'"url": "(https?://[^"]+)"', log.read_text()):
            return found[1]
        if process.poll() is not None:
            break
        time.sleep(0.005)
    raise AssertionError(f"the service did not start:\n{log.read_text()}")
