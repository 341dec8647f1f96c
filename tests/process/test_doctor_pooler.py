"""``listings doctor`` and the start of ``listings serve`` behind PgBouncer."""

from contextlib import ExitStack
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


def settings(url: str) -> dict[str, Any]:
    return {
        "prepared_statements": "off",
        "direct_database_url": url,
        "migration_database_url": url,
    }


@pytest.mark.parametrize(("turns", "idle"), [("0", 0), ("0", 1), ("1", 3)])
def test_prepared_statements_are_lost(database_url: str, turns: str, idle: int) -> None:
    """Also if the pooler would take the same connection again, or each of them in turn."""
    direct = with_role(database_url, APPLICATION)
    with pooler.running(postgres.server(), server_round_robin=turns) as directory:
        url = pooler.at(direct, directory)
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
