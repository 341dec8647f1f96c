"""``listings new-history``, run as a process, and the commands that ask for it."""

import os
import signal
from pathlib import Path

import psycopg

from tests.support import databases, service
from tests.support.command_line import listings
from tests.support.doctor import examined, problem
from tests.support.waiting import eventually

REMEDY = "Run `listings new-history`"


def restore(url: str, sequence_at: int = 41) -> None:
    """Insert an event with an id of the future, as a restore brings it."""
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(
            "INSERT INTO order_payment_events"
            " (id, order_id, storefront_id, transaction_id, payment_status_after)"
            " OVERRIDING SYSTEM VALUE VALUES (41, 1, 1, '1000000000000', 'paid')"
        )
        connection.execute("SELECT setval('order_payment_events_id_seq', %s)", (sequence_at,))


def epochs(url: str) -> list[tuple[int, int, str | None]]:
    with psycopg.connect(url) as connection:
        return connection.execute(
            "SELECT id, last_event_id, reason FROM payment_history_epochs ORDER BY id"
        ).fetchall()


def test_a_sound_history(database_url: str) -> None:
    done = listings("new-history", url=database_url)
    text = "Nothing to do: transaction ids and sequences are sound.\n"
    assert (done.returncode, done.stdout) == (0, text)
    assert epochs(database_url) == [(1, 0, None)]

    done = listings("new-history", "--force", "--yes", "--reason", "a drill", url=database_url)
    assert (done.returncode, done.stdout) == (
        0,
        "Found: nothing that needs a new epoch.\n"
        "Opened epoch 2: events up to 0 and refused events up to 0 are history.\n",
    )
    assert epochs(database_url) == [(1, 0, None), (2, 0, "a drill")]


def test_a_restored_history(database_url: str) -> None:
    """Neither `serve` nor `doctor` lets it pass; the command asks, and says what it has done."""
    restore(database_url, sequence_at=40)
    refused = listings("serve", url=database_url)
    assert refused.returncode == 1
    assert "order_payment_events has transaction ids of another cluster" in refused.stderr
    assert REMEDY in refused.stderr
    assert "Traceback" not in refused.stdout + refused.stderr
    found = problem(examined(databases.for_service(database_url)), "history")
    assert REMEDY in found
    assert "up to 1000000000000, and this one is at" in found

    asked = listings("new-history", url=database_url, answer="n\n")
    assert asked.returncode == 1
    assert asked.stdout.startswith("Found: order_payment_events has transaction ids of another ")
    assert "Begin a new epoch? Watches from a position before it end with HISTORY" in asked.stdout
    assert len(epochs(database_url)) == 1

    done = listings("new-history", url=database_url, answer="y\n")
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith(
        "Opened epoch 2: events up to 41 and refused events up to 0 are history.\n"
        "Set sequence public.order_payment_events_id_seq: 40 -> 41.\n"
    )
    report = examined(databases.for_service(database_url), healthy=True)
    assert report["history"][1].startswith("epoch 2, since ")


def test_a_worker_does_not_start_on_a_history_that_was_replaced(
    database_url: str, tmp_path: Path
) -> None:
    with service.running(database_url, tmp_path / "log", workers="2") as running:
        restore(database_url)
        killed = running.serving_processes()[0]
        os.kill(killed.pid, signal.SIGKILL)
        eventually(lambda: REMEDY in running.log.read_text())
        assert running.logged(event="worker failed")
        assert listings("new-history", "--yes", url=database_url).returncode == 0
        eventually(lambda: len(running.serving_processes()) == 2)


def test_without_migrations(empty_database_url: str) -> None:
    done = listings("new-history", url=empty_database_url)
    assert done.returncode == 1
    assert done.stderr.startswith("Error: ")
    assert "listings migrate up" in done.stderr
