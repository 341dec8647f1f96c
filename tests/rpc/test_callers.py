"""Who called, where proxies are trusted to say so."""

import itertools
from collections.abc import Iterator
from ipaddress import ip_network
from pathlib import Path

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.gen.listings.v1.orders_pb import GetOrderRequest
from server.rpc.callers import Caller, TrustedProxies, parse_node
from tests.support import service
from tests.support.callers import PATH, json_client, path
from tests.support.service import Service
from tests.support.waiting import eventually

PROXIES = TrustedProxies([ip_network("10.0.0.0/8"), ip_network("2001:db8::/64")])
PEER = "10.0.0.1:40000"

addresses = st.ip_addresses(v=4).map(str) | st.ip_addresses(v=6).map(str)
outside = addresses.filter(lambda each: not PROXIES._is_trusted(each))
inside = st.ip_addresses(network="10.0.0.0/8").map(str) | st.ip_addresses(
    network="2001:db8::/64"
).map(str)
ports = st.none() | st.integers(0, 65535).map(str)


def called(peer: str | None = PEER, proxies: TrustedProxies = PROXIES, **fields: str) -> str:
    values = {name.replace("_", "-"): [value] for name, value in fields.items()}
    return str(proxies.caller(peer, lambda name: values.get(name, [])))


def element(caller: Caller) -> str:
    return f'proto=https;For="{caller}"' if ":" in str(caller) else f"for={caller}"


@given(st.text(max_size=60), outside, ports, st.lists(inside, max_size=5))
def test_the_rightmost_address_that_is_no_proxy(
    before: str, host: str, port: str | None, hops: list[str]
) -> None:
    """Whatever the client has sent to the left of it."""
    caller = Caller(host, port)
    nodes = [caller, *map(Caller, hops)]
    expected = str(parse_node(str(caller)))
    assert called(forwarded=",".join([before, *map(element, nodes)])) == expected
    assert called(x_forwarded_for=", ".join([before, *map(str, nodes)])) == expected
    bare = [each.host if each.port is None else str(each) for each in nodes]
    assert called(x_forwarded_for=",".join([before, *bare])) == expected


@given(st.text(), st.text())
def test_any_text_names_an_address_or_none(forwarded: str, x_forwarded: str) -> None:
    for found in (called(forwarded=forwarded), called(x_forwarded_for=x_forwarded)):
        assert found == PEER or parse_node(found) is not None


@given(outside, st.text(), st.text())
def test_other_connections_are_who_they_are(host: str, forwarded: str, x_forwarded: str) -> None:
    own = str(Caller(str(parse_node(host)).strip("[]"), "1"))
    for peer in (f"{host}:1", str(Caller(host, "1"))):
        assert called(peer, forwarded=forwarded, x_forwarded_for=x_forwarded) == own
        assert called(peer, TrustedProxies(), x_forwarded_for="192.0.2.1") == own


@pytest.mark.parametrize(
    "forwarded",
    [
        "for=unknown",
        "for=_hidden",
        "for=",
        "proto=https",
        "for=192.0.2.1;",
        "for=192.0.2.1 for=192.0.2.2",
        'for="192.0.2.1',
        "for=192.0.2.1, ",
        "for=[2001:db8:1::1]",
        "for=192.0.2.256",
        "192.0.2.1",
    ],
)
def test_a_malformed_or_hidden_address_is_the_connections(forwarded: str) -> None:
    assert called(forwarded=forwarded) == PEER
    if "=" in forwarded:
        assert called(x_forwarded_for=forwarded) == PEER


def test_both_fields() -> None:
    assert called(forwarded="for=192.0.2.1", x_forwarded_for="192.0.2.1") == "192.0.2.1"
    assert called(forwarded="for=192.0.2.1", x_forwarded_for="192.0.2.2") == PEER
    assert called(forwarded="for=_x", x_forwarded_for="192.0.2.2") == PEER


def test_where_all_are_proxies_the_leftmost_called() -> None:
    assert called(x_forwarded_for="10.0.0.3, 10.0.0.2") == "10.0.0.3"


def test_more_proxies_than_are_followed() -> None:
    assert called(x_forwarded_for=",".join(["192.0.2.1"] + ["10.0.0.2"] * 100)) == PEER


def test_ipv4_mapped_into_ipv6_is_ipv4() -> None:
    assert called("::ffff:10.0.0.1:40000", x_forwarded_for="::ffff:192.0.2.1") == "192.0.2.1"


def test_a_unix_socket_has_no_caller() -> None:
    assert PROXIES.caller(None, lambda _: ["192.0.2.1"]) is None
    assert PROXIES.caller("", lambda _: ["192.0.2.1"]) is None


@pytest.fixture(scope="module", params=["127.0.0.1,10.0.0.0/8", "10.0.0.0/8"])
def behind(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Service, bool]]:
    """A service, and whether it trusts those who connect from this machine."""
    log = tmp_path_factory.mktemp("callers") / "log"
    with service.on_own_database(log, trusted_proxies=request.param) as running:
        yield running, "127" in request.param


ids = itertools.count()


@pytest.mark.parametrize("target", [PATH, path(GetOrderRequest()), "/listings.v1.Nope/Nope"])
@pytest.mark.parametrize("protocol", ["grpc", "json over HTTP/1.1", "json over HTTP/2"])
def test_the_log_says_who_called(behind: tuple[Service, bool], target: str, protocol: str) -> None:
    running, is_trusted = behind
    request_id = f"caller-{next(ids)}"
    headers = {"x-forwarded-for": "198.51.100.1, 192.0.2.7, 10.0.0.9", "x-request-id": request_id}
    if protocol == "grpc":
        with (
            grpc.insecure_channel(f"127.0.0.1:{running.port}") as channel,
            pytest.raises(grpc.RpcError),
        ):
            channel.unary_unary(target)(b"", metadata=list(headers.items()), timeout=20)
    else:
        with json_client(running.base_url, 1 if protocol.endswith("1.1") else 2) as client:
            client.post(target, json={}, headers=headers)
    eventually(lambda: running.logged(request_id=request_id))
    (entry,) = running.logged(request_id=request_id)
    caller = entry["caller"]
    assert caller == "192.0.2.7" if is_trusted else caller.startswith("127.0.0.1:")


def test_a_caller_by_ipv6_is_in_brackets(database_url: str, tmp_path: Path) -> None:
    with service.running(database_url, tmp_path / "log", host="::1") as running:
        with (
            grpc.insecure_channel(f"[::1]:{running.port}") as channel,
            pytest.raises(grpc.RpcError),
        ):
            channel.unary_unary(PATH)(b"", timeout=20)
        with json_client(running.base_url) as client:
            client.post(PATH, json={})
            client.post("/listings.v1.Nope/Nope", json={})
        eventually(lambda: len(running.logged(event="rpc")) == 3)
        assert all(each["caller"].startswith("[::1]:") for each in running.logged(event="rpc"))
