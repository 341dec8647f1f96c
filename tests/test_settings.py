"""Settings from the environment."""

import os
from pathlib import Path

import pytest

from server.settings import Settings, SettingsError


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """An environment without settings."""
    monkeypatch.delenv("LISTINGS_DATABASE_URL", raising=False)


def test_defaults() -> None:
    settings = Settings.read()
    assert (settings.host, settings.port) == ("127.0.0.1", 8080)
    assert settings.database_url is None
    assert settings.data_dir == Path(".listings")
    assert settings.max_request_bytes == 65536


def test_values(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LISTINGS_PORT", "0")
    monkeypatch.setenv("LISTINGS_STATEMENT_TIMEOUT", "0.5")
    monkeypatch.setenv("LISTINGS_DATABASE_URL", "postgresql://a:b@c,d:5433/e?sslmode=require")
    monkeypatch.setenv("LISTINGS_HOST", "")  # an empty value is like an unset one
    settings = Settings.read()
    assert (settings.port, settings.statement_timeout, settings.host) == (0, 0.5, "127.0.0.1")
    assert settings.database_url
    assert settings.database_url.get_secret_value().endswith("sslmode=require")
    assert "b@c" not in repr(settings)


HOSTS = "expected names or addresses without scheme, port or wildcard"
NETWORKS = "such as 10.0.0.0/8 or ::1"


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("LISTINGS_PORT", "tcp://10.0.0.1:8080", "integer"),
        ("LISTINGS_PORT", "65536", "less than or equal to 65535"),
        ("LISTINGS_POOL_SIZE", "0", "greater than or equal to 1"),
        ("LISTINGS_STATEMENT_TIMEOUT", "0", "greater than 0"),
        ("LISTINGS_STATEMENT_TIMEOUT", "inf", "less than or equal to 3600"),
        ("LISTINGS_MAX_REQUEST_BYTES", "64K", "integer"),
        ("LISTINGS_WATCH_HEARTBEAT", "-1", "greater than or equal to 0"),
        ("LISTINGS_WATCH_HEARTBEAT", "15s", "number"),
        ("LISTINGS_MAX_WATCHES_PER_CALLER", "-1", "greater than or equal to 0"),
        ("LISTINGS_MAX_WATCHES_PER_CALLER", "1.5", "integer"),
        ("LISTINGS_ALLOWED_HOSTS", "https://listings.example", HOSTS),
        ("LISTINGS_ALLOWED_HOSTS", "listings.example:8080", HOSTS),
        ("LISTINGS_ALLOWED_HOSTS", "*.example", HOSTS),
        ("LISTINGS_ALLOWED_HOSTS", "listings.example,", HOSTS),
        ("LISTINGS_ALLOWED_HOSTS", "a b", HOSTS),
        ("LISTINGS_TRUSTED_PROXIES", "10.0.0.1/8", NETWORKS),
        ("LISTINGS_TRUSTED_PROXIES", "proxy.example", NETWORKS),
        ("LISTINGS_TRUSTED_PROXIES", "10.0.0.0/33", NETWORKS),
        ("LISTINGS_TRUSTED_PROXIES", "10.0.0.1,", NETWORKS),
        ("LISTINGS_DATABASE_URL", "mysql://root:hunter2@db/x", "expected postgresql://"),
        ("LISTINGS_DATABASE_URL", "db.example:5432", "expected postgresql://"),
        ("LISTINGS_DIRECT_DATABASE_URL", "postgresql://u:hunter2@h/d", "LISTINGS_DATABASE_URL"),
        ("LISTINGS_MIGRATION_DATABASE_URL", "postgresql://u:hunter2@h/d", "LISTINGS_DATABASE_URL"),
        ("LISTINGS_MIGRATION_DATABASE_URL", "db.example:5432", "expected postgresql://"),
        ("LISTINGS_JWKS", "keys.json", "LISTINGS_JWT_ISSUER: expected beside LISTINGS_JWKS"),
        ("LISTINGS_JWKS", "keys.json", "LISTINGS_JWT_AUDIENCE: expected beside LISTINGS_JWKS"),
        ("LISTINGS_JWKS", "http://issuer.example/keys", "expected https://"),
        ("LISTINGS_JWKS", "https://u:hunter2@issuer.example/keys", "expected a path, or https://"),
        ("LISTINGS_JWKS", "https:///keys", "expected a path, or https://"),
        ("LISTINGS_JWKS", "https://issuer.example:99999/keys", "port from 0 to 65535"),
        (
            "LISTINGS_JWT_ISSUER",
            "https://issuer.example",
            "LISTINGS_JWKS: expected beside LISTINGS_JWT_ISSUER",
        ),
        ("LISTINGS_JWT_AUDIENCE", "listings", "LISTINGS_JWKS: expected beside LISTINGS_JWT_AUDI"),
        ("LISTINGS_TLS_CERT", "tls.crt", "LISTINGS_TLS_KEY: expected beside LISTINGS_TLS_CERT"),
        ("LISTINGS_TLS_KEY", "tls.key", "LISTINGS_TLS_CERT: expected beside LISTINGS_TLS_KEY"),
        ("LISTINGS_TLS_CLIENT_CA", "ca.crt", "LISTINGS_TLS_KEY: expected beside LISTINGS_TLS_C"),
        ("LISTINGS_JWT_LEEWAY", "301", "less than or equal to 300"),
        ("LISTINGS_PUBLIC", "health,orders:read", "'health', 'reflection' or 'metrics'"),
        ("LISTINGS_CORS_ORIGINS", "dashboard.example", "expected origins"),
        ("LISTINGS_CORS_ORIGINS", "https://a.example,", "expected origins"),
        ("LISTINGS_CORS_ORIGINS", "https://a.example/", "expected https://a.example in place"),
        ("LISTINGS_CORS_ORIGINS", "https://a.example https://b.example", "expected origins"),
        ("LISTINGS_CORS_ORIGINS", "https://u:hunter2@dashboard.example", "expected origins"),
        ("LISTINGS_CORS_ORIGINS", "https://a.example,https://b:port", "expected origins"),
        ("LISTINGS_CORS_ORIGINS", "null", "of any site"),
        ("LISTINGS_CORS_ORIGINS", "*, https://a.example", "expected it alone"),
        ("LISTINGS_CORS_HEADERS", "baggage", "LISTINGS_CORS_ORIGINS: expected beside"),
        ("LISTINGS_CORS_HEADERS", "*", "expected names of headers"),
        ("LISTINGS_CORS_HEADERS", "baggage,", "expected names of headers"),
        ("LISTINGS_CORS_HEADERS", "x-a: 1", "expected names of headers"),
        ("LISTINGS_INSECURE", "maybe", "boolean"),
        ("LISTINGS_GRPC_FAST_PATH", "sometimes", "boolean"),
    ],
)
def test_a_wrong_value_names_the_variable(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, expected: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError) as caught:
        Settings.read()
    assert name in str(caught.value)
    assert expected in str(caught.value)
    assert "hunter2" not in str(caught.value)


def test_lists(monkeypatch: pytest.MonkeyPatch) -> None:
    assert (Settings.read().public, Settings.read().cors_origins) == (("health",), ())
    monkeypatch.setenv("LISTINGS_PUBLIC", "metrics, reflection")
    monkeypatch.setenv("LISTINGS_CORS_ORIGINS", "https://a.example, http://localhost:5173")
    monkeypatch.setenv("LISTINGS_CORS_HEADERS", "baggage, X-Shop")
    settings = Settings.read()
    assert settings.cors_headers == ("baggage", "X-Shop")
    assert settings.public == ("metrics", "reflection")
    assert settings.cors_origins == ("https://a.example", "http://localhost:5173")
    monkeypatch.setenv("LISTINGS_PUBLIC", "none")
    assert Settings.read().public == ()


@pytest.mark.parametrize(
    "location", ["keys.json", "https://issuer.example/keys", "http://127.0.0.1:8000/keys"]
)
def test_settings_of_tokens(monkeypatch: pytest.MonkeyPatch, location: str) -> None:
    monkeypatch.setenv("LISTINGS_JWKS", location)
    monkeypatch.setenv("LISTINGS_JWT_ISSUER", "https://issuer.example")
    monkeypatch.setenv("LISTINGS_JWT_AUDIENCE", "listings")
    assert Settings.read().jwks == location


def test_every_wrong_value_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LISTINGS_PORT", "x")
    monkeypatch.setenv("LISTINGS_POOL_SIZE", "y")
    with pytest.raises(SettingsError, match=r"LISTINGS_PORT.*; LISTINGS_POOL_SIZE"):
        Settings.read()


@pytest.mark.parametrize("slip", ["LISTINGS_DATABASE_ULR", "LISTINGS_DATABASEURL", "LISTINGS_PROT"])
def test_a_misspelled_variable_is_an_error(monkeypatch: pytest.MonkeyPatch, slip: str) -> None:
    monkeypatch.setenv(slip, "postgresql://production/orders")
    with pytest.raises(SettingsError, match=f"{slip} is not a setting; did you mean LISTINGS_"):
        Settings.read()


def test_check_returns_all_faults_and_usable_settings(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("LISTINGS_PORT", "http")
    monkeypatch.setenv("LISTINGS_POOLSIZE", "3")
    monkeypatch.setenv("LISTINGS_HOST", "0.0.0.0")
    settings, faults = Settings.check()
    assert (settings.port, settings.host) == (8080, "0.0.0.0")
    assert set(faults) == {"LISTINGS_PORT", "LISTINGS_POOLSIZE"}


def test_worker_count(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Settings.read().worker_count == 1
    monkeypatch.setenv("LISTINGS_DATABASE_URL", "postgresql://a@b/c")
    assert Settings.read().worker_count == len(os.sched_getaffinity(0))
    monkeypatch.setenv("LISTINGS_WORKERS", "3")
    assert Settings.read().worker_count == 3


def test_variables_of_kubernetes_are_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kubernetes sets them for a Service named "listings"."""
    monkeypatch.setenv("LISTINGS_SERVICE_HOST", "10.0.0.1")
    monkeypatch.setenv("LISTINGS_SERVICE_PORT", "8080")
    monkeypatch.setenv("LISTINGS_PORT_8080_TCP", "tcp://10.0.0.1:8080")
    monkeypatch.setenv("LISTINGS_PORT_8080_TCP_ADDR", "10.0.0.1")
    assert Settings.read().port == 8080
    assert {
        name for name in Settings.unknown_variables() if "PORT" in name or "HOST" in name
    } == set()


@pytest.mark.parametrize("name", ["LISTINGS_JWKS_URL", "LISTINGS_DB_URL", "LISTINGS_TLS_CA"])
def test_unknown_variables(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name, "x")
    assert name in Settings.unknown_variables()


@pytest.mark.parametrize("days", ["0", "1.5", "36501", "a year"])
def test_the_retention_of_refused_events_is_a_number_of_days(
    monkeypatch: pytest.MonkeyPatch, days: str
) -> None:
    assert Settings.read().refused_retention == 400
    monkeypatch.setenv("LISTINGS_REFUSED_RETENTION", "1")
    assert Settings.read().refused_retention == 1
    monkeypatch.setenv("LISTINGS_REFUSED_RETENTION", days)
    with pytest.raises(SettingsError, match="LISTINGS_REFUSED_RETENTION"):
        Settings.read()


@pytest.mark.parametrize(
    ("text", "guard"),
    [
        ("on", "on"),
        ("shadow", "shadow"),
        ("off", "off"),
        ("true", "on"),
        ("0", "off"),
        ("No", "off"),
    ],
)
def test_the_guard_is_a_switch_with_a_third_value(
    monkeypatch: pytest.MonkeyPatch, text: str, guard: str
) -> None:
    monkeypatch.setenv("LISTINGS_STATUS_GUARD", text)
    assert Settings.read().status_guard == guard
    monkeypatch.setenv("LISTINGS_STATUS_GUARD", "half")
    with pytest.raises(SettingsError, match="LISTINGS_STATUS_GUARD"):
        Settings.read()
