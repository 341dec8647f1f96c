"""The function of amounts that disagree, by which PostgreSQL indexes orders, and the model."""

from itertools import product
from typing import Final

import psycopg

from persistence.payment_states import PaymentState
from tests.support.payment_model import Order, amounts_disagree
from tests.support.payment_words import State

TOTAL: Final = 3
AMOUNTS: Final = (None, *range(TOTAL + 2))

FOUND: Final = """
    SELECT payment_amounts_disagree(state, captured, refunded, %s) IS TRUE
    FROM unnest(%s::smallint[], %s::bigint[], %s::bigint[]) given (state, captured, refunded)
"""


def test_each_state_with_each_pair_of_amounts(database_url: str) -> None:
    cases = list(product(PaymentState, AMOUNTS, AMOUNTS))
    with psycopg.connect(database_url) as connection:
        rows = connection.execute(FOUND, (TOTAL, *map(list, zip(*cases, strict=True)))).fetchall()
    expected = {
        (state, captured, refunded): amounts_disagree(
            Order(
                payment_state=State[state.name],
                captured_amount=captured,
                refunded_amount=refunded,
                total_amount=TOTAL,
            )
        )
        for state, captured, refunded in cases
    }
    assert dict(zip(cases, (found for (found,) in rows), strict=True)) == expected
