"""The order of a payment, among orders whose references are replaced, removed and come back."""

from collections.abc import Iterator
from itertools import product
from typing import Any, Final

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from persistence.find_order import REFERENCES, find_order
from persistence.payment_states import normalized
from tests.support import databases
from tests.support.orders import Orders

SESSION, INTENT, TRANSACTION, KEY = REFERENCES
STOREFRONTS: Final = (3, 3, 4)
VALUES: Final = ("a", "b")
PROVIDERS: Final = (None, "stripe", "cash")

KEPT: Final = "kept"

# Which order, and its new references and provider.
STEPS: Final = st.lists(
    st.tuples(
        st.integers(0, len(STOREFRONTS) - 1),
        st.sampled_from([*VALUES, None, KEPT]),
        st.sampled_from([KEPT, None, "Stripe ", "cash"]),
    ),
    max_size=8,
)

Row = dict[str, str | None]


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with databases.clone() as url:
        yield url


@pytest.fixture(scope="module")
def connection(url: str) -> Iterator[psycopg.Connection[Any]]:
    with psycopg.connect(url, autocommit=True, cursor_factory=psycopg.RawCursor) as opened:
        yield opened


class History:
    """The payments that an order has had, from the first to the present one."""

    def __init__(self, order_id: int) -> None:
        self.id = order_id
        self.rows: list[Row] = [dict.fromkeys(("payment_provider", *REFERENCES))]

    def has(self, reference: str, value: str) -> bool:
        return self.rows[-1][reference] == value

    def had(self, reference: str, value: str, provider: str | None) -> bool:
        """Return whether an event of the provider, if one is given, has brought the reference."""
        return any(
            after[reference] == value != before[reference]
            and (provider is None or self._is_of(number, reference, value, provider))
            for number, (before, after) in enumerate(zip(self.rows, self.rows[1:], strict=False), 1)
        )

    def _is_of(self, number: int, reference: str, value: str, provider: str) -> bool:
        events = self.rows[number:]
        if events[0]["payment_provider"] is not None:
            events = events[:1]
        return any(
            event[reference] == value and normalized(event["payment_provider"] or "") == provider
            for event in events
        )


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(steps=STEPS)
def test_the_order_that_has_it_else_those_that_had_it(
    url: str, connection: psycopg.Connection[Any], steps: list[tuple[int, str | None, str | None]]
) -> None:
    orders = Orders(url)
    histories = [History(orders.add(storefront_id=number)) for number in STOREFRONTS]
    prefix = f"{histories[0].id} "
    for number, name, provider in steps:
        history = histories[number]
        row = history.rows[-1].copy()
        if name != KEPT:
            row |= dict.fromkeys(REFERENCES, name and prefix + name)
        if provider != KEPT:
            row["payment_provider"] = provider
        try:
            orders.change(history.id, **row)
        except psycopg.errors.UniqueViolation:  # another event has this key
            row[KEY] = history.rows[-1][KEY]
            orders.change(history.id, **row)
        history.rows.append(row)

    for reference, name, wanted, scope in product(REFERENCES, VALUES, PROVIDERS, (None, 3)):
        value = prefix + name
        had = [
            each
            for each, storefront in zip(histories, STOREFRONTS, strict=True)
            if each.had(reference, value, wanted) and scope in (None, storefront)
        ]
        has = [each for each in had if each.has(reference, value)]
        assert found(connection, reference, value, wanted, scope) == [
            (each.id, False) for each in has or had
        ]


def found(
    connection: psycopg.Connection[Any],
    reference: str,
    value: str,
    provider: str | None,
    scope: int | None,
) -> list[tuple[int, bool]]:
    sql = find_order(reference, by_provider=provider is not None, scoped=scope is not None)
    given: list[object] = [value]
    given += [] if provider is None else [provider]
    given += [] if scope is None else [[scope]]
    return [(row[0], row[-1]) for row in connection.execute(sql.encode(), given)]


@pytest.mark.parametrize("reference", [SESSION, INTENT])
def test_a_reference_from_before_the_history(database_url: str, reference: str) -> None:
    """The order is found, also after an event has replaced or removed the reference.

    It is not found with a provider: no event says which one brought the reference.
    """
    orders = Orders(database_url)
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute("SET session_replication_role = replica")  # without a history
        order_id = orders.add()
        connection.execute(
            f"UPDATE orders SET {reference} = 'x', payment_provider = 'stripe'".encode()
        )
    for later in ({}, {"payment_status": "paid"}, {reference: "y"}, {reference: None}):
        if later:
            orders.change(order_id, **later)
        with psycopg.connect(database_url, cursor_factory=psycopg.RawCursor) as reading:
            assert found(reading, reference, "x", None, None) == [(order_id, False)]
            assert found(reading, reference, "x", "stripe", None) == []
