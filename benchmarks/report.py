"""What is told of a run: its figures, and what they depend on."""

import os
import platform
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from statistics import median

from benchmarks.contestants import Contestant
from benchmarks.measuring import Results

# The measure, what it is called, what its figures are multiplied by, and the decimals shown.
_ROWS = (
    ("server_cpu", "server CPU, µs a call", 1e6, 0),
    ("postgres_cpu", "PostgreSQL CPU, µs a call", 1e6, 0),
    ("rate", "calls a second", 1, 0),
    ("p50", "p50, ms", 1e3, 1),
    ("p99", "p99, ms", 1e3, 1),
    ("start", "start to first answer, s", 1, 2),
    ("memory", "memory at the end, MiB", 2**-20, 0),
)

_LIBRARIES = (
    *("connectrpc", "uvicorn", "zttp", "protobuf-py", "protovalidate", "databases"),
    *("asyncpg", "uvloop", "grpcio", "protobuf", "pyqwest"),
)


def text(contestants: Sequence[Contestant], results: Results) -> str:
    """Return the figures, and below them the ratios of ours to each peer's, as plain tables."""
    figures = [
        ["", *(each.name for each in contestants)],
        *(
            [
                label,
                *(_spread(results[each.name].get(key, ()), factor, digits) for each in contestants),
            ]
            for key, label, factor, digits in _ROWS
        ),
    ]
    pairs = [(each.against, each.name) for each in contestants if each.against]
    ratios = [
        ["", *(f"{ours} / {peer}" for ours, peer in pairs)],
        *(
            [
                label.partition(",")[0],
                *(_spread(_ratios(results, key, *pair), 1, 2) for pair in pairs),
            ]
            for key, label, _, _ in _ROWS
        ),
    ]
    return f"{_table(figures)}\n\n{_table(ratios)}"


def environment(postgres: str) -> dict[str, str]:
    """Return what the figures depend on: machine, Python, PostgreSQL and libraries."""
    return {
        "cores": str(os.cpu_count()),
        "CPU": _cpu_model(),
        "load average before": f"{os.getloadavg()[0]:.2f}",
        "Python": platform.python_version(),
        "PostgreSQL": postgres,
    } | {name: version(name) for name in _LIBRARIES}


def _ratios(results: Results, measure: str, ours: str, peer: str) -> list[float]:
    """Return what ours was to the peer's, round by round."""
    pairs = zip(results[ours].get(measure, ()), results[peer].get(measure, ()), strict=True)
    return [ours_figure / peers_figure for ours_figure, peers_figure in pairs]


def _spread(figures: Sequence[float], factor: float, decimals: int) -> str:
    if not figures:
        return "-"
    values = (median(figures), min(figures), max(figures))
    shown = [f"{factor * value:.{decimals}f}" for value in values]
    return shown[0] if len(figures) == 1 else "{} ({}..{})".format(*shown)


def _table(lines: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if number else cell.ljust(width)
            for number, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def _cpu_model() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
