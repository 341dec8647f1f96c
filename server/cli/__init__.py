"""The command line ``listings``.

Each command is a module, which imports what it alone needs when it runs: all of it takes a second,
and ``--help`` a fifth of that. May import everything of ``server`` but ``asgi``.
"""

import click

from server.cli.dev_token import dev_token_command
from server.cli.doctor import doctor_command
from server.cli.migrate import migrate_group
from server.cli.new_history import new_history_command
from server.cli.refused import refused_group
from server.cli.seed import seed_command
from server.cli.serve import serve_command
from server.cli.signals import exit_on_termination
from server.cli.statuses import statuses_group
from server.cli.tail import tail_command
from server.cli.verify import verify_command
from server.observability import logging
from server.process import garbage


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="listings")
def main() -> None:
    """The Listings Service: payments of a shop's orders, over gRPC, gRPC-Web and JSON.

    Settings come from LISTINGS_... environment variables. Without LISTINGS_DATABASE_URL, an
    embedded PostgreSQL keeps its data below the current directory, in LISTINGS_DATA_DIR.
    """
    garbage.skip_collection_at_exit()
    logging.configure(form=logging.CONSOLE)
    exit_on_termination()


for _command in (
    serve_command,
    migrate_group,
    seed_command,
    statuses_group,
    refused_group,
    new_history_command,
    verify_command,
    tail_command,
    dev_token_command,
    doctor_command,
):
    main.add_command(_command)
