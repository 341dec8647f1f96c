"""What the commands report of errors."""

from collections.abc import Iterator
from contextlib import contextmanager

import click

from persistence.errors import PersistenceError
from server.settings import SettingsError


@contextmanager
def reported(*kinds: type[Exception]) -> Iterator[None]:
    """Report errors of settings and of the database, and of ``kinds``, as one line; exit with 1."""
    expected: tuple[type[Exception], ...] = (SettingsError, PersistenceError, *kinds)
    try:
        yield
    except expected as error:
        raise click.ClickException(str(error)) from error
