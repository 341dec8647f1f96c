"""PostgreSQL's plans of the statements that the service prepares."""

import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import psycopg


class Read(NamedTuple):
    """A statement, and values for its parameters: by name, or by position."""

    sql: str
    values: Mapping[str, object] | tuple[object, ...]

    def as_sent(self) -> tuple[str, tuple[object, ...]]:
        """Return the statement as PostgreSQL gets it, by asyncpg or by ``databases``."""
        if isinstance(self.values, tuple):
            return self.sql, self.values
        numbers = {name: f"${number}" for number, name in enumerate(sorted(self.values), start=1)}
        sql = re.sub(r":(\w+)", lambda name: numbers[name[1]], self.sql)
        return sql, tuple(self.values[name] for name in sorted(self.values))


class Node(NamedTuple):
    """A node of a plan."""

    kind: str
    rows: int  # as the planner estimates
    is_of_pages: bool
    """Whether it reads what a LIMIT has left. Of any LIMIT, the planner expects a tenth."""


def explain(cursor: psycopg.ClientCursor[Any], read: Read, options: str = "") -> dict[str, Any]:
    """Return the plan of ``read`` as a prepared statement, as the service runs it."""
    cursor.execute("DEALLOCATE ALL")
    sql, values = read.as_sent()
    cursor.execute(f"PREPARE read AS {sql}".encode())
    places = ", ".join(["%s"] * len(values))
    cursor.execute(f"EXPLAIN (FORMAT JSON{options}) EXECUTE read ({places})".encode(), values)
    row = cursor.fetchone()
    assert row is not None
    plan: dict[str, Any] = row[0][0]["Plan"]
    return plan


def touched(plan: Mapping[str, Any]) -> int:
    """Return the number of blocks of tables and indexes that the plan read."""
    blocks: int = plan["Shared Hit Blocks"] + plan["Shared Read Blocks"]
    return blocks


def nodes(plan: Mapping[str, Any]) -> Iterator[Node]:
    """Yield the node and all nodes below it."""
    inputs = plan.get("Plans", ())
    yield Node(plan["Node Type"], plan["Plan Rows"], any(map(_is_limited, inputs)))
    for below in inputs:
        yield from nodes(below)


def _is_limited(plan: Mapping[str, Any]) -> bool:
    if plan["Node Type"] in ("Subquery Scan", "Append"):
        return all(map(_is_limited, plan["Plans"]))
    return bool(plan["Node Type"] == "Limit")
