"""``listings dev-token``."""

from pathlib import Path
from typing import Final

import click

from server.settings import Settings

_MAX_HOURS: Final = 168


@click.command("dev-token")
@click.option(
    "--permission", "permissions", multiple=True, help="What it permits; may be given repeatedly."
)
@click.option(
    "--storefront",
    "storefronts",
    multiple=True,
    type=click.IntRange(1),
    help="Limits it to a storefront, or to several.",
)
@click.option("--subject", default="developer", show_default=True, help="Who presents it.")
@click.option("--hours", default=8.0, show_default=True, type=float, help="Hours until it expires.")
@click.option(
    "--directory",
    default=".listings-dev",
    show_default=True,
    type=click.Path(file_okay=False, path_type=Path),
    help="Where the key is kept; made if missing.",
)
def dev_token_command(
    directory: Path,
    hours: float,
    permissions: tuple[str, ...],
    storefronts: tuple[int, ...],
    subject: str,
) -> None:
    """Make a token FOR DEVELOPMENT ONLY, and at first the key that signs it.

    Without --permission, it permits everything. The token alone goes to stdout.
    """
    from server.auth import dev_tokens
    from server.auth.permissions import required_permissions
    from server.auth.private_files import UnsafeFile

    settings, _ = Settings.check()
    every = sorted(set(required_permissions().values()))
    for permission in permissions:
        if permission not in every:
            text = f"there is no permission {permission!r}; give some of {', '.join(every)}"
            raise click.BadParameter(text, param_hint="--permission")
    if not subject:
        raise click.BadParameter("a subject is needed", param_hint="--subject")
    if not 0 < hours <= _MAX_HOURS:  # false for NaN
        raise click.BadParameter(f"expected up to {_MAX_HOURS} hours", param_hint="--hours")
    bearer = dev_tokens.Bearer(subject, permissions or every, storefronts)
    try:
        token = dev_tokens.make_token(settings, directory, bearer, hours)
    except UnsafeFile as error:
        raise click.ClickException(str(error)) from error
    except (OSError, ValueError) as error:
        raise click.ClickException(f"{directory}: {error}") from error
    click.echo(
        f"FOR DEVELOPMENT ONLY: anyone who can read {directory} can make tokens. A service "
        "accepts them by\n"
        f"export LISTINGS_JWKS={directory}/jwks.json"
        f" LISTINGS_JWT_ISSUER={settings.jwt_issuer or dev_tokens.ISSUER}"
        f" LISTINGS_JWT_AUDIENCE={settings.jwt_audience or dev_tokens.AUDIENCE}",
        err=True,
    )
    click.echo(token)
