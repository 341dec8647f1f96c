"""``listings doctor`` and the start of ``listings serve`` behind PgBouncer."""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import psycopg
import pytest

from persistence.roles import APPLICATION
from tests.support import pooler, postgres
from tests.support.command_line import listings
from tests.support.databases import with_role
from tests.support.doctor import examined, problem

pytestmark = pytest.mark.skipif(
    pooler.binary() is None or pooler.is_used(), reason="for PgBouncer, apart from others"
)


@pytest.fixture(scope="module")
def transactions() -> Iterator[Path]:
    with pooler.running(postgres.server()) as directory:
        yield directory


def settings(url: str) -> dict[str, Any]:
    return {
        "prepared_statements": "off",
        "direct_database_url": url,
        "migration_database_url": url,
    }


@pytest.mark.parametrize("idle", [0, 1, 3])
def test_prepared_statements_are_lost(database_url: str, transactions: Path, idle: int) -> None:
    """However many connections the pooler has to the server, also if that is one, and idle."""
    direct = with_role(database_url, APPLICATION)
    url = pooler.at(direct, transactions)
    with ExitStack() as stack:
        for _ in range(idle):
            stack.enter_context(psycopg.connect(url)).execute("SELECT 1")
    text = problem(examined(url), "prepared statements")
    assert "loses prepared statements" in text
    assert "LISTINGS_PREPARED_STATEMENTS=off" in text
    refused = listings("serve", url=url)
    assert (refused.returncode, refused.stderr) == (1, f"Error: {text}\n")

    report = examined(url, healthy=True, **settings(direct))
    assert report["prepared statements"][1] == "they are off, as a connection pooler may demand"
    assert "max_client_conn" in report["connections"][1]


def test_a_single_connection(database_url: str) -> None:
    direct = with_role(database_url, APPLICATION)
    with pooler.running(postgres.server(), default_pool_size="1") as directory:
        text = problem(examined(pooler.at(direct, directory)), "prepared statements")
        assert "loses prepared statements" in text


def test_they_are_kept_by_a_pooler_of_sessions(database_url: str) -> None:
    direct = with_role(database_url, APPLICATION)
    with pooler.running(postgres.server(), pool_mode="session") as directory:
        report = examined(pooler.at(direct, directory), healthy=True)
        assert report["prepared statements"] == (
            "ok",
            "they are used, and the connection pooler keeps them",
        )


def test_they_could_be_used(database_url: str) -> None:
    direct = with_role(database_url, APPLICATION)
    report = examined(direct, healthy=True, **settings(direct))
    verdict, text = report["prepared statements"]
    assert verdict == "warning"
    assert "Remove LISTINGS_PREPARED_STATEMENTS=off" in text
