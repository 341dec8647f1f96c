"""The output directory of a run: RESULTS.md, its plots, and all figures as JSON."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from statistics import median
from typing import Any, Final

from benchmarks.report import Run, tables

_BEGIN: Final = "<!-- figures -->"
_END: Final = "<!-- end of figures -->"
_FRAME: Final = f"# Results\n\n{_BEGIN}\n{_END}\n"


def write(run: Run, notes: str, directory: Path) -> None:
    """Write all files. In an existing RESULTS.md, only the text between the marks is replaced."""
    directory.mkdir(parents=True, exist_ok=True)
    figures = json.dumps(asdict(run), indent=1, sort_keys=True, ensure_ascii=False)
    (directory / "results.json").write_text(figures + "\n")
    plots = _plot(run, directory)
    parts = [notes.strip(), *(each.markdown() for each in tables(run)), *plots, _depends(run)]
    file = directory / "RESULTS.md"
    before, found, rest = (file.read_text() if file.exists() else _FRAME).partition(_BEGIN)
    _, ended, after = rest.partition(_END)
    if not found or not ended:
        before, after = file.read_text().rstrip() + "\n\n", "\n"
    body = "\n\n".join(parts)
    file.write_text(f"{before}{_BEGIN}\n\n{body}\n\n{_END}{after}")


def _depends(run: Run) -> str:
    rows = [f"| {name} | {value} |" for name, value in run.environment.items()]
    return "\n".join(["### Measured on\n", "| | |", "| --- | --- |", *rows])


def _plot(run: Run, directory: Path) -> list[str]:
    """Write the plots that have data; return the Markdown that shows them."""
    matplotlib: Any = import_module("matplotlib")
    matplotlib.use("svg")
    # The same figures must give the same file.
    matplotlib.rcParams["svg.hashsalt"] = "listings"
    under = f"{run.environment['CPU']}, {run.environment['cores']} cores"
    shown = []
    if run.latency:
        _lines(
            directory / "latency.svg",
            "Latency by load",
            ("calls a second", "ms"),
            {
                f"{name}, {measure}": [
                    (median(point["rate"]), 1e3 * median(point[measure]))
                    for point in points.values()
                ]
                for name, points in run.latency.items()
                for measure in ("p50", "p99")
            },
            under,
        )
        shown.append("![Latency by load](latency.svg)")
    if run.table_size:
        _lines(
            directory / "table-size.svg",
            "Cost by orders in the table",
            ("orders", "µs of CPU a call"),
            {
                f"{name}, {label}": _points(points, measure, 1e6)
                for name, points in run.table_size.items()
                for measure, label in (("server_cpu", "service"), ("postgres_cpu", "PostgreSQL"))
            },
            under,
        )
        shown.append("![Cost by orders in the table](table-size.svg)")
    return shown


def _points(
    points: Mapping[str, Mapping[str, Sequence[float]]], measure: str, factor: float
) -> list[tuple[float, float]]:
    return [
        (float(point), factor * median(measures[measure]))
        for point, measures in points.items()
        if measures.get(measure)
    ]


def _lines(
    file: Path,
    title: str,
    axes: tuple[str, str],
    lines: Mapping[str, Sequence[tuple[float, float]]],
    under: str,
) -> None:
    pyplot: Any = import_module("matplotlib.pyplot")
    figure, plot = pyplot.subplots(figsize=(7, 4.5), layout="constrained")
    for name, points in lines.items():
        if points:
            plot.plot(*zip(*points, strict=True), marker="o", label=name)
    xs = [x for points in lines.values() for x, _ in points]
    if xs and max(xs) > 1_000:
        plot.set_xscale("log")
    plot.set_ylim(bottom=0)
    plot.set(title=title, xlabel=f"{axes[0]}\n{under}", ylabel=axes[1])
    plot.grid(visible=True, alpha=0.3)
    plot.legend()
    figure.savefig(file, metadata={"Date": None})
    pyplot.close(figure)
