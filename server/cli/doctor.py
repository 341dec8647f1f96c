"""``listings doctor``."""

import click

from server.process import garbage


@click.command("doctor")
def doctor_command() -> None:
    """Check the installation, and say how to correct what is wrong.

    Checks the configuration, telemetry, keys of tokens, the certificate, the words of payment
    statuses, the database (rights, limits, durability, replication, schema) and the port, one line
    each. Exits with 1 when something is wrong; a warning is no such thing. Changes nothing, but
    starts an embedded database for the time.
    """
    garbage.pause_collection()
    from server.process.doctor import PROBLEM, examine

    verdicts = []
    for finding in examine():
        click.echo(f"{finding.verdict:<9}{finding.subject}: {finding.text}")
        verdicts.append(finding.verdict)
    if PROBLEM in verdicts:
        raise SystemExit(1)
