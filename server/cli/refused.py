"""``listings refused``."""

import asyncio
from datetime import UTC, datetime, timedelta

import click

from server.cli.errors import reported
from server.settings import Settings


@click.group("refused")
def refused_group() -> None:
    """Delete old events that the service has refused."""


@refused_group.command()
@click.option("--money", is_flag=True, help="Also those that may tell of money.")
@click.option("--yes", is_flag=True, help="Do not ask.")
def purge(*, money: bool, yes: bool) -> None:
    """Delete events that were last refused more than LISTINGS_REFUSED_RETENTION days ago.

    Those that may tell of money are kept without --money: of a settled state, of a second payment,
    or of another currency.
    """
    from persistence import refused_purge
    from server.process.database import owner_url

    with reported():
        settings = Settings.read()
        days = settings.refused_retention
        before = datetime.now(UTC) - timedelta(days=days)
        with owner_url(settings) as url:
            old = asyncio.run(refused_purge.count(url, before))
            number = old.others + (old.money if money else 0)
            if old.money and not money:
                click.echo(f"{_events(old.money)} of money, older than {days} days: kept")
            if not number:
                click.echo("Nothing to do.")
                return
            if not yes:
                of_money = f", {old.money} of them of money" if money else ""
                click.confirm(
                    f"Delete {_events(number)} older than {days} days{of_money}?", abort=True
                )
            deleted = asyncio.run(refused_purge.purge(url, before, money=money))
            click.echo(f"Deleted {_events(deleted)}.")


def _events(number: int) -> str:
    return f"{number} refused event{'s' if number != 1 else ''}"
