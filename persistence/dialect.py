"""What PyPika lacks of PostgreSQL's SQL, in PyPika's terms.

Each name is that of the keyword or function it stands for. The functions take PyPika terms, and
plain values, which become literals: what comes from a caller of the service is a parameter.
"""

from typing import Any, Final

from pypika import CustomFunction
from pypika.enums import Comparator
from pypika.functions import Cast
from pypika.queries import Selectable
from pypika.terms import BasicCriterion, Criterion, Function, Term

# https://www.postgresql.org/docs/current/functions-comparisons.html
any_: Final = CustomFunction("ANY", ["array"])
all_: Final = CustomFunction("ALL", ["array"])

# https://www.postgresql.org/docs/current/functions-conditional.html
greatest: Final = CustomFunction("greatest", ["first", "second"])
least: Final = CustomFunction("least", ["first", "second"])

# https://www.postgresql.org/docs/current/functions-binarystring.html
get_bit: Final = CustomFunction("get_bit", ["bytes", "n"])
get_byte: Final = CustomFunction("get_byte", ["bytes", "n"])

# Functions of our own, by the migrations 20261130000002 and 20261130000004.
is_other_payment_request: Final = CustomFunction(
    "is_other_payment_request", ["order_id", "key", "digest"]
)
payment_amounts_disagree: Final = CustomFunction(
    "payment_amounts_disagree", ["state", "captured", "refunded", "total"]
)

# https://www.postgresql.org/docs/current/functions-json.html: the operator ->>
jsonb_object_field_text: Final = CustomFunction("jsonb_object_field_text", ["object", "key"])

# https://www.postgresql.org/docs/current/functions-string.html
translate: Final = CustomFunction("translate", ["string", "from", "to"])

# https://www.postgresql.org/docs/current/functions-array.html
unnest: Final = CustomFunction("unnest", ["array"])
array: Final = CustomFunction("ARRAY", ["query"])

# https://www.postgresql.org/docs/current/functions-aggregate.html
bit_xor: Final = CustomFunction("bit_xor", ["values"])

# Hashes of a type's hash index; that of records since PostgreSQL 14.
hash_record_extended: Final = CustomFunction("hash_record_extended", ["record", "seed"])

# https://www.postgresql.org/docs/current/functions-datetime.html
clock_timestamp: Final = CustomFunction("clock_timestamp")
# https://www.postgresql.org/docs/current/datatype-datetime.html
END_OF_9999: Final = Cast("9999-12-31 23:59:59.999999+00", "TIMESTAMPTZ")

# https://www.postgresql.org/docs/current/functions-admin.html
set_config: Final = CustomFunction("set_config", ["name", "value", "is_local"])
pg_is_in_recovery: Final = CustomFunction("pg_is_in_recovery")
pg_logical_emit_message: Final = CustomFunction(
    "pg_logical_emit_message", ["transactional", "prefix", "content"]
)

# https://www.postgresql.org/docs/current/functions-info.html#FUNCTIONS-INFO-SNAPSHOT
pg_current_xact_id: Final = CustomFunction("pg_current_xact_id")
pg_current_snapshot: Final = CustomFunction("pg_current_snapshot")
pg_snapshot_xmin: Final = CustomFunction("pg_snapshot_xmin", ["snapshot"])
pg_snapshot_xip: Final = CustomFunction("pg_snapshot_xip", ["snapshot"])
pg_snapshot_xmax: Final = CustomFunction("pg_snapshot_xmax", ["snapshot"])
pg_visible_in_snapshot: Final = CustomFunction("pg_visible_in_snapshot", ["xid", "snapshot"])


class _Comparator(Comparator):
    is_distinct_from = " IS DISTINCT FROM "


def is_distinct_from(first: Term, second: Term) -> Criterion:
    """Return ``first IS DISTINCT FROM second``: as ``<>``, but null is equal to null."""
    return BasicCriterion(_Comparator.is_distinct_from, first, second)


def row(*columns: Term) -> Term:
    """Return ``ROW(columns)``."""
    return Function("ROW", *columns)


class FunctionTable(Selectable):
    """``name() AS alias``: a function whose columns are selected from."""

    def __init__(self, name: str, alias: str) -> None:
        super().__init__(alias)
        self._name = name

    def get_sql(self, **_options: Any) -> str:
        """Return the SQL of an entry of FROM."""
        return f'{self._name}() "{self.alias}"'


class Lateral(Selectable):
    """``LATERAL (query) alias``: a subquery to join, which may use the columns of those before it.

    ``query`` is a PyPika query, which types its builders as those of no dialect.
    """

    def __init__(self, query: Any, alias: str) -> None:
        super().__init__(alias)
        self._query = query

    def get_sql(self, **_options: Any) -> str:
        """Return the SQL of the join's right side."""
        return f'LATERAL ({self._query}) "{self.alias}"'
