"""``listings refused``, run as a process."""

import psycopg

from tests.support.command_line import listings
from tests.support.history import connect


def refused(url: str, *events: tuple[int, str, bool]) -> None:
    """Add an event for each days since it was refused, reason, and whether it tells of money."""
    with connect(url) as connection:
        for number, (days, reason, tells_of_money) in enumerate(events):
            connection.execute(
                "INSERT INTO refused_payment_events (order_id, digest, reason, written,"
                " tells_of_money, request_id, first_refused_at, last_refused_at) SELECT %s,"
                " gen_random_uuid(), %s, false, %s, 'r', age, age"
                " FROM (SELECT now() - make_interval(days => %s)) t (age)",
                (number, reason, tells_of_money, days),
            )


def left(url: str) -> int:
    with psycopg.connect(url) as connection:
        row = connection.execute("SELECT count(*) FROM refused_payment_events").fetchone()
    assert row is not None
    return int(row[0])


def test_without_a_subcommand_the_help_is_printed() -> None:
    done = listings("refused")
    assert "purge" in done.stdout + done.stderr


def test_purge(database_url: str) -> None:
    refused(
        database_url,
        (401, "PAYMENT_EVENT_LATE", False),
        (401, "PAYMENT_DUPLICATE", True),
        (399, "PAYMENT_EVENT_LATE", False),
        (0, "PAYMENT_EVENT_LATE", False),
    )
    asked = listings("refused", "purge", url=database_url, answer="n\n")
    assert (asked.returncode, left(database_url)) == (1, 4)
    assert "Delete 1 refused event older than 400 days? [y/N]" in asked.stdout
    done = listings("refused", "purge", "--yes", url=database_url)
    assert (done.returncode, done.stdout) == (
        0,
        "1 refused event of money, older than 400 days: kept\nDeleted 1 refused event.\n",
    )
    done = listings("refused", "purge", "--money", url=database_url, answer="y\n")
    assert "Delete 1 refused event older than 400 days, 1 of them of money? [y/N]" in done.stdout
    assert left(database_url) == 2
    short = {"refused_retention": "398"}
    assert listings("refused", "purge", url=database_url).stdout == "Nothing to do.\n"
    done = listings("refused", "purge", "--yes", url=database_url, settings=short)
    assert (done.stdout, left(database_url)) == ("Deleted 1 refused event.\n", 1)


def test_without_migrations(empty_database_url: str) -> None:
    done = listings("refused", "purge", url=empty_database_url)
    assert done.returncode == 1
    assert done.stderr.startswith("Error: ")
    assert "listings migrate up" in done.stderr
