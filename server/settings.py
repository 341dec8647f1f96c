"""The settings of the service, from ``LISTINGS_…`` environment variables, read once.

To add one, follow "Add a setting" in ``docs/development.md``.
"""

import difflib
import os
import re
from ipaddress import IPv4Network, IPv6Network, ip_network
from pathlib import Path
from typing import Annotated, Final, Literal, Self, TypeAlias
from urllib.parse import SplitResult, urlsplit

from pydantic import BeforeValidator, Field, SecretStr, ValidationError, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from server.addresses import canonical_address, is_loopback
from server.origins import Origins

PREFIX: Final = "LISTINGS_"

# The settings that each of these requires.
_REQUIRES: Final = {
    "jwks": ("jwt_issuer", "jwt_audience"),
    "jwt_issuer": ("jwks",),
    "jwt_audience": ("jwks",),
    "tls_cert": ("tls_key",),
    "tls_key": ("tls_cert",),
    "tls_client_ca": ("tls_cert", "tls_key"),
    "cors_headers": ("cors_origins",),
    "direct_database_url": ("database_url",),
    "migration_database_url": ("database_url",),
}

# Variables that Kubernetes sets for a Service called "listings":
# https://kubernetes.io/docs/concepts/services-networking/service/#environment-variables
_KUBERNETES_SERVICE: Final = re.compile(
    r"_SERVICE_(HOST|PORT)(_\w+)?$|_PORT(_\d+_(TCP|UDP|SCTP)(_\w+)?)?$"
)

_Seconds = Annotated[float, Field(gt=0, le=3600)]

Network: TypeAlias = IPv4Network | IPv6Network


def _parse_network(text: str) -> Network:
    try:
        return ip_network(text.strip("[]"))
    except ValueError:
        raise ValueError(
            "expected addresses and networks without host bits, such as 10.0.0.0/8 or ::1, "
            "separated by commas"
        ) from None


# NoDecode: pydantic-settings would expect JSON; these are separated by commas.
_PublicPermissions = Annotated[tuple[Literal["health", "reflection", "metrics"], ...], NoDecode]
_Texts = Annotated[tuple[str, ...], NoDecode]
_Networks = Annotated[tuple[Annotated[Network, BeforeValidator(_parse_network)], ...], NoDecode]

# RFC 9110, section 5.6.2, without "*", which stands for all headers but Authorization.
_HEADER_NAME: Final = re.compile(r"[\w!#$%&'+.^`|~-]+", re.ASCII)
_HOST_NAME: Final = re.compile(r"[\w-]+(\.[\w-]+)*\.?", re.ASCII)


class SettingsError(Exception):
    """A setting, or what it refers to, is not usable. The message names it and what is expected."""


class Settings(BaseSettings):
    """All settings, with their defaults. Time-outs are in seconds."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, frozen=True, env_ignore_empty=True)

    host: str = Field("127.0.0.1", description="address to listen on")
    port: int = Field(8080, ge=0, le=65535, description="port to listen on; 0 for a free one")
    jwks: str | None = Field(
        None, description="public keys of the token issuer: a JWK Set, by path or https URL"
    )
    jwt_issuer: str | None = Field(None, description="required claim iss of tokens")
    jwt_audience: str | None = Field(None, description="required in the claim aud of tokens")
    jwt_leeway: float = Field(
        10.0, ge=0, le=300, description="seconds by which the issuer's clock may differ"
    )
    jwt_permissions_claim: str = Field("scope", description="claim that lists permissions")
    jwt_storefronts_claim: str = Field(
        "storefronts", description="claim that limits a token to some storefronts"
    )
    public: _PublicPermissions = Field(
        ("health",), description="served without a token: health, reflection, metrics, or none"
    )
    cors_origins: _Texts = Field(
        (), description="origins of browser applications, such as https://dashboard.example"
    )
    cors_headers: _Texts = Field(
        (), description="request headers of their own that these applications send"
    )
    allowed_hosts: _Texts = Field(
        (), description="hosts that requests may name besides this machine's, without tokens"
    )
    trusted_proxies: _Networks = Field(
        (), description="addresses and networks of proxies that say who calls them"
    )
    insecure: bool = Field(False, description="listen on any address without authentication")
    database_url: SecretStr | None = Field(
        None, description="libpq URL of a PostgreSQL server; without it, an embedded one is used"
    )
    direct_database_url: SecretStr | None = Field(
        None, description="the same database past a pooler, for migrations and LISTEN"
    )
    migration_database_url: SecretStr | None = Field(
        None,
        description="the same database as its owner, for migrations and seeding; past a pooler",
    )
    data_dir: Path = Field(
        Path(".listings"), description="where the embedded PostgreSQL keeps its files"
    )
    pool_size: int = Field(10, ge=1, le=1000, description="maximum of connections to PostgreSQL")
    queue_size: int = Field(
        1000,
        ge=0,
        le=100_000,
        description="calls that may wait for a connection; more are rejected",
    )
    prepared_statements: bool = Field(
        True, description="off behind PgBouncer in transaction mode; on or off"
    )
    connect_timeout: _Seconds = Field(2.0, description="limit for one connection attempt")
    statement_timeout: _Seconds = Field(
        5.0, description="limit for a call without a shorter deadline"
    )
    workers: int | None = Field(
        None,
        ge=1,
        le=256,
        description="processes; by default 1 with the embedded PostgreSQL, else one a core",
    )
    watch_heartbeat: float = Field(
        15.0,
        ge=0,
        le=3600,
        description="seconds without an event after which a watch gets its position; 0 for never",
    )
    max_watches_per_caller: int = Field(
        1000, ge=0, le=1_000_000, description="watches of one caller, per process; 0 for no limit"
    )
    shutdown_timeout: _Seconds = Field(30.0, description="limit for calls in flight at shutdown")
    status_guard: Literal["on", "shadow", "off"] = Field(
        "on",
        description="refuse events that would overwrite a payment; shadow: write and record them",
    )
    payment_statuses: Path | None = Field(
        None, description="TOML file of the shop's own words for payment statuses"
    )
    refused_retention: int = Field(
        400, ge=1, le=36_500, description="days that refused events are kept, for `refused purge`"
    )
    tls_cert: Path | None = Field(
        None, description="PEM file of the server's certificate and its intermediates; with it, TLS"
    )
    tls_key: Path | None = Field(None, description="PEM file of the certificate's key")
    tls_client_ca: Path | None = Field(
        None, description="PEM file of CAs; every client needs a certificate of one of them"
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="the least important entries that are logged"
    )
    log_format: Literal["auto", "json", "console"] = Field(
        "auto", description="auto is console on a terminal, else json"
    )
    log_sample: float = Field(
        1.0, ge=0, le=1, description="share of the successful calls that are logged"
    )
    grpc_fast_path: bool = Field(
        True, description="answer unary gRPC calls without ASGI in between; on or off"
    )
    max_request_bytes: int = Field(
        64 * 1024, ge=1024, le=4 * 1024 * 1024, description="largest request, decompressed"
    )

    @field_validator("status_guard", mode="before")
    @classmethod
    def _read_switch(cls, text: object) -> object:
        """Take what a switch takes, too: the setting was one."""
        given = text.lower() if isinstance(text, str) else text
        switches = {"true": "on", "yes": "on", "1": "on", "false": "off", "no": "off", "0": "off"}
        return switches.get(given, given) if isinstance(given, str) else given

    @field_validator(
        "public", "cors_origins", "cors_headers", "allowed_hosts", "trusted_proxies", mode="before"
    )
    @classmethod
    def _split_list(cls, text: object) -> object:
        if not isinstance(text, str):
            return text
        return [] if text == "none" else [part.strip() for part in text.split(",")]

    @field_validator("jwks")
    @classmethod
    def _check_path_or_safe_url(cls, location: str | None) -> str | None:
        if location is None or "://" not in location:
            return location
        url = _split(location)
        if not url.hostname or url.username is not None or url.password is not None:
            raise ValueError("expected a path, or https://host/path")
        is_local = url.hostname == "localhost" or is_loopback(url.hostname)
        if url.scheme != "https" and not (url.scheme == "http" and is_local):
            raise ValueError("expected https://, since these keys decide who may call")
        return location

    @field_validator("cors_origins")
    @classmethod
    def _check_origins(cls, origins: tuple[str, ...]) -> tuple[str, ...]:
        Origins(origins)
        return origins

    @field_validator("cors_headers")
    @classmethod
    def _check_header_names(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        if not all(map(_HEADER_NAME.fullmatch, names)):
            raise ValueError("expected names of headers, such as baggage, separated by commas")
        return names

    @field_validator("allowed_hosts")
    @classmethod
    def _check_hosts(cls, hosts: tuple[str, ...]) -> tuple[str, ...]:
        for host in hosts:
            if not (_HOST_NAME.fullmatch(host) or canonical_address(host.strip("[]"))):
                raise ValueError(
                    "expected names or addresses without scheme, port or wildcard, such as "
                    "listings.example, separated by commas"
                )
        return hosts

    @field_validator("database_url", "direct_database_url", "migration_database_url")
    @classmethod
    def _check_libpq_url(cls, url: SecretStr | None) -> SecretStr | None:
        if url and not url.get_secret_value().startswith(("postgresql://", "postgres://")):
            raise ValueError("expected postgresql://user:password@host:port/database")
        return url

    @property
    def worker_count(self) -> int:
        """The number of processes that serve."""
        if self.workers is None:
            return 1 if self.database_url is None else len(os.sched_getaffinity(0))
        return self.workers

    @classmethod
    def read(cls) -> Self:
        """Return the settings of the environment. Raises SettingsError with all faults."""
        settings, faults = cls.check()
        if faults:
            raise SettingsError("; ".join(faults.values()))
        return settings

    @classmethod
    def check(cls) -> tuple[Self, dict[str, str]]:
        """Return the settings of the environment, and a message for each faulty variable.

        A faulty setting has its default.
        """
        faults = _misspelled([variable(name) for name in cls.model_fields])
        try:
            settings = cls()
            return settings, faults | settings._incomplete()
        except ValidationError as error:
            # Without the values: one may contain a password.
            wrong = {
                str(fault["loc"][0]): fault["msg"]
                for fault in error.errors(include_url=False, include_input=False)
            }
        faults |= {variable(name): f"{variable(name)}: {wrong[name]}" for name in wrong}
        return cls(**{name: cls.model_fields[name].default for name in wrong}), faults

    @classmethod
    def unknown_variables(cls) -> list[str]:
        """Return the variables with our prefix that are neither settings nor set by Kubernetes."""
        known = {variable(name) for name in cls.model_fields}
        return sorted(
            name
            for name in os.environ
            if name.startswith(PREFIX)
            and name not in known
            and not _KUBERNETES_SERVICE.search(name)
        )

    def _incomplete(self) -> dict[str, str]:
        """Return a message for each variable that is missing and another one requires."""
        return {
            variable(needed): f"{variable(needed)}: expected beside {variable(name)}"
            for name, required in _REQUIRES.items()
            for needed in required
            if getattr(self, name) and not getattr(self, needed)
        }


def _split(url: str) -> SplitResult:
    """Return the parts of a URL. Raises ValueError, which quotes nothing of it."""
    try:
        parts = urlsplit(url)
        _ = parts.port  # the property raises ValueError
    except ValueError:
        raise ValueError("expected a URL, with a port from 0 to 65535 if any") from None
    return parts


def variable(name: str) -> str:
    """Return the environment variable of the setting ``name``: LISTINGS_PORT of port."""
    return PREFIX + name.upper()


def _misspelled(names: list[str]) -> dict[str, str]:
    """Return a message for each variable whose name resembles one of ``names``.

    Other unknown variables with our prefix are no errors, since Kubernetes sets some.
    """
    messages = {}
    for given in os.environ:
        if given.startswith(PREFIX) and given not in names:
            for name in difflib.get_close_matches(given, names, n=1, cutoff=0.9):
                messages[given] = f"{given} is not a setting; did you mean {name}?"
    return messages
