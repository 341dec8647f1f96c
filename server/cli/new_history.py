"""``listings new-history``."""

import asyncio

import click

from server.cli.errors import reported
from server.settings import Settings


@click.command("new-history")
@click.option("--reason", help="Kept with the epoch.")
@click.option("--force", is_flag=True, help="Open an epoch although the history needs none.")
@click.option("--yes", is_flag=True, help="Do not ask.")
def new_history_command(*, reason: str | None, force: bool, yes: bool) -> None:
    """After a restore from a dump, or logical replication: begin a new epoch of the history.

    Up to now, the history has transaction ids of another cluster, and sequences that are behind
    their rows. All events that there are become history, which watches never send as new, and the
    sequences are set. Positions from before end with HISTORY_CHANGED. Does nothing where
    the history is sound and of this cluster.
    """
    from persistence import new_history
    from server.process.database import owner_url

    with reported(), owner_url(Settings.read()) as url:
        why = asyncio.run(new_history.reason_for_epoch(url))
        if why is None and not force:
            click.echo("Nothing to do: transaction ids and sequences are sound.")
            return
        click.echo(f"Found: {why or 'nothing that needs a new epoch'}.")
        if not yes:
            click.confirm(
                "Begin a new epoch? Watches from a position before it end with HISTORY_CHANGED",
                abort=True,
            )
        opened = asyncio.run(new_history.open_epoch(url, reason))
        click.echo(
            f"Opened epoch {opened.epoch}: events up to {opened.last_event_id} and refused events "
            f"up to {opened.last_refused_event_id} are history."
        )
        for sequence, before, now in opened.moved:
            click.echo(f"Set sequence {sequence}: {before} -> {now}.")
