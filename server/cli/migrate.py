"""``listings migrate``."""

import click

from server.cli.errors import reported
from server.settings import Settings


@click.group("migrate")
def migrate_group() -> None:
    """Change the database's schema, or show its state."""


@migrate_group.command()
def up() -> None:
    """Apply the migrations that are missing."""
    from persistence import migrations
    from server.process.database import owner_url

    with reported(), owner_url(Settings.read()) as url:
        _report("Applied", migrations.up(url))


@migrate_group.command()
@click.argument("version")
@click.option("--yes", is_flag=True, help="Do not ask.")
def down(version: str, *, yes: bool) -> None:
    """Roll back what was applied after VERSION, which stays.

    VERSION is the number that a migration begins with, or 0 to roll back everything.
    """
    from persistence import migrations
    from server.process.database import owner_url

    with reported():
        migrations.up_to(version)  # raises on a VERSION that there is not, before anything starts
        with owner_url(Settings.read()) as url:
            if not yes:
                click.confirm(
                    f"Rolling back to {version} deletes columns or tables, with the payments in "
                    "them. Go on?",
                    abort=True,
                )
            _report("Rolled back", migrations.down(url, version))


@migrate_group.command()
def status() -> None:
    """List the migrations, and when each was applied."""
    from persistence import migrations
    from server.process.database import owner_url

    with reported(), owner_url(Settings.read()) as url:
        for migration in migrations.status(url):
            applied = migration.applied_at
            state = f"applied {applied:%Y-%m-%d %H:%M:%S} UTC" if applied else "pending"
            click.echo(f"{migration.id}  {state}")


def _report(done: str, ids: list[str]) -> None:
    for name in ids:
        click.echo(f"{done} {name}")
    if not ids:
        click.echo("Nothing to do.")
