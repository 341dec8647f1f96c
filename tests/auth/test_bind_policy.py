"""Addresses and authentication at start, and tokens for development."""

import json
import re
import stat
import subprocess
import time
from pathlib import Path
from typing import Any

import httpx
import jwt
import pytest

from server.gen.listings.v1.orders_pb import GetOrderRequest, UpdateOrderPaymentRequest
from tests.support import service
from tests.support.callers import CALLERS, path
from tests.support.certificates import HOST, Issued
from tests.support.command_line import listings
from tests.support.orders import Orders
from tests.support.reading import refused
from tests.support.tokens import Issuer


@pytest.mark.parametrize("host", ["0.0.0.0", "::"])
def test_without_tokens_only_loopback_is_served(database_url: str, host: str) -> None:
    done = listings("serve", url=database_url, settings={"host": host})
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    for word in (host, "LISTINGS_JWKS", "LISTINGS_JWT_ISSUER", "LISTINGS_JWT_AUDIENCE"):
        assert word in done.stderr
    assert "LISTINGS_HOST=127.0.0.1" in done.stderr
    assert "LISTINGS_INSECURE=1" in done.stderr


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.2", "localhost", "::1"])
def test_loopback_is_served_without_tokens(database_url: str, tmp_path: Path, host: str) -> None:
    with service.running(database_url, tmp_path / "log", host=host) as running:
        assert httpx.get(f"{running.base_url}/livez", trust_env=False).status_code == 200


def test_other_addresses_need_tokens_or_insecure(database_url: str, tmp_path: Path) -> None:
    issuer = Issuer(tmp_path / "jwks.json")
    for settings, expected in ((issuer.settings(), 401), ({"insecure": "1"}, 404)):
        settings["host"] = "0.0.0.0"
        with service.running(database_url, tmp_path / "log", **settings) as running:
            address = f"http://127.0.0.1:{running.port}"
            answer = httpx.post(
                address + path(GetOrderRequest()), json={"orderId": 1}, trust_env=False
            )
            assert answer.status_code == expected
            warnings = [entry["event"] for entry in running.logged(level="warning")]
            (warning,) = warnings
            assert ("in cleartext" if expected == 401 else "no authentication") in warning


def test_other_addresses_are_served_with_client_certificates(
    database_url: str, tmp_path: Path
) -> None:
    ca = Issued.ca()
    files = ca.issue(HOST).save(tmp_path, "server")
    settings = {"tls_cert": str(files.cert), "tls_key": str(files.key), "host": "0.0.0.0"}
    done = listings("serve", url=database_url, settings=settings)
    assert (done.returncode, "LISTINGS_TLS_CLIENT_CA" in done.stderr) == (1, True)
    settings["tls_client_ca"] = str(ca.save(tmp_path, "ca").cert)
    with service.running(database_url, tmp_path / "log", **settings) as running:
        (warning,) = running.logged(level="warning")
        assert "may call every method" in warning["event"]


def dev_token(directory: Path, *options: str) -> tuple[str, dict[str, str]]:
    """Make a token; return it, and the settings of a service that accepts it."""
    done = listings("dev-token", "--directory", str(directory), *options)
    assert done.returncode == 0, done.stderr
    assert "DEVELOPMENT ONLY" in done.stderr
    settings = dict(re.findall(r"LISTINGS_(\w+)=(\S+)", done.stderr))
    (token,) = done.stdout.splitlines()
    return token, {name.lower(): value for name, value in settings.items()}


def claims(token: str) -> dict[str, Any]:
    found: dict[str, Any] = jwt.decode(token, options={"verify_signature": False})
    return found


def test_a_token_for_development(database_url: str, tmp_path: Path) -> None:
    directory = tmp_path / "keys"
    token, settings = dev_token(directory)
    reader, _ = dev_token(directory, "--permission", "orders:read", "--subject", "me")
    order_id = Orders(database_url).add()
    pay = UpdateOrderPaymentRequest(order_id=order_id, payment_status="paid")
    with service.running(database_url, tmp_path / "log", **settings) as running:
        with CALLERS["grpcio"](running.base_url, authorization=f"Bearer {token}") as call:
            assert call(pay).success
            assert call(GetOrderRequest(order_id=order_id)).order.payment_status == "paid"
        with CALLERS["grpcio"](running.base_url, authorization=f"Bearer {reader}") as call:
            assert call(GetOrderRequest(order_id=order_id)).order.id == order_id
            assert refused(call, pay).code == "permission_denied"
        (warning,) = running.logged(level="warning")
        assert "not for production" in warning["event"]


def test_the_development_key_is_private_and_reused(tmp_path: Path) -> None:
    directory = tmp_path / "keys"
    first, _ = dev_token(directory)
    key = directory / "private-key.pem"
    before = key.read_bytes()
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    second, _ = dev_token(directory)
    assert key.read_bytes() == before
    (jwk,) = json.loads((directory / "jwks.json").read_text())["keys"]
    assert "d" not in jwk
    for token in (first, second):
        assert jwt.get_unverified_header(token)["kid"] == jwk["kid"]
        assert jwk["kid"].startswith("development-only")


def test_claims_of_a_token_for_development(tmp_path: Path) -> None:
    token, _ = dev_token(
        tmp_path / "keys",
        *("--permission", "orders:read", "--permission", "metrics"),
        *("--storefront", "3", "--storefront", "4", "--subject", "dashboard", "--hours", "0.5"),
    )
    found = claims(token)
    assert found["scope"] == "orders:read metrics"
    assert found["storefronts"] == [3, 4]
    assert found["sub"] == "dashboard"
    assert 0 < found["exp"] - time.time() <= 1800


def test_a_token_for_development_follows_the_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {
        "jwks": str(tmp_path / "keys" / "jwks.json"),
        "jwt_issuer": "us",
        "jwt_audience": "them",
        "jwt_permissions_claim": "roles",
    }
    done = listings("dev-token", "--directory", str(tmp_path / "keys"), settings=settings)
    found = claims(done.stdout.strip())
    assert (found["iss"], found["aud"]) == ("us", "them")
    permissions = ("health", "metrics", "orders:read", "payments:override", "payments:write")
    assert found["roles"] == " ".join((*permissions, "reflection"))


@pytest.mark.parametrize(
    ("option", "words"),
    [
        (("--permission", "orders:reed"), "orders:read, payments:override"),
        (("--subject", ""), "a subject is needed"),
        (("--hours", "nan"), "168 hours"),
        (("--hours", "0"), "168 hours"),
        (("--hours", "169"), "168 hours"),
    ],
)
def test_dev_token_rejects_wrong_options(
    tmp_path: Path, option: tuple[str, str], words: str
) -> None:
    done = listings("dev-token", "--directory", str(tmp_path), *option)
    assert (done.returncode, done.stdout) == (2, "")
    assert words in " ".join(done.stderr.split())


@pytest.mark.parametrize("spoilt", ["not a key", ""])
def test_a_malformed_key_file_is_not_overwritten(tmp_path: Path, spoilt: str) -> None:
    (tmp_path / "private-key.pem").write_text(spoilt)
    done = listings("dev-token", "--directory", str(tmp_path))
    assert done.returncode == 1
    assert str(tmp_path) in done.stderr
    assert "Traceback" not in done.stderr
    assert (tmp_path / "private-key.pem").read_text() == spoilt


def test_the_example_at_start_calls_with_a_token(database_url: str, tmp_path: Path) -> None:
    token, settings = dev_token(tmp_path / "keys")
    Orders(database_url).add()
    with service.running(database_url, tmp_path / "log", **settings) as running:
        (start,) = (entry for entry in running.logged() if "example" in entry)
        done = subprocess.run(
            start["example"],
            shell=True,
            env={"TOKEN": token, "PATH": "/usr/bin:/bin"},
            capture_output=True,
            text=True,
            check=True,
        )
        assert '"paymentStatus":"paid"' in done.stdout
