"""The report of a run: tables of its figures, as plain text and as Markdown."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any, Final

from benchmarks.reads import FAST, OFF
from benchmarks.reads import Costs as ReadCosts
from benchmarks.rounds import Results
from benchmarks.series import Series
from benchmarks.targets import Target, targets
from benchmarks.tokens import Costs
from benchmarks.updates import BEFORE, NOW
from benchmarks.updates import Costs as UpdateCosts

# The measure, its heading, the factor of its figures, and the decimals shown.
_COLUMNS: Final[Sequence[tuple[str, str, float, int]]] = (
    ("server_cpu", "server CPU, µs a call", 1e6, 0),
    ("postgres_cpu", "PostgreSQL CPU, µs a call", 1e6, 0),
    ("rate", "calls a second", 1, 0),
    ("p50", "p50 at half, ms", 1e3, 2),
    ("p99", "p99 at half, ms", 1e3, 2),
    ("same_p50", "p50 at listings-grpc's half, ms", 1e3, 2),
    ("same_p99", "p99 at listings-grpc's half, ms", 1e3, 2),
    ("memory", "memory a worker, MiB", 2**-20, 0),
    ("start", "start to first answer, s", 1, 2),
)
_SERIES_NAMES: Final = {"p50": "p50, ms", "p99": "p99, ms"}


@dataclass
class Run:
    """All figures of a run, and its environment."""

    environment: dict[str, str]
    parameters: dict[str, Any]
    rounds: Results = field(default_factory=dict)
    latency: Series = field(default_factory=dict)
    table_size: Series = field(default_factory=dict)
    connections: Series = field(default_factory=dict)
    memory: Series = field(default_factory=dict)
    tokens: Costs = field(default_factory=dict)
    updates: UpdateCosts = field(default_factory=dict)
    reads: ReadCosts = field(default_factory=dict)


@dataclass(frozen=True)
class Table:
    """Cells by row; the first row is the header, and the first column has the names of the rows."""

    title: str
    lines: Sequence[Sequence[str]]

    def text(self) -> str:
        """Return it as plain text."""
        widths = [max(map(len, column)) for column in zip(*self.lines, strict=True)]
        rows = (
            "  ".join(
                cell.rjust(width) if number else cell.ljust(width)
                for number, (cell, width) in enumerate(zip(line, widths, strict=True))
            ).rstrip()
            for line in self.lines
        )
        return "\n".join([f"{self.title}\n", *rows])

    def markdown(self) -> str:
        """Return it as Markdown."""
        head, *body = ["| " + " | ".join(line) + " |" for line in self.lines]
        rule = "| --- |" + " ---: |" * (len(self.lines[0]) - 1)
        return "\n".join([f"### {self.title}\n", head, rule, *body])


def tables(run: Run) -> list[Table]:
    """Return all tables that are not empty."""
    reached = targets(run.rounds, run.table_size, run.connections, run.memory, run.reads)
    all_tables = [
        Table("Targets", [_TARGET_HEAD, *(_target(each) for each in reached)]),
        *_rounds(run.rounds),
        _series("Latency by load, in percent of the highest rate", "%", run.latency),
        _series("Cost by orders in the table", "orders", run.table_size),
        _series("Cost by connections, at the same rate", "connections", run.connections),
        _series("Memory by calls", "calls", run.memory),
        _tokens(run.tokens),
        _updates(run.updates),
        _reads(run.reads),
    ]
    return [each for each in all_tables if len(each.lines) > 1]


_TARGET_HEAD: Final = ("", "limit", "measured", "")


def _target(target: Target) -> list[str]:
    words = {True: "met", False: "missed", None: "not measured"}
    limit = f"{'≥' if target.at_least else '≤'} {target.limit:g}"
    measured = _spread(target.measured, 1, 2)
    return [f"{target.number}. {target.text}", limit, measured, words[target.is_met]]


def _rounds(results: Results) -> Iterator[Table]:
    """Yield costs and latencies as separate tables, so that no line is too long."""
    for title, columns in (
        ("What a call costs", [*_COLUMNS[:3], *_COLUMNS[7:]]),
        ("Latency at half of the highest rate", _COLUMNS[3:7]),
    ):
        lines = [["", *(label for _, label, _, _ in columns)]]
        for name, measures in results.items():
            cells = [
                _spread(measures.get(key, ()), factor, decimals)
                for key, _, factor, decimals in columns
            ]
            if set(cells) != {"-"}:
                lines.append([name, *cells])
        yield Table(title, lines)


def _series(title: str, unit: str, series: Series) -> Table:
    present = {
        measure for points in series.values() for found in points.values() for measure in found
    }
    columns = [
        (key, _SERIES_NAMES.get(key, label), factor, digits)
        for key, label, factor, digits in _COLUMNS
        if key in present
    ]
    lines = [["", unit, *(label for _, label, _, _ in columns)]]
    for name, points in series.items():
        for point, measures in points.items():
            cells = [
                _spread(measures.get(key, ()), factor, decimals)
                for key, _, factor, decimals in columns
            ]
            lines.append([name, f"{int(point):,}", *cells])
    return Table(title, lines)


def _tokens(costs: Costs) -> Table:
    lines = [["", "if new, µs", "if seen before, µs"]]
    for name, (new, seen) in costs.items():
        lines.append([name, f"{new * 1e6:.0f}", f"{seen * 1e6:.1f}"])
    return Table("What a token costs a call", lines)


def _updates(costs: UpdateCosts) -> Table:
    title = "PostgreSQL's CPU for the updates of an order, each with a key"
    return _compared(title, costs, {BEFORE: "version 0.1, µs", NOW: "now, µs"})


def _reads(costs: ReadCosts) -> Table:
    title = "Server CPU a call of reads over gRPC"
    return _compared(title, costs, {OFF: "fast path off, µs", FAST: "fast path on, µs"})


def _compared(title: str, costs: dict[str, dict[str, list[float]]], two: dict[str, str]) -> Table:
    """Return a table of ``two`` kinds of costs, with their headings, and the second's ratio."""
    lines = [["", *two.values(), "ratio"]]
    for name, kinds in costs.items():
        base, compared = (kinds[kind] for kind in two)
        ratios = [new / old for new, old in zip(compared, base, strict=True)]
        lines.append(
            [name, _spread(base, 1e6, 0), _spread(compared, 1e6, 0), _spread(ratios, 1, 2)]
        )
    return Table(title, lines)


def _spread(figures: Sequence[float], factor: float, decimals: int) -> str:
    if not figures:
        return "-"
    values = (median(figures), min(figures), max(figures))
    shown = [f"{factor * value:.{decimals}f}" for value in values]
    return shown[0] if len(figures) == 1 else "{} ({}..{})".format(*shown)
