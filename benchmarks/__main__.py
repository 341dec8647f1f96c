"""The command line: ``python -m benchmarks``, or ``./justw bench``."""

import json
import signal
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import IO

import click
import psycopg

from benchmarks import report
from benchmarks.contestants import contestants
from benchmarks.database import prepared
from benchmarks.measuring import Plan, measure
from benchmarks.processes import BenchmarkError
from benchmarks.tokens import token_costs
from persistence.errors import PersistenceError

_NOTES = """
Median (lowest..highest) of the rounds; ratios are taken round by round. Less is better, but for
calls a second. CPU is user and system time, start is from starting the process to the end of its
first call, memory is resident memory. The load shares the machine with what it measures, which
shows in calls a second and in latency more than in CPU a call.
"""

_count = click.IntRange(min=1)


@click.command(context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.option("--orders", type=_count, default=100_000, help="Orders in the table.")
@click.option("--requests", type=_count, default=2_000, help="Calls to each contestant a round.")
@click.option("--rounds", type=_count, default=7, help="Rounds that count, after a warm-up.")
@click.option("--concurrency", type=_count, default=10, help="Calls at a time.")
@click.option(
    "--output", type=click.File("w", lazy=False), help="Write all figures there, as JSON."
)
def main(
    orders: int, requests: int, rounds: int, concurrency: int, output: "IO[str] | None"
) -> None:
    """Measure the service beside what its users would write instead.

    Updates random orders, with an embedded PostgreSQL, or the server that LISTINGS_DATABASE_URL
    names; there in a database of its own, which is dropped at the end. Ends with 1 when any call
    fails.
    """
    # The default would end the process on the spot, and leave what it has started running.
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: sys.exit(1))
    plan = Plan(rounds, requests, concurrency)
    try:
        with tempfile.TemporaryDirectory(prefix="listings-bench-") as name:
            scratch = Path(name)
            all_contestants = contestants(scratch)
            _say(f"Preparing {orders:,} orders")
            with prepared(orders) as database:
                environment = report.environment(database.version)
                results = measure(all_contestants, plan, database, scratch, _say)
            tokens = token_costs(scratch)
    except (BenchmarkError, PersistenceError, psycopg.Error) as error:
        raise click.ClickException(str(error)) from error
    click.echo(f"\n{report.text(all_contestants, results)}\n{_NOTES}")
    click.echo(
        f"{orders:,} orders, {rounds} rounds of {requests:,} calls, {concurrency} calls at a time\n"
        + ", ".join(f"{name} {value}" for name, value in environment.items())
    )
    for name, (new, seen) in tokens.items():
        click.echo(
            f"A token by {name}: {seen * 1e6:.1f} us if seen before, {new * 1e6:.0f} us if new"
        )
    if output:
        parameters = {"orders": orders, **asdict(plan)}
        kept = {"environment": environment, "parameters": parameters, "results": results}
        kept["tokens"] = tokens
        output.write(json.dumps(kept, indent=2) + "\n")


def _say(line: str) -> None:
    click.echo(line, err=True)


if __name__ == "__main__":
    main()
