"""What a process that is replaced finds at its start."""

import psycopg
import pytest

from persistence.diagnostics import Fault
from persistence.roles import APPLICATION
from persistence.status_words import StatusWords
from server.process.parts import open_application
from server.settings import Settings
from tests.support import databases, pooler
from tests.support.databases import with_role
from tests.support.history import connect

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(pooler.is_used(), reason="limits connections to PostgreSQL"),
]


async def opens(url: str) -> bool:
    async with open_application(
        Settings(), url, None, StatusWords.builtin(), processes=1
    ) as opened:
        return opened.application is not None


async def test_the_last_connection_is_the_probes(database_url: str) -> None:
    """Then the history is not checked, and calls wait for a connection as they do later on."""
    role = f"last_{databases.server_and_name(database_url)[1]}"
    with connect(database_url) as owner:
        owner.execute(f"CREATE ROLE {role} LOGIN CONNECTION LIMIT 1 IN ROLE {APPLICATION}".encode())
        try:
            assert await opens(with_role(database_url, role))
        finally:
            owner.execute(f"DROP ROLE {role}".encode())


async def test_a_history_of_another_cluster(database_url: str) -> None:
    with psycopg.connect(database_url) as owner:
        owner.execute("SET session_replication_role = replica")
        owner.execute(
            "INSERT INTO order_payment_events"
            " (order_id, storefront_id, payment_status_after, transaction_id)"
            " VALUES (1, 1, 'paid', '900000000000')"
        )
    with pytest.raises(Fault, match="listings new-history"):
        await opens(with_role(database_url, APPLICATION))
