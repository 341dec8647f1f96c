"""Orders in a test's database, inserted and read by plain SQL."""

import atexit
import itertools
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg.rows import dict_row
from psycopg.types.numeric import IntLoader

_numbers = itertools.count(1)

# One connection for each of the last few databases: connecting takes longer than most statements.
_connections: dict[str, psycopg.Connection[dict[str, Any]]] = {}
_MOST_CONNECTIONS = 4


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
        insert = f"INSERT INTO orders ({names}) VALUES ({places}) RETURNING id"
        return int(_only_row(self.url, insert, row)["id"])

    def change(self, order_id: int, **values: object) -> None:
        """Change an order by plain SQL."""
        sets = ", ".join(f"{name} = %({name})s" for name in values)
        statement = f"UPDATE orders SET {sets} WHERE id = %(id)s RETURNING id"
        _only_row(self.url, statement, values | {"id": order_id})

    @contextmanager
    def locked(self, *order_ids: int) -> Iterator[None]:
        """Lock the rows of these orders, so that every update of them waits."""
        with psycopg.connect(self.url) as holder:
            holder.execute("SELECT FROM orders WHERE id = ANY(%s) FOR UPDATE", (list(order_ids),))
            yield
            holder.rollback()

    def slow_down(self, seconds: float, when: str = "true") -> None:
        """Make each update of an order for which ``when`` is true take at least ``seconds``."""
        with psycopg.connect(self.url, autocommit=True) as connection:
            connection.execute(
                "CREATE FUNCTION dawdle() RETURNS trigger LANGUAGE plpgsql AS"
                f" 'BEGIN PERFORM pg_sleep({seconds:f}); RETURN new; END';"
                " CREATE TRIGGER dawdle BEFORE UPDATE ON orders"
                f" FOR EACH ROW WHEN ({when}) EXECUTE FUNCTION dawdle()".encode()
            )

    def value(self, statement: str) -> Any:
        """Run a statement and return the value of its only row."""
        (value,) = _only_row(self.url, statement, {}).values()
        return value

    def row(self, order_id: int) -> dict[str, Any]:
        """Return the row of that order, by column."""
        return _only_row(self.url, "SELECT * FROM orders WHERE id = %(id)s", {"id": order_id})


def _only_row(url: str, statement: str, values: Mapping[str, object]) -> dict[str, Any]:
    try:
        row = _connection(url).execute(statement, values).fetchone()
    except psycopg.OperationalError:  # a test has terminated all connections to its database
        _connections.pop(url).close()
        row = _connection(url).execute(statement, values).fetchone()
    assert row is not None
    return row


def _connection(url: str) -> psycopg.Connection[dict[str, Any]]:
    if url not in _connections:
        if len(_connections) == _MOST_CONNECTIONS:
            _connections.pop(next(iter(_connections))).close()
        connection = psycopg.connect(url, autocommit=True, row_factory=dict_row)
        connection.adapters.register_loader("xid8", IntLoader)  # as asyncpg reads it
        connection.execute("SET timezone = 'UTC'")
        connection.execute("SET synchronous_commit = off")
        # The same statement returns other columns once a test has migrated.
        connection.prepare_threshold = None
        _connections[url] = connection
    return _connections[url]


@atexit.register
def _close() -> None:
    for connection in _connections.values():
        connection.close()
