"""Orders in a test's database, put and read by plain SQL."""

import itertools
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg.rows import dict_row

_numbers = itertools.count(1)


@dataclass(frozen=True)
class Orders:
    """The table ``orders`` behind a URL."""

    url: str

    def add(self, **values: object) -> int:
        """Insert an order that waits for its payment, and return its id."""
        row: dict[str, object] = {
            "order_number": f"T-{next(_numbers)}",
            "buyer_id": 7,
            "storefront_id": 3,
            "currency": "EUR",
            "subtotal_amount": 10_000,
            "shipping_amount": 490,
            "tax_amount": 1_993,
            "discount_amount": 500,
            "total_amount": 11_983,
        } | values
        names = ", ".join(row)
        places = ", ".join(f"%({name})s" for name in row)
        with psycopg.connect(self.url) as connection:
            returned = connection.execute(
                f"INSERT INTO orders ({names}) VALUES ({places}) RETURNING id",
                row,
            ).fetchone()
        assert returned is not None
        return int(returned[0])

    def row(self, order_id: int) -> dict[str, Any]:
        """Return the row of that order, by column."""
        with psycopg.connect(self.url, row_factory=dict_row) as connection:
            connection.execute("SET timezone = 'UTC'")
            row = connection.execute("SELECT * FROM orders WHERE id = %s", (order_id,)).fetchone()
        assert row is not None
        return row
