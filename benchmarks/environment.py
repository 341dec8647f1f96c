"""The environment of a run: the machine, and the versions of the programs involved."""

import os
import platform
import re
import shutil
import subprocess
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Final

import psutil

from benchmarks import pgbench
from benchmarks.errors import BenchmarkError

_LIBRARIES: Final = (
    *("connectrpc", "uvicorn", "zttp", "protobuf-py", "protovalidate", "databases", "asyncpg"),
    *("uvloop", "grpcio", "grpclib", "fastapi", "sqlalchemy", "hypercorn", "protobuf", "pyqwest"),
)
_TOOLS: Final = {"h2load": "nghttp2-client", "wrk": "wrk"}
"""The load generators, and the packages of Debian and Ubuntu that contain them."""

_VERSION: Final = re.compile(r"\d+\.\d+(\.\d+)?\S*")


def check_tools() -> None:
    """Raise BenchmarkError if a load generator is missing."""
    for tool, package in _TOOLS.items():
        if not shutil.which(tool):
            raise BenchmarkError(
                f"{tool} is missing; in Debian and Ubuntu it is in the package {package}"
            )
    pgbench.command()


def environment(postgres: str) -> dict[str, str]:
    """Return the machine and the versions, by name."""
    return {
        "CPU": _cpu_model(),
        "cores": str(os.cpu_count()),
        "memory": f"{psutil.virtual_memory().total / 2**30:.0f} GiB",
        "kernel": f"{platform.system()} {platform.release()}",
        "Python": platform.python_version(),
        "PostgreSQL": postgres,
        "pgbench": _tool_version([pgbench.command(), "--version"]),
        "h2load": _tool_version(["h2load", "--version"]),
        "wrk": _tool_version(["wrk", "-v"]),
        "Go": _tool_version(["go", "version"]),
    } | {name: _library_version(name) for name in _LIBRARIES}


def _library_version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "-"


def _tool_version(command: Sequence[str]) -> str:
    if not shutil.which(command[0]):
        return "-"
    ran = subprocess.run(
        command, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=30, check=False
    )
    found = _VERSION.search(ran.stdout + ran.stderr)
    return found[0] if found else "?"


def _cpu_model() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
