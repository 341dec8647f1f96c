"""The table of the epochs of the history."""

from typing import Final

import psycopg
import pytest

from persistence.roles import APPLICATION
from tests.support import databases

CHANGES: Final = {
    "update": "UPDATE payment_history_epochs SET last_event_id = 7",
    "delete": "DELETE FROM payment_history_epochs",
    "truncate": "TRUNCATE payment_history_epochs",
}


def test_a_migrated_database_is_in_its_first_epoch(database_url: str) -> None:
    with psycopg.connect(database_url) as connection:
        assert connection.execute(
            "SELECT id, last_event_id, last_refused_event_id, database_role = session_user,"
            " system_identifier = (pg_control_system()).system_identifier,"
            " opened_at < clock_timestamp(), identity IS NOT NULL, reason"
            " FROM payment_history_epochs"
        ).fetchall() == [(1, 0, 0, True, True, True, True, None)]


@pytest.mark.parametrize("statement", CHANGES.values(), ids=CHANGES)
@pytest.mark.parametrize("role", [None, APPLICATION], ids=["owner", "application"])
def test_epochs_cannot_be_changed(database_url: str, role: str | None, statement: str) -> None:
    url = database_url if role is None else databases.with_role(database_url, role)
    message = "can be added to" if role is None else "permission denied"
    with (
        psycopg.connect(url, autocommit=True) as connection,
        pytest.raises(psycopg.errors.InsufficientPrivilege, match=message),
    ):
        connection.execute(statement.encode())
