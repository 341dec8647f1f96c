"""The table at the end of a run: attempts and losses of each test."""

from collections.abc import Callable, Iterator

import pytest

from tests.support.trial import FULL, Trial


@pytest.fixture
def trial(record_property: Callable[[str, object], None]) -> Trial:
    """The number of attempts, and where to report them."""
    return Trial(record_property)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the table."""
    if FULL:
        rows = [("", "tried", "lost", ""), *_rows(terminalreporter)]
        widths = [max(len(row[column]) for row in rows) for column in range(3)]
        terminalreporter.section("what was tried, how often, and what was lost")
        for name, tried, lost, note in rows:
            cells = f"{name:{widths[0]}}  {tried:>{widths[1]}}  {lost:>{widths[2]}}  {note}"
            terminalreporter.line(cells.rstrip())


def _rows(reporter: pytest.TerminalReporter) -> Iterator[tuple[str, str, str, str]]:
    for outcome in ("passed", "failed"):
        for report in reporter.getreports(outcome):
            told = {name: str(value) for name, value in report.user_properties}
            if report.when == "call" and ("tried" in told or outcome == "failed"):
                note = told.get("note", "")
                yield (
                    report.nodeid.rpartition("/")[2],
                    told.get("tried", "?"),
                    told.get("lost", "?"),
                    note if outcome == "passed" else f"FAILED  {note}",
                )
