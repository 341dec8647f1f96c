"""``listings seed``."""

import asyncio

import click

from server.cli.errors import reported
from server.settings import Settings


@click.command("seed")
@click.option("--orders", type=click.IntRange(1, 100_000_000), required=True, help="How many.")
@click.option("--yes", is_flag=True, help="Do not ask, even if the database has orders.")
def seed_command(orders: int, *, yes: bool) -> None:
    """Add demo orders: realistic, and the same each time."""
    from persistence import seeding
    from server.process.database import owner_url

    with reported(), owner_url(Settings.read()) as url:
        if not yes and not asyncio.run(seeding.is_empty(url)):
            click.confirm("The database has orders. Add demo orders to them?", abort=True)
        with click.progressbar(length=orders, label="Adding demo orders") as bar:
            asyncio.run(seeding.seed(url, orders, bar.update))
