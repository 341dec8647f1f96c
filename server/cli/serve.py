"""``listings serve``."""

import importlib.metadata
from functools import partial
from typing import TYPE_CHECKING

import click
import structlog

from server.cli.errors import reported
from server.cli.signals import exit_on_interrupt
from server.observability import logging
from server.process import garbage
from server.settings import Settings

if TYPE_CHECKING:
    from server.process.certificates import TLS


@click.command("serve")
@click.option("--host", help="Address to listen on, instead of LISTINGS_HOST.")
@click.option("--port", type=click.IntRange(0, 65535), help="Port, instead of LISTINGS_PORT.")
@click.option(
    "--workers", type=click.IntRange(1, 256), help="Processes, instead of LISTINGS_WORKERS."
)
def serve_command(**options: str | int | None) -> None:
    """Serve until SIGTERM or Ctrl-C, then finish the calls that are under way.

    SIGHUP reloads certificates and keys, unless it comes because the terminal was closed.

    An embedded database is migrated first, and gets some demo orders while it is empty. A database
    that LISTINGS_DATABASE_URL names is neither migrated nor filled: see `listings migrate`.
    """
    garbage.pause_collection()
    from server.http.sockets import CannotListen
    from server.process.configuration import configure
    from server.process.start import start
    from server.process.supervisor import WorkersFailed

    exit_on_interrupt()
    given = {name: value for name, value in options.items() if value is not None}
    with reported(CannotListen, WorkersFailed):
        settings = configure(**given)
        start(settings, partial(_announce, settings))


def _announce(settings: Settings, base_url: str, tls: "TLS | None") -> None:
    """Print, or log off a terminal, that it serves, and a call to try."""
    from server.cli.example_call import example_call

    what = "Serving gRPC, gRPC-Web and Connect (JSON too)"
    example = example_call(base_url, tls, with_token=settings.jwks is not None)
    if logging.is_console(settings.log_format):
        click.echo(
            f"{what} on {base_url}\nPay for order 1:\n\n{example}\n\nCtrl-C stops the service."
        )
    else:
        version = importlib.metadata.version("listings")
        structlog.get_logger().info(what, url=base_url, version=version, example=example)
