"""The command ``yoyo``, by itself and beside ``listings migrate``."""

import os
import re
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from threading import Event, Thread
from urllib.parse import quote, urlsplit

import psycopg
import pytest

from persistence import migrations
from persistence.schema import migration_ids
from persistence.yoyo_backend import VARIABLES, ListingsBackend

CHECKOUT = Path(__file__).resolve().parents[2]
ALL = migration_ids()
DATABASE = "LISTINGS_DATABASE_URL"
NOWHERE = "postgresql://nobody@127.0.0.1:1/nothing"


def yoyo(
    *arguments: str, settings: Mapping[str, str] | None = None, cwd: Path = CHECKOUT
) -> subprocess.CompletedProcess[str]:
    """Run the command with ``settings`` as its environment variables."""
    others = {name: value for name, value in os.environ.items() if name not in VARIABLES}
    return subprocess.run(
        [Path(sys.executable).with_name("yoyo"), *arguments],
        cwd=cwd,
        env=others | dict(settings or {}),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def listed(done: subprocess.CompletedProcess[str]) -> dict[str, str]:
    """Return the status of each migration that ``yoyo list`` has shown."""
    assert done.returncode == 0, done.stderr
    return {name: status for status, name in re.findall(r"^([AU])\s+(\S+)", done.stdout, re.M)}


def applied(url: str) -> list[str]:
    return [each.id for each in migrations.status(url) if each.applied_at]


def test_list_apply_and_rollback_share_their_state_with_listings(empty_database_url: str) -> None:
    url = empty_database_url
    assert listed(yoyo("list", settings={DATABASE: url})) == dict.fromkeys(ALL, "U")

    done = yoyo("apply", settings={DATABASE: url})
    assert done.returncode == 0, done.stderr
    assert applied(url) == ALL
    assert migrations.up(url) == []

    done = yoyo("rollback", settings={DATABASE: url})  # in batch mode, the last one
    assert done.returncode == 0, done.stderr
    assert applied(url) == ALL[:-1]
    assert migrations.down(url, ALL[0]) == ALL[-2:0:-1]

    expected = dict.fromkeys(ALL[1:], "U") | {ALL[0]: "A"}
    assert listed(yoyo("list", settings={DATABASE: url})) == expected
    done = yoyo("apply", "--revision", ALL[1], settings={DATABASE: url})
    assert done.returncode == 0, done.stderr
    assert migrations.up(url) == ALL[2:]


def test_another_directory_and_a_url_with_the_option(empty_database_url: str) -> None:
    """As yoyo is used without this project: the scheme of psycopg 3, and no variable."""
    url = urlsplit(empty_database_url)._replace(scheme="postgresql+psycopg").geturl()
    for command in ("apply", "list"):
        done = yoyo(command, "--database", url, cwd=CHECKOUT / "tests")
        assert done.returncode == 0, done.stderr
    assert listed(done) == dict.fromkeys(ALL, "A")
    assert applied(empty_database_url) == ALL


def test_the_variables_that_name_the_database(empty_database_url: str) -> None:
    """The first one of ``VARIABLES`` that is set, and not empty."""
    variables = dict.fromkeys(VARIABLES, NOWHERE)
    for name in VARIABLES:
        done = yoyo("list", settings=variables | {name: empty_database_url})
        assert listed(done) == dict.fromkeys(ALL, "U")
        variables[name] = ""


def test_a_url_with_characters_that_are_percent_encoded(empty_database_url: str) -> None:
    url = f"{empty_database_url}{'&' if '?' in empty_database_url else '?'}"
    url += f"application_name={quote('a@b c&d?')}"
    with ListingsBackend.open(url) as backend:
        row = backend.connection.execute("SHOW application_name").fetchone()
    assert row == ("a@b c&d?",)
    assert listed(yoyo("list", settings={DATABASE: url})) == dict.fromkeys(ALL, "U")


def test_no_database_is_named() -> None:
    done = yoyo("list")
    assert done.returncode == 2
    assert DATABASE in done.stderr
    assert "postgresql+psycopg://" in done.stderr
    assert "Traceback" not in done.stderr


def test_yoyo_and_listings_migrate_wait_for_each_other(empty_database_url: str) -> None:
    """Neither treats the other's lock as stale."""
    url = empty_database_url
    released, done = Event(), Event()

    def hold() -> None:
        with ListingsBackend.open(url) as backend, backend.lock():
            done.set()
            released.wait(30)

    holder = Thread(target=hold)
    holder.start()
    try:
        assert done.wait(10)
        running = subprocess.Popen(
            [Path(sys.executable).with_name("yoyo"), "apply"],
            cwd=CHECKOUT,
            env=os.environ | {DATABASE: url},
            stdin=subprocess.DEVNULL,
        )
        with psycopg.connect(url, autocommit=True) as connection:
            tried = (
                "SELECT FROM pg_stat_activity WHERE datname = current_database()"
                " AND query ~ '^SELECT pg_try_advisory_lock'"
            )
            deadline = time.monotonic() + 20
            while len(connection.execute(tried).fetchall()) < 2:
                assert time.monotonic() < deadline
                time.sleep(0.02)
        time.sleep(0.3)
        assert applied(url) == []
    finally:
        released.set()
        holder.join()
    assert running.wait(60) == 0
    assert applied(url) == ALL


@pytest.mark.parametrize("version", ["0", "20251220000002", ALL[-1]])
def test_the_migrations_up_to_a_version(version: str) -> None:
    kept = migrations.up_to(version)
    assert kept == ALL[: len(kept)]
    assert [name.partition("_")[0] for name in kept[-1:]] in ([], [version.partition("_")[0]])
