"""``listings verify``."""

import asyncio
import sys
from typing import TYPE_CHECKING, Final

import click

from server.cli.errors import reported
from server.settings import Settings

if TYPE_CHECKING:
    from persistence.verification import Verified

_SHOWN: Final = 100


@click.command("verify")
@click.argument("orders", metavar="[ORDER]...", type=click.IntRange(min=1), nargs=-1)
@click.option("--all", "all_", is_flag=True, help=f"Print each fault, not only {_SHOWN}.")
def verify_command(orders: tuple[int, ...], *, all_: bool) -> None:
    """Check that each order's payment is what its history says.

    Each event must go on where the one before it ended, and the row must be what the last one left.
    Idempotency keys, transaction ids, refused events and sequences are checked, too. Of ORDER alone
    if given, by their ids: without sequences, and keys of other orders.

    Exits with 1 when something disagrees. Changes nothing, and may run while the service does.
    """
    from persistence import verification
    from server.process.database import owner_url

    with reported(), owner_url(Settings.read()) as url:
        if orders:
            done = asyncio.run(verification.verify_orders(url, orders))
        else:
            length = asyncio.run(verification.last_order_id(url))
            with click.progressbar(
                length=length,
                label="Verifying",
                file=sys.stderr,
                hidden=not sys.stderr.isatty(),
            ) as bar:
                done = asyncio.run(verification.verify(url, bar.update))
    _report(done, shown=None if all_ else _SHOWN)
    if not done.is_sound:
        raise SystemExit(1)


def _report(done: "Verified", shown: int | None) -> None:
    for fault in done.faults[:shown]:
        click.echo(fault)
    for sentence in done.sequences:
        click.echo(sentence)
    if shown is not None and len(done.faults) > shown:
        click.echo(f"… and {_counted(len(done.faults) - shown, 'more fault')}; --all prints them")
    for table in done.unread:
        click.echo(f"The sequence of {table} is not checked: this role may not read it.")
    counts = {"order": done.orders, "event": done.events, "refused event": done.refused}
    read = ", ".join(_counted(number, noun) for noun, number in counts.items())
    found = "nothing disagrees"
    if not done.is_sound:
        orders = _counted(len({fault.order_id for fault in done.faults}), "order")
        found = f"something disagrees in {orders}"
    if done.sequences:
        found += f"; behind: {_counted(len(done.sequences), 'sequence')}"
    click.echo(f"{read}: {found}.")


def _counted(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'s' if number != 1 else ''}"
