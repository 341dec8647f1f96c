"""The SQL text, for any set of payment fields."""

import re
from itertools import combinations

import pytest

from persistence.models import PAYMENT_COLUMNS, Order
from persistence.queries import update_payment

SETS = [
    columns
    for size in range(1, len(PAYMENT_COLUMNS) + 1)
    for columns in combinations(PAYMENT_COLUMNS, size)
]


@pytest.mark.parametrize("columns", SETS, ids=lambda columns: str(len(columns)))
def test_only_the_given_columns_are_set(columns: tuple[str, ...]) -> None:
    found = re.fullmatch(
        r'UPDATE "orders" SET (.+),"updated_at"=greatest\(.+\) '
        r'WHERE "id"=\$1 AND (.+) RETURNING (.+)',
        update_payment(columns),
    )
    assert found
    assert found[1].split(",") == [f'"{name}"=${n}' for n, name in enumerate(columns, start=4)]
    assert ("<>ALL" in found[2]) == ("payment_status" in columns)
    assert ("IS DISTINCT FROM" in found[2]) == ("payment_idempotency_key" in columns)
    assert re.findall(r'"orders"\."(\w+)"', found[3]) == list(Order._fields)


def test_the_sql_text_is_built_once_for_each_set_of_columns() -> None:
    update_payment.cache_clear()
    for _ in range(2):
        for columns in SETS:
            update_payment(columns)
    assert update_payment.cache_info()[:2] == (63, 63)


@pytest.mark.parametrize("columns", [(), ("id",), ("payment_status", "status"), ('"; DROP',)])
def test_other_columns_are_refused(columns: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match="expected some of"):
        update_payment(columns)
