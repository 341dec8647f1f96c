"""``listings statuses``."""

import asyncio
from typing import TYPE_CHECKING

import click

from server.cli.errors import reported
from server.settings import Settings

if TYPE_CHECKING:
    from persistence.reclassification import Reclassification


@click.group("statuses", invoke_without_command=True)
@click.pass_context
def statuses_group(context: click.Context) -> None:
    """Print what each word of a payment status means.

    A line has the state, a word, whose word it is, and where that is documented. It is the table in
    force: the built-in one, with the words of LISTINGS_PAYMENT_STATUSES over it. Words of
    DISPUTE_REVERSED and REFUND_REVERSED lead a payment back to the state that it had before. Case,
    white space, - and _ make no difference to a word.
    """
    if context.invoked_subcommand is None:
        _print_table()


@statuses_group.command()
def apply() -> None:
    """Classify orders anew, after the table of words has changed.

    First restart all processes of the service, so that they have the new table. While a process
    has another table, this command does nothing.

    It changes an order if its word means something else than at the last run, or if its state is
    UNKNOWN or not derived yet. Each change is an event in the order's history. The command may run
    while the service does, and again after an interruption.
    """
    from server.process.database import owner_url
    from server.process.status_words import apply_words, described, read_status_words

    with reported():
        settings = Settings.read()
        words = read_status_words(settings)
        click.echo(f"Words: {described(settings, words)}")
        with owner_url(settings) as url:
            _print_changes(asyncio.run(apply_words(url, words)))


def _print_changes(done: "Reclassification") -> None:
    from persistence.status_words_file import section_of

    for word, (before, after) in done.words.items():
        click.echo(f"{section_of(before)} -> {section_of(after)}: the word {word!r}")
    for (state, new), number in sorted(done.moves.items(), key=lambda move: move[0][1]):
        old = "not classified" if state is None else state.name
        click.echo(f"{old} -> {new.name}: {number} order{'s' if number != 1 else ''}")
    if not done.moves:
        click.echo("No order changes its state.")


def _print_table() -> None:
    from server.process.status_words import read_status_words

    with reported():
        words = read_status_words(Settings.read())
    # A line break in a word is white space like any other.
    rows = [(e.meaning, " ".join(e.word.split()), e.provider, e.source) for e in words.entries()]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)][:-1]
    for *cells, source in rows:
        padded = (f"{cell:{width}}" for cell, width in zip(cells, widths, strict=True))
        click.echo("  ".join([*padded, source]))
    own_intents = ", ".join(words.own_intents)
    click.echo(f"\nRefunds, disputes and chargebacks have intents of their own at: {own_intents}")
    click.echo(f"Digest of the meanings: {words.digest}")
