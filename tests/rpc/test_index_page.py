"""The page at /, for browsers."""

from importlib import metadata

import httpx
import pytest

from tests.support.callers import json_client
from tests.support.service import Service


@pytest.mark.parametrize("version", [1, 2])
def test_it_names_the_service_and_its_paths(running: Service, version: int) -> None:
    with json_client(running.base_url, version) as client:
        response = client.get("/")
    assert response.status_code == 200
    assert response.headers["content-type"] == "text/plain; charset=utf-8"
    assert response.headers["x-content-type-options"] == "nosniff"
    assert "default-src 'none'" in response.headers["content-security-policy"]
    shown = response.text
    assert shown.startswith(f"Listings Service {metadata.version('listings')}")
    for each in ("/listings.v1.OrderService/GetOrder", "/livez", "/readyz", "/metrics", "docs/"):
        assert each in shown
    assert all(len(line) <= 100 for line in shown.splitlines())


def test_the_paths_that_it_names_exist(running: Service) -> None:
    for page in ("/livez", "/readyz", "/metrics"):
        assert httpx.get(running.base_url + page, trust_env=False).status_code == 200
    with json_client(running.base_url) as client:
        response = client.post("/listings.v1.OrderService/GetOrder", content='{"orderId": "1"}')
    assert response.status_code in (200, 404)
    assert response.status_code == 200 or response.json()["code"] == "not_found"


def test_head(running: Service) -> None:
    response = httpx.head(running.base_url, trust_env=False)
    assert (response.status_code, response.text) == (200, "")
    assert int(response.headers["content-length"]) > 0


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS"])
def test_it_is_read_only(running: Service, method: str) -> None:
    response = httpx.request(method, f"{running.base_url}/", trust_env=False)
    assert response.status_code == 404
    assert response.text == "/ is not a method of this server\n"


@pytest.mark.parametrize("path", ["/index.html", "/nothing", "//"])
def test_other_paths_are_unimplemented(running: Service, path: str) -> None:
    response = httpx.get(running.base_url + path, trust_env=False)
    assert response.status_code == 404
    assert response.text.endswith(" is not a method of this server\n")
