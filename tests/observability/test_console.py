"""Entries of the log in the console format."""

import re
from typing import Any

import pytest

from server.observability.console import ConsoleRenderer

RPC: dict[str, Any] = {
    "event": "rpc",
    "order_id": 1,
    "request_id": "req-1",
    "method": "listings.v1.OrderService/UpdateOrderPayment",
    "protocol": "grpc",
    "code": "ok",
    "duration_ms": 2.345,
    "caller": "127.0.0.1:50000",
    "pid": 7,
}


def rendered(
    level: str = "info", *, colors: bool = False, details: bool = False, **fields: Any
) -> str:
    """Return the line without its time."""
    entry = {"timestamp": "2026-11-30T17:01:12.000000Z", "level": level, **fields}
    line = ConsoleRenderer(colors=colors, details=details)(None, level, entry)
    assert isinstance(line, str)
    time, _, rest = line.partition(" ")
    assert re.fullmatch(r"(\x1b\[\d+m)?\d\d:\d\d:\d\d(\x1b\[\d+m)?", time)
    return rest


@pytest.mark.parametrize(
    ("fields", "line"),
    [
        ({}, "UpdateOrderPayment grpc ok 2.3 ms order=1"),
        ({"outcome": "replayed"}, "UpdateOrderPayment grpc ok 2.3 ms order=1 replayed"),
        ({"duration_ms": 0.04}, "UpdateOrderPayment grpc ok 0.0 ms order=1"),
        ({"duration_ms": 999.94}, "UpdateOrderPayment grpc ok 999.9 ms order=1"),
        ({"duration_ms": 61_234.5}, "UpdateOrderPayment grpc ok 61.2 s order=1"),
        (
            {"code": "not_found", "error": "no order 1"},
            'UpdateOrderPayment grpc not_found 2.3 ms order=1 error="no order 1"',
        ),
        ({"trace_id": "4bf9", "subject": "shop"}, "UpdateOrderPayment grpc ok 2.3 ms order=1"),
    ],
)
def test_an_rpc(fields: dict[str, Any], line: str) -> None:
    assert rendered(**RPC | fields) == line


def test_an_rpc_with_details() -> None:
    assert rendered(details=True, **RPC) == (
        "listings.v1.OrderService/UpdateOrderPayment grpc ok 2.3 ms order=1 "
        "request_id=req-1 caller=127.0.0.1:50000 pid=7"
    )


def test_an_unrouted_path_is_shown_in_full() -> None:
    fields: dict[str, Any] = {
        "method": "nowhere/at/all",
        "protocol": "connect",
        "code": "unimplemented",
    }
    assert rendered(event="rpc", **fields) == "nowhere/at/all connect unimplemented"


@pytest.mark.parametrize("level", ["debug", "warning", "error", "critical", "odd"])
def test_the_level_is_shown_unless_it_is_info(level: str) -> None:
    assert rendered(level, event="a message") == f"{level} a message"


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("plain", "plain"),
        ("two words", '"two words"'),
        ("a=b", '"a=b"'),
        ("", '""'),
        ("line\nbreak", r"line\nbreak"),
        ("a\x1b[2Jb", r"a\x1b[2Jb"),
        (["\x1b"], r"['\x1b']"),
        (None, "None"),
    ],
)
def test_values(value: object, shown: str) -> None:
    assert rendered(event="rpc", value=value) == f"rpc value={shown}"


def test_a_traceback_follows_its_line() -> None:
    shown = rendered("error", event="failed", exception='File "x"\n  \x1bodd', pid=7, n=1)
    assert shown == 'error failed n=1\nFile "x"\n  \\x1bodd'


def test_colours() -> None:
    shown = rendered("warning", colors=True, event="failed", key="value")
    assert "\x1b[33mwarning\x1b[0m" in shown
    assert re.sub(r"\x1b\[\d+m", "", shown) == "warning failed key=value"
