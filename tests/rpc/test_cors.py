"""CORS: preflights and headers by origin; the security headers of every response."""

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.support import service
from tests.support.callers import PATH, json_client
from tests.support.service import Service
from tests.support.tokens import Issuer, bearer

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
    origins = f"{ALLOWED_ORIGIN}, http://localhost:5173"
    log = tmp_path_factory.mktemp("cors") / "log"
    with service.on_own_database(log, cors_origins=origins, **issuer.settings()) as shown:
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


def test_other_origins_methods_and_headers_are_not_allowed(client: httpx.Client) -> None:
    assert preflight(client, OTHER_ORIGIN, "POST", "content-type").status_code == 400
    assert preflight(client, ALLOWED_ORIGIN, "DELETE", "content-type").status_code == 400
    assert preflight(client, ALLOWED_ORIGIN, "POST", "x-anything").status_code == 400
    answer = client.post(PATH, content="{}", headers={"origin": OTHER_ORIGIN})
    assert "access-control-allow-origin" not in answer.headers


@pytest.mark.parametrize(
    "content_type", ["application/json", "application/grpc-web+proto", "application/proto"]
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
        assert answer.status_code == 405
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
