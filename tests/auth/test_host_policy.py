"""Which hosts a request may name where callers need no authentication."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.auth.host_policy import HostPolicy

POLICY = HostPolicy(["127.0.0.2", "Listings.Example.", "2001:DB8::1", "[2001:db8::2]"])

ALLOWED = [
    "",
    "localhost",
    "LocalHost:8080",
    "localhost.:8080",
    "localhost:",
    "127.0.0.1:8080",
    "127.255.255.254",
    "[::1]:8080",
    "[0:0:0:0:0:0:0:1]",
    "[::ffff:127.0.0.1]:8080",
    "listings.example:443",
    "LISTINGS.EXAMPLE.",
    "[2001:db8:0::1]:1",
    "[2001:db8::2]",
    "127.0.0.1:8080,127.0.0.1:8081",
]

REFUSED = [
    "rebound.example",
    "rebound.example:8080",
    "127.0.0.1.rebound.example",
    "localhost.rebound.example",
    "api.listings.example",
    "a.localhost",
    "localhost,rebound.example",
    "localhost,",
    "user@localhost",
    "localhost:80:80",
    "localhost:123456",
    "localhost/",
    "localhost localhost",
    "::1",
    "[::1",
    "[::2]",
    "[localhost]",
    "10.0.0.1",
    "0.0.0.0:8080",
    "127.1",
    ".",
    "*",
    "localhost\u00ad",
    "127.0.0.1:1," * 200 + "127.0.0.1",
]


def allows(*hosts: str) -> bool:
    headers = [(b"host", each.encode("latin-1")) for each in hosts]
    return POLICY.allows([(b"te", b"trailers"), *headers, (b"x-host", b"rebound.example")])


@pytest.mark.parametrize("host", ALLOWED)
def test_allowed(host: str) -> None:
    assert allows(host)
    assert allows(host), "the second time"


@pytest.mark.parametrize("host", REFUSED)
def test_refused(host: str) -> None:
    assert not allows(host)
    assert not allows("localhost", host), "beside one that is allowed"


def test_a_request_without_a_host_is_allowed() -> None:
    assert allows()


@given(st.from_regex(r"[a-z0-9.-]{1,40}", fullmatch=True), st.sampled_from(ALLOWED[1:]))
def test_the_end_of_a_name_decides(prefix: str, host: str) -> None:
    """Whatever precedes an allowed host, or follows it, makes it another's."""
    if "," not in host:
        assert not allows(f"{prefix}@{host}")
        assert not allows(f"{host}.{prefix}.example")


def test_what_is_remembered_is_bounded() -> None:
    policy = HostPolicy([])
    for port in range(5000):
        assert policy.allows([(b"host", b"localhost:%d" % port)])
    assert len(policy._allowed) <= 1024
