"""The migrations to the states of payments, interrupted at each statement."""

from contextlib import suppress
from typing import Any, Final

import psycopg

from persistence import migrations
from tests.support import databases
from tests.support.history import PAYMENT, events
from tests.support.objects import catalog
from tests.support.orders import Orders
from tests.support.state_migrations import (
    MIGRATIONS,
    STATES,
    TIMES,
    UPDATED,
    WORDS,
    derived,
    module,
    version_before,
    words_in_force,
)

_STATEMENTS_AT_MOST: Final = 100


class Killed(BaseException):
    """Raised to interrupt a migration."""


class Killable(psycopg.Connection[Any]):
    """A connection that is interrupted before its statement number ``last``."""

    last = -1
    ran = 0

    def execute(self, *args: Any, **options: Any) -> Any:
        """Run the statement, or raise Killed."""
        if self.ran == self.last:
            raise Killed
        self.ran += 1
        return super().execute(*args, **options)


def test_a_run_can_be_repeated_after_an_interruption_at_each_statement(live_url: str) -> None:
    """And each change that the version before makes meanwhile is in the history, once."""
    orders = Orders(live_url)
    changed, untouched = orders.add(payment_status="paid"), orders.add(**PAYMENT, **TIMES)
    words = ["paid"]
    for name in MIGRATIONS:
        apply = getattr(module(name), "add" if name == STATES else "create")
        for last in range(_STATEMENTS_AT_MOST):
            with Killable.connect(live_url, autocommit=True) as connection:
                connection.last = last
                with suppress(Killed):
                    apply(connection)
                    break
            words.append(f"word {len(words)}")
            orders.change(changed, payment_status=words[-1])
        # The rows of the words are not counted, and in one transaction with their table.
        assert last == 3 if name == WORDS else 3 < last < _STATEMENTS_AT_MOST - 1

    assert [each["payment_status_after"] for each in events(live_url, changed)] == words
    assert derived(live_url, untouched) == {"payment_state": 9, "payment_status_since": UPDATED}
    with databases.clone() as never_interrupted:
        assert catalog(live_url) == catalog(never_interrupted)
        assert words_in_force(live_url) == words_in_force(never_interrupted)
    migrations.up(live_url)
    with databases.clone() as never_interrupted:
        assert catalog(live_url) == catalog(never_interrupted)


def test_a_rollback_can_be_repeated_after_an_interruption_at_each_statement(
    database_url: str,
) -> None:
    for name in MIGRATIONS[::-1]:
        undo = getattr(module(name), "remove" if name == STATES else "drop")
        for last in range(_STATEMENTS_AT_MOST):
            with Killable.connect(database_url, autocommit=True) as connection:
                connection.last = last
                with suppress(Killed):
                    undo(connection)
                    break
        assert last == 2 if name == WORDS else 2 < last < _STATEMENTS_AT_MOST - 1
    with version_before() as url:
        assert catalog(database_url) == catalog(url)
