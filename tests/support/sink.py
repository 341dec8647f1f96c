"""A message with a field of every kind, values for them in JSON, and which kind takes which."""

import re
from math import isfinite
from typing import Final

from tests.support.schema import compiled

_32: Final = (-(2**31), 2**31 - 1)
_64: Final = (-(2**63), 2**63 - 1)
INTEGERS: Final = (
    dict.fromkeys(("int32", "sint32", "sfixed32"), _32)
    | dict.fromkeys(("int64", "sint64", "sfixed64"), _64)
    | dict.fromkeys(("uint32", "fixed32"), (0, 2**32 - 1))
    | dict.fromkeys(("uint64", "fixed64"), (0, 2**64 - 1))
)
"""The least and the greatest value of each kind of integer."""

KINDS: Final = {
    name: name for name in (*INTEGERS, "bool", "string", "bytes", "double", "float")
} | {
    "state": "State",
    "timestamp": "google.protobuf.Timestamp",
    "duration": "google.protobuf.Duration",
    "struct": "google.protobuf.Struct",
}
"""The kinds of fields by name, and their types."""

_ONE: Final = [f"{kind} one_{name} = {n};" for n, (name, kind) in enumerate(KINDS.items(), 1)]
_ALL: Final = [
    f"repeated {kind} all_{name} = {n};" for n, (name, kind) in enumerate(KINDS.items(), 101)
]

SINK: Final = compiled(
    f"""
    syntax = "proto3";
    package sample;
    import "google/protobuf/duration.proto";
    import "google/protobuf/struct.proto";
    import "google/protobuf/timestamp.proto";
    enum State {{ STATE_UNSPECIFIED = 0; STATE_PAID = 9; }}
    message Sink {{
      {" ".join(_ONE)} {" ".join(_ALL)}
      Sink inner = 201;
      repeated Sink inners = 202;
      map<string, int64> amounts = 203;
      oneof choice {{ string left = 204; Sink right = 205; google.protobuf.Timestamp later = 206; }}
    }}
    """
).messages[0]
"""For each kind a field ``one_KIND`` and a repeated field ``all_KIND``, and messages of itself."""

_TEXTS: Final = (
    *('""', '"x"', '"true"', '"1h"', '"3600s"', '"-0.5s"', '"1.0000000001s"', '"1_0"', '" 1"'),
    *('"NaN"', '"aGVsbG8="', '"a b"', '"STATE_PAID"', '"PAID"', '"state_paid"', '"\u20ac"'),
    *('"\u0663"', '"2026-11-30T12:00:00Z"', '"2026-11-30"', '"2026-02-30T12:00:00Z"'),
    *('"2026-11-30T12:00:00.5+01:00"', '"2026-11-30 12:00:00Z"', '"0000-01-01T00:00:00Z"'),
)
_OTHERS: Final = ("true", "false", "[]", "[1]", "{}", '{"seconds": 1}', "NaN", "-Infinity")
LONE_SURROGATE: Final = '"\\ud800"'

_WHOLE: Final = {
    str(number): number
    for number in (
        *(0, 1, 9, -1, 1764504000, 2**64, 2**64 - 1),
        *(2**bits + more for bits in (31, 32, 63) for more in (-1, 0)),
        *(-(2**bits) - more for bits in (31, 63) for more in (0, 1)),
    )
}
_EXACT: Final = _WHOLE | {"1e2": 100, "1.0": 1, "0e999999999": 0}
_DIGITS: Final = "1" * 5_000  # more than Python reads as an integer
NUMBERS: Final = (*_EXACT, "1.5", "1e400", "9007199254740993.0", _DIGITS)

VALUES: Final = (
    *_TEXTS,
    *_OTHERS,
    LONE_SURROGATE,
    *NUMBERS,
    *(f'"{each}"' for each in NUMBERS),
)
"""Values in JSON, of every type."""

_BASE64: Final = re.compile(r"[\w+/-]*", re.ASCII)


def takes(name: str, value: str) -> bool:
    """Return whether a field of this kind takes one of ``VALUES``."""
    text, is_string = value.strip('"'), value.startswith('"')
    if name in INTEGERS:
        least, greatest = INTEGERS[name]
        return text in _EXACT and least <= _EXACT[text] <= greatest
    digits = text.rstrip("=")
    return {
        "bool": value in ("true", "false"),
        "string": is_string and value != LONE_SURROGATE,
        "bytes": is_string and bool(_BASE64.fullmatch(digits)) and len(digits) % 4 != 1,
        "double": value == '"NaN"' or (text in NUMBERS and isfinite(float(text))),
        "float": value == '"NaN"' or (text in NUMBERS and isfinite(float(text))),
        "state": value == '"STATE_PAID"' or (value in _WHOLE and -(2**31) <= _WHOLE[value] < 2**31),
        "timestamp": text in ("2026-11-30T12:00:00Z", "2026-11-30T12:00:00.5+01:00"),
        "duration": text in ("3600s", "-0.5s"),
        "struct": value in ("{}", '{"seconds": 1}'),
    }[name]
