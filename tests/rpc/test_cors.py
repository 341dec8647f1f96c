"""CORS: preflights and headers by origin; the security headers of every response."""

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.rpc.cors import RecentKeys
from tests.support import service
from tests.support.callers import PATH, json_client
from tests.support.service import Service
from tests.support.tokens import Issuer, bearer
from tests.support.waiting import eventually

ALLOWED_ORIGIN, OTHER_ORIGIN = "https://dashboard.example", "https://elsewhere.example"

# What the clients of each protocol send: https://connectrpc.com/docs/cors
SENT = {
    "connect": "authorization,connect-protocol-version,connect-timeout-ms,content-type",
    "grpc-web": "authorization,content-type,grpc-timeout,x-grpc-web,x-user-agent",
    "tools": "authorization,content-type,traceparent,tracestate,x-request-id",
}
READ_BY_PAGES = {"grpc-status", "grpc-message", "grpc-status-details-bin", "x-request-id"}


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service that allows two origins and requires tokens."""
    issuer = Issuer(tmp_path_factory.mktemp("issuer") / "jwks.json")
    settings = {
        "cors_origins": f"{ALLOWED_ORIGIN}, http://localhost:5173, https://*.shop.example:8443",
        "cors_headers": "X-Shop, baggage",
    }
    log = tmp_path_factory.mktemp("cors") / "log"
    with service.on_own_database(log, **settings, **issuer.settings()) as shown:
        yield shown


@pytest.fixture
def client(shown: Service) -> Iterator[httpx.Client]:
    with json_client(shown.base_url) as client:
        yield client


def preflight(client: httpx.Client, origin: str, method: str, headers: str) -> httpx.Response:
    return client.options(
        PATH,
        headers={
            "origin": origin,
            "access-control-request-method": method,
            "access-control-request-headers": headers,
        },
    )


def names(header: str) -> set[str]:
    return {name.strip().lower() for name in header.split(",")}


@pytest.mark.parametrize("protocol", SENT)
@pytest.mark.parametrize("origin", [ALLOWED_ORIGIN, "http://localhost:5173"])
def test_a_preflight_needs_no_token_and_is_cached(
    client: httpx.Client, protocol: str, origin: str
) -> None:
    for method in ("POST", "GET"):
        answer = preflight(client, origin, method, SENT[protocol])
        assert answer.status_code == 200
        assert answer.headers["access-control-allow-origin"] == origin
        assert names(SENT[protocol]) <= names(answer.headers["access-control-allow-headers"])
        assert {"get", "post"} <= names(answer.headers["access-control-allow-methods"])
        assert answer.headers["access-control-max-age"] == "7200"
        assert "access-control-allow-credentials" not in answer.headers
        assert "origin" in names(answer.headers["vary"])


@pytest.mark.parametrize("origin", ["https://a.shop.example:8443", "https://b.a.shop.example:8443"])
def test_subdomains(client: httpx.Client, origin: str) -> None:
    for answer in (
        preflight(client, origin, "POST", SENT["connect"]),
        client.post(PATH, content="{}", headers={"origin": origin}),
    ):
        assert answer.headers["access-control-allow-origin"] == origin
        assert "origin" in names(answer.headers["vary"])


@pytest.mark.parametrize(
    "origin",
    [
        OTHER_ORIGIN,
        "null",
        "",
        "http://dashboard.example",
        "https://dashboard.example:8443",
        "https://shop.example:8443",
        "https://evil-shop.example:8443",
        "https://a.shop.example:8443.evil.example",
        "https://a.shop.example",
        "https://.shop.example:8443",
        "https://evil.example/.shop.example:8443",
        "https://*.shop.example:8443",
    ],
)
def test_a_page_of_another_origin_reads_nothing(client: httpx.Client, origin: str) -> None:
    refused = preflight(client, origin, "POST", "content-type")
    assert refused.status_code == 400
    reason = f"origin {origin} is not in LISTINGS_CORS_ORIGINS"
    assert refused.text == f"CORS preflight refused: {reason}\n"
    called = client.post(PATH, content="{}", headers={"origin": origin})
    assert called.status_code == 401
    for answer in (refused, called):
        assert not [name for name in answer.headers if name.startswith("access-control")]
        assert "origin" in names(answer.headers["vary"])


@pytest.mark.parametrize(
    ("asked", "reason"),
    [
        (
            ("https://m.shop.example:8443", "DELETE", "x-a"),
            "method DELETE is not one of GET, POST",
        ),
        (
            ("https://h.shop.example:8443", "POST", "content-type,x-b,x-shop,X-A"),
            "not in LISTINGS_CORS_HEADERS: x-a, x-b",
        ),
    ],
)
def test_a_page_of_an_allowed_origin_that_asks_for_more(
    shown: Service, client: httpx.Client, asked: tuple[str, str, str], reason: str
) -> None:
    """The browser refuses it, and its console says what is missing if the status is 200."""
    origin = asked[0]
    for _ in range(3):
        answer = preflight(client, *asked)
        assert answer.status_code == 200
        assert answer.text == f"CORS preflight refused: {reason}\n"
        assert answer.headers["access-control-allow-origin"] == origin
        assert names(answer.headers["access-control-allow-methods"]) == {"get", "post"}
        assert not names(answer.headers["access-control-allow-headers"]) & {"x-a", "x-b"}
    last = origin.replace("https", "http")
    preflight(client, last, "POST", "content-type")
    eventually(lambda: shown.logged(event="CORS preflight refused", origin=last))
    (entry,) = shown.logged(event="CORS preflight refused", origin=origin)
    assert (entry["reason"], entry["level"]) == (reason, "info")


def test_headers_by_setting(client: httpx.Client) -> None:
    answer = preflight(client, ALLOWED_ORIGIN, "POST", "x-shop,Baggage, content-type,")
    assert (answer.status_code, answer.text) == (200, "OK\n")
    assert {"x-shop", "baggage"} <= names(answer.headers["access-control-allow-headers"])


def test_a_page_of_a_public_address_may_call_a_private_one(client: httpx.Client) -> None:
    asked = {
        "access-control-request-method": "POST",
        "access-control-request-private-network": "true",
    }
    for origin in (ALLOWED_ORIGIN, OTHER_ORIGIN):
        answer = client.options(PATH, headers={"origin": origin, **asked})
        allowed = answer.headers.get("access-control-allow-private-network")
        assert allowed == ("true" if origin == ALLOWED_ORIGIN else None)


def test_many_invented_origins_are_logged_up_to_a_number(tmp_path: Path) -> None:
    with (
        service.on_own_database(tmp_path / "log") as closed,
        json_client(closed.base_url) as client,
    ):
        for number in range(150):
            for _ in range(2):
                preflight(client, f"https://{number}.{'a' * 1000}.example", "POST", "x-a")
        assert closed.stop() == 0
        entries = closed.logged(event="CORS preflight refused")
        assert len({entry["origin"] for entry in entries}) == len(entries) == 100
        assert max(len(str(entry)) for entry in entries) < 1000


@given(
    keys=st.lists(st.tuples(st.sampled_from("abcd"), st.integers(0, 40)), max_size=60),
    most=st.integers(1, 3),
)
def test_recent_keys(keys: list[tuple[str, int]], most: int) -> None:
    """A key is new once in 60 seconds, and there are never more than ``most`` in that time."""
    now = 0.0
    recent = RecentKeys(60.0, most, lambda: now)
    added: list[tuple[str, float]] = []
    for key, seconds in keys:
        now += seconds
        kept = [name for name, at in added if at > now - 60]
        assert recent.add(key) is (key not in kept and len(kept) < most)
        if key not in kept and len(kept) < most:
            added.append((key, now))


@pytest.mark.parametrize(
    "content_type",
    [
        "application/json",
        "application/grpc-web+proto",
        "application/grpc-web-text",
        "application/proto",
    ],
)
def test_errors_have_the_cors_headers(client: httpx.Client, content_type: str) -> None:
    for path in (PATH, "/grpc.health.v1.Health/Check", "/listings.v1.OrderService/Nope"):
        headers = {"origin": ALLOWED_ORIGIN, "content-type": content_type}
        answer = client.post(path, content=b"", headers=headers)
        assert answer.headers["access-control-allow-origin"] == ALLOWED_ORIGIN
        assert names(answer.headers["access-control-expose-headers"]) >= READ_BY_PAGES


def test_no_origin_is_allowed_by_default(running: Service) -> None:
    with json_client(running.base_url) as client:
        answer = preflight(client, ALLOWED_ORIGIN, "POST", "content-type")
        assert (answer.status_code, answer.text) == (
            400,
            f"CORS preflight refused: origin {ALLOWED_ORIGIN} is not in LISTINGS_CORS_ORIGINS\n",
        )
        others = client.post(PATH, content="{}", headers={"origin": ALLOWED_ORIGIN})
    for each in (answer, others):
        assert not [name for name in each.headers if name.startswith("access-control")]


def test_a_wildcard_allows_any_origin(tmp_path: Path) -> None:
    with (
        service.on_own_database(tmp_path / "log", cors_origins="*") as open_to_all,
        json_client(open_to_all.base_url) as client,
    ):
        answer = preflight(client, OTHER_ORIGIN, "POST", "content-type")
        assert answer.headers["access-control-allow-origin"] == "*"


@pytest.mark.parametrize("version", [1, 2])
def test_every_response_has_the_security_headers(shown: Service, version: int) -> None:
    with json_client(shown.base_url, version) as client:
        for answer in (
            client.get("/livez"),
            client.get("/nowhere"),
            client.get("/metrics"),
            client.post(PATH, content="{}"),
            client.post(PATH, content="{}", headers=bearer("x")),
            client.post(PATH, content="{}", headers={"content-type": "text/plain"}),
            client.post("/grpc.health.v1.Health/Check", content="{}"),
            preflight(client, ALLOWED_ORIGIN, "POST", "content-type"),
        ):
            assert answer.headers["x-content-type-options"] == "nosniff"
            assert answer.headers["cache-control"] == "no-store"
            assert "default-src 'none'" in answer.headers["content-security-policy"]
            assert "frame-ancestors 'none'" in answer.headers["content-security-policy"]
            assert "server" not in answer.headers
