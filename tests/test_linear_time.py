"""Texts of callers cost time in proportion to their length, whatever they have in them."""

import importlib
import itertools
import pkgutil
import re
import time
from collections.abc import Callable, Iterator
from ipaddress import ip_network
from typing import Any

import pytest

import persistence
import server
from server.auth.host_policy import HostPolicy
from server.observability import masking
from server.origins import Origins
from server.rpc.callers import TrustedProxies

SHORT, LONG = 4_000, 64_000  # characters; zttp takes 64 KiB of header fields
GROWTH = 60  # 16 would be linear, and 256 quadratic
LEAST = 0.001  # seconds of CPU: what takes less for SHORT is taken for this

UNITS = (
    *("a", "A", "1", "f", "_", "-", ".", " ", "\t", "\\", "é", "…", ":", "=", ";", '"', "[", "/"),
    *("a1", "a_", "a-", "a.", "a=", "a:1", "a=b;", '\\"', "a ", "ab_a", "%41", "ey", "eyJ", "eyJ."),
    *("cs_", "cs_test_", "pi_a", "tx_cs-", "req_a", "DETAIL: ", "\nHINT: ", "\nhost ", "a,"),
    "invalid input for query argument $1",
)
AROUND = (("", ""), ("", "!"), ('for="', "…"))


def hostile(length: int) -> Iterator[str]:
    """Texts of `length` characters, and of a few more."""
    for unit, (start, end) in itertools.product(UNITS, AROUND):
        yield start + unit * (length // len(unit)) + end


def seconds(call: Callable[[str], object], text: str) -> float:
    began = time.thread_time()
    call(text)
    return time.thread_time() - began


def check(call: Callable[[str], object]) -> None:
    for short, long in zip(hostile(SHORT), hostile(LONG), strict=True):
        needed = seconds(call, short)
        assert needed < GROWTH * LEAST, f"{short[:30]} … {short[-10:]}"
        assert seconds(call, long) < GROWTH * max(LEAST, needed), f"{long[:30]} … {long[-10:]}"


def patterns() -> Iterator[tuple[str, re.Pattern[str] | re.Pattern[bytes]]]:
    for package in (server, persistence):
        for found in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            if found.name.endswith("__main__") or ".gen" in found.name:
                continue
            for name, value in vars(importlib.import_module(found.name)).items():
                if isinstance(value, re.Pattern):
                    yield f"{found.name}.{name}", value


def test_anchored_patterns() -> None:
    """By `fullmatch`; what is searched for is below, with its function."""
    found = dict(patterns())
    assert len(found) > 15
    for name, pattern in found.items():
        print(name)  # shown with a failure
        match: Callable[[Any], object] = pattern.fullmatch
        if isinstance(pattern.pattern, str):
            check(match)
        else:
            check(lambda text: match(text.encode()))  # noqa: B023


def logged(name: str) -> Callable[[str], object]:
    return lambda text: masking.mask_entry(None, "info", {"event": "rpc", name: text})


PROXIES = TrustedProxies([ip_network("127.0.0.1")])


def caller(name: str) -> Callable[[str], object]:
    return lambda text: PROXIES.caller("127.0.0.1:1", lambda field: [text] * (field == name))


@pytest.mark.parametrize(
    "call",
    [
        masking.mask_name,
        masking.mask_look_alikes,
        masking.mask_tokens,
        logged("error"),
        logged("exception"),
        caller("forwarded"),
        caller("x-forwarded-for"),
        lambda text: HostPolicy([]).allows([(b"host", text.encode())]),
        lambda text: text in Origins(["https://*.shop.example"]),
    ],
    ids=["name", "look-alikes", "tokens", "error", "exception", "rfc7239", "xff", "host", "origin"],
)
def test_functions(call: Callable[[str], object]) -> None:
    check(call)
