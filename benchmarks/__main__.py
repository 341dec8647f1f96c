"""The command line: ``python -m benchmarks``, or ``./justw bench``."""

import signal
import sys
from pathlib import Path
from typing import Any

import click
import psycopg

from benchmarks import report, results
from benchmarks.errors import BenchmarkError
from benchmarks.running import PARTS, Wanted, measured
from benchmarks.wire import FEWEST_ORDERS
from persistence.errors import PersistenceError

_NOTES = """
Median (lowest..highest) of the rounds; ratios are taken round by round. CPU is user and system
time, by the accounting of the operating system, of all processes of the server and of PostgreSQL.
Calls a second are those of a closed loop with 32 callers, latencies those of calls by the clock at
half of that rate, without their first half second. Memory is resident memory after the round; start
is from starting the process to the end of its first call. Everybody shares the machine with the
load, which shows in calls a second and in latency more than in CPU a call. The load comes from
h2load over HTTP/2 and from wrk over HTTP/1.1, latencies over HTTP/1.1 from h2load as well. h2load
cannot send a key of its own with each call: those over HTTP/2 come from a Python program, which
takes more of the machine. Over HTTP/1.1 and HTTP/2, calls a second are therefore not to be
compared, nor with and without keys.
"""
_QUICK: dict[str, Any] = {
    "rounds": 1,
    "seconds": 0.5,
    "orders": (10_000, 100_000),
    "memory_calls": 20_000,
}

_count = click.IntRange(min=1)


@click.command(context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.option(
    "--contestant",
    "contestants",
    multiple=True,
    help="Only this one; a name, or a pattern as 'listings-*'. May be given several times.",
)
@click.option(
    "--part",
    "parts",
    type=click.Choice(PARTS),
    multiple=True,
    default=PARTS,
    show_default=False,
    help="Only this part. May be given several times.",
)
@click.option("--rounds", type=_count, default=3, help="Rounds of everything.")
@click.option(
    "--seconds",
    type=click.FloatRange(min=0.1),
    default=2.0,
    help="How long a load lasts, about; one by the clock 2.5 times as long.",
)
@click.option(
    "--orders",
    type=click.IntRange(min=FEWEST_ORDERS),
    multiple=True,
    default=(100_000, 10_000_000),
    help="Orders in the table; several for the cost by table size, and all else with the first.",
)
@click.option(
    "--memory-calls", type=_count, default=1_000_000, help="Calls after which memory is compared."
)
@click.option("--quick", is_flag=True, help="Small numbers for all of these: does it work?")
@click.option(
    "--write", is_flag=True, help="Write the figures into benchmarks/RESULTS.md, with plots."
)
@click.option(
    "--output",
    type=click.Path(file_okay=False, path_type=Path),
    help="Write RESULTS.md, plots and all figures as JSON into this directory.",
)
def main(quick: bool, write: bool, output: Path | None, **options: Any) -> None:
    """Measure the service beside what its users would write instead.

    Updates random orders, with an embedded PostgreSQL, or the server that LISTINGS_DATABASE_URL
    names; there in databases of its own, which are dropped at the end. Ends with 1 when any call
    fails.
    """
    # The default action of SIGTERM would end the process and leave its children running.
    for each in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(each, lambda *_: sys.exit(1))
    wanted = Wanted(**options | (_QUICK if quick else {}))
    directories = [each for each in (output, Path(__file__).parent if write else None) if each]

    def keep(run: report.Run) -> None:
        for directory in directories:
            results.write(run, _NOTES, directory)

    try:
        run = measured(wanted, _say, keep)
    except (BenchmarkError, PersistenceError, psycopg.Error) as error:
        raise click.ClickException(str(error)) from error
    for table in report.tables(run):
        click.echo(f"\n{table.text()}")
    click.echo(_NOTES)
    for values in (run.parameters, run.environment):
        click.echo(", ".join(f"{name} {value}" for name, value in values.items()))


def _say(line: str) -> None:
    click.echo(line, err=True)


if __name__ == "__main__":
    main()
