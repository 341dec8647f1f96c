"""The checks of ``listings doctor``: what is wrong with an installation, and how to correct it."""

import asyncio
import errno
import json
import os
import socket
import ssl
import urllib.error
import urllib.request
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Final, TypeAlias
from urllib.parse import urlsplit

import psutil

from persistence import diagnostics, embedded, history_epochs, status_diagnostics
from persistence.diagnostics import Connection
from persistence.errors import EmbeddedPostgresError, PersistenceError
from persistence.status_words import StatusWords
from server.auth import jwks_client
from server.auth.bind_policy import check_bind_policy
from server.observability import telemetry
from server.process.certificates import TLS
from server.process.database import service_url
from server.process.status_words import described, read_status_words
from server.settings import Settings, SettingsError, variable

OK, PROBLEM, SKIPPED = "ok", "problem", "skipped"

_BESIDE_POOL: Final = 2
"""Connections of a process beside its pool: those of ``watch`` and ``health_probe``."""

_ANSWER_SECONDS: Final = 2.0
"""For a collector to accept a connection, and for a service to answer."""

_FOR_ROWS: Final = ("rights", "schema")
"""The checks without which those of words and of the history cannot be made."""

_RENEWAL: Final = timedelta(days=14)
"""Left of a certificate's validity at which its renewal is overdue."""


_Check: TypeAlias = Callable[[Connection], Awaitable[str]]


@dataclass(frozen=True)
class Finding:
    """The result of one check."""

    verdict: str
    """OK, PROBLEM or SKIPPED."""
    subject: str
    text: str
    """What was found, and what to do about a problem."""


def examine() -> Iterator[Finding]:
    """Yield the finding of each check. A problem does not stop those after it.

    An embedded server that exists is started for the time of its checks.
    """
    settings, faults = Settings.check()
    for fault in faults.values():
        yield Finding(PROBLEM, "configuration", fault)
    if not faults:
        given = sorted(variable(name) for name in settings.model_fields_set)
        text = f"{', '.join(given) or 'nothing'} set, the rest default"
        if unknown := Settings.unknown_variables():
            text += f"; not settings, and ignored: {', '.join(unknown)}"
        yield Finding(OK, "configuration", text)
    yield _examine_telemetry()
    if faults.keys() & {variable("jwks"), variable("jwt_issuer"), variable("jwt_audience")}:
        yield Finding(SKIPPED, "tokens", "until their settings are corrected")
    else:
        yield _examine_tokens(settings.jwks)
    if faults.keys() & {variable("tls_cert"), variable("tls_key"), variable("tls_client_ca")}:
        yield Finding(SKIPPED, "TLS", "until its settings are corrected")
    else:
        yield _examine_tls(settings)
    words, finding = _examine_words(settings)
    yield finding
    if variable("database_url") in faults:
        yield Finding(SKIPPED, "database", "until LISTINGS_DATABASE_URL is corrected")
    else:
        yield from _examine_database(settings, words)
    if faults.keys() & {variable("host"), variable("port")}:
        yield Finding(SKIPPED, "port", "until LISTINGS_HOST and LISTINGS_PORT are corrected")
    else:
        yield _examine_port(settings)


def _examine_words(settings: Settings) -> tuple[StatusWords | None, Finding]:
    try:
        words = read_status_words(settings)
    except SettingsError as error:
        return None, Finding(PROBLEM, "words", str(error))
    return words, Finding(OK, "words", described(settings, words))


def _examine_database(settings: Settings, words: StatusWords | None) -> Iterator[Finding]:
    if settings.database_url is None and not embedded.exists(settings.data_dir):
        text = f"{settings.data_dir} is not there yet; `listings serve` makes it"
        yield Finding(OK, "data directory", text)
        yield Finding(SKIPPED, "database", "until it has been made")
        return
    try:
        with service_url(settings) as url:
            if settings.database_url is None:
                text = f"{settings.data_dir} is usable, and its PostgreSQL starts"
                yield Finding(OK, "data directory", text)
            yield from asyncio.run(_check_database(settings, words, url))
    except EmbeddedPostgresError as error:
        yield Finding(PROBLEM, "data directory", " ".join(str(error).split()))
        yield Finding(SKIPPED, "database", "until the data directory is usable")


async def _check_database(settings: Settings, words: StatusWords | None, url: str) -> list[Finding]:
    processes, pool = settings.worker_count, settings.pool_size
    explained = f"{processes} x ({pool} of the pool + {_BESIDE_POOL})"
    needed = processes * (pool + _BESIDE_POOL)
    checks: dict[str, _Check] = {
        "database": diagnostics.check_server,
        "writing": diagnostics.check_writable,
        "rights": diagnostics.check_rights,
        "connections": lambda c: diagnostics.check_connections(c, needed, explained),
        "schema": diagnostics.check_schema,
    }
    for subject, name in (
        ("direct URL", "direct_database_url"),
        ("migration URL", "migration_database_url"),
    ):
        if given := getattr(settings, name):
            checks[subject] = partial(
                diagnostics.check_same,
                url=given.get_secret_value(),
                variable=variable(name),
                timeout=settings.connect_timeout,
            )
    try:
        async with diagnostics.connected(url, timeout=settings.connect_timeout) as connection:
            findings = await _run(checks, connection)
            findings += await _check_history(connection, findings)
            findings += await _check_words(words, connection, findings)
    except PersistenceError as error:
        findings = [Finding(PROBLEM, "database", _described(error))]
        others = [subject for subject in checks if subject != "database"]
        findings.append(Finding(SKIPPED, ", ".join(others), "until the database can be reached"))
    return findings


async def _check_history(connection: Connection, found: list[Finding]) -> list[Finding]:
    """Check the history, if what was ``found`` lets it be checked."""
    if needed := _unsolved(found):
        return [Finding(SKIPPED, "history", _until(needed))]
    return await _run({"history": history_epochs.check_history}, connection)


async def _check_words(
    words: StatusWords | None, connection: Connection, found: list[Finding]
) -> list[Finding]:
    """Check what depends on the words, if they and what was ``found`` let it be checked."""
    checks = {
        "classification": status_diagnostics.check_applied,
        "unknown words": status_diagnostics.check_unknown_words,
        "processes": status_diagnostics.check_processes,
    }
    needed = _unsolved(found)
    if words is None:
        needed.append("words")
    if words is None or needed:
        return [Finding(SKIPPED, ", ".join(checks), _until(needed))]
    return await _run(
        {subject: partial(check, words=words) for subject, check in checks.items()}, connection
    )


def _unsolved(found: list[Finding]) -> list[str]:
    return [each.subject for each in found if each.subject in _FOR_ROWS and each.verdict != OK]


def _until(needed: list[str]) -> str:
    return f"until the problem of {' and '.join(needed)} is solved"


async def _run(checks: Mapping[str, _Check], connection: Connection) -> list[Finding]:
    findings = []
    for subject, check in checks.items():
        try:
            findings.append(Finding(OK, subject, await check(connection)))
        except Exception as error:
            findings.append(Finding(PROBLEM, subject, _described(error)))
    return findings


def _described(error: Exception) -> str:
    if isinstance(error, PersistenceError):
        return str(error)
    return f"{error or type(error).__name__}. The check itself failed: look into PostgreSQL's log"


def _examine_telemetry() -> Finding:
    try:
        endpoints = set(telemetry.wanted().values())
    except SettingsError as error:
        return Finding(PROBLEM, "telemetry", str(error))
    for endpoint in sorted(endpoints):
        parts = urlsplit(endpoint)
        port = parts.port or {"http": 80, "https": 443}[parts.scheme]
        try:
            socket.create_connection((parts.hostname or "", port), _ANSWER_SECONDS).close()
        except OSError as error:
            text = f"no collector at {parts.hostname} port {port}: {error}. Start a collector"
            return Finding(PROBLEM, "telemetry", f"{text} there, or correct the endpoint")
    return Finding(OK, "telemetry", "sent by OTLP" if endpoints else "off")


def _examine_tokens(location: str | None) -> Finding:
    if location is None:
        return Finding(OK, "tokens", "not asked for: every caller may do everything")
    shown = location.partition("?")[0]  # the rest of a URL may be secret
    try:
        found = asyncio.run(jwks_client.read_once(location))
    except Exception as error:  # of a file, of a connection, or of what was there
        reason = getattr(error, "strerror", None) or error or type(error).__name__
        text = f"no keys to check them with at {shown}: {reason}. Correct {variable('jwks')}"
        return Finding(PROBLEM, "tokens", f"{text}, or what is there")
    count = len(found.keys)
    text = "; ".join([f"{count} key{'s' if count != 1 else ''} at {shown}", *found.warnings])
    return Finding(OK if found.keys else PROBLEM, "tokens", text)


def _examine_tls(settings: Settings) -> Finding:
    try:
        tls = TLS.from_settings(settings)
    except SettingsError as error:
        return Finding(PROBLEM, "TLS", str(error))
    if tls is None:
        return Finding(OK, "TLS", "off")
    text = f"the certificate is {tls.certificate}"
    left = tls.certificate.end - datetime.now(UTC)
    if left < _RENEWAL:
        text += f". That is in {left.days} days: it must be renewed"
    return Finding(OK, "TLS", text)


def _examine_port(settings: Settings) -> Finding:
    """Check the address, whether ``serve`` refuses it, and whether the port is free.

    An address that is refused is a problem whatever answers there: a restart would end it.
    """
    host, port = settings.host, settings.port
    where = f"{host} port {port or '(any)'}"
    try:
        with _bound(host, 0) as probe:  # any port, since another process may have this one
            refusal, note = _exposure(settings, probe)
        is_free = _is_free(host, port)
    except OSError as error:
        return Finding(PROBLEM, "port", _unusable(where, error))
    if is_free:
        finding = Finding(OK, "port", f"{where} is free{note}")
    else:
        finding = _examine_occupant(settings, where)
    if refusal:
        text = f"{finding.text}. `listings serve` refuses the address: {refusal}"
        return Finding(PROBLEM, "port", text)
    return finding


def _exposure(settings: Settings, probe: socket.socket) -> tuple[str, str]:
    """Return why ``serve`` refuses the address of ``probe``, if it does, and what it warns of."""
    try:
        warning = check_bind_policy(settings, probe)
    except SettingsError as error:
        return str(error), ""
    return "", f"; {warning}" if warning else ""


def _is_free(host: str, port: int) -> bool:
    try:
        _bound(host, port).close()
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            return False
        raise
    return True


def _bound(host: str, port: int) -> socket.socket:
    """Return a socket that is bound, but does not listen. Raises OSError."""
    probe = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    try:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind((host, port))
    except OSError:
        probe.close()
        raise
    return probe


def _unusable(where: str, error: OSError) -> str:
    if isinstance(error, socket.gaierror):
        return f"{where}: the name is not known. Correct LISTINGS_HOST"
    remedies = {
        errno.EADDRNOTAVAIL: "Set LISTINGS_HOST to an address of this machine, or 0.0.0.0",
        errno.EACCES: "Set LISTINGS_PORT to 1024 or more",
    }
    code = error.errno or 0
    remedy = remedies.get(code, "Correct LISTINGS_HOST or LISTINGS_PORT")
    return f"{where}: {os.strerror(code)}. {remedy}"


def _examine_occupant(settings: Settings, where: str) -> Finding:
    """Find out what has the port. It is no problem if that is this service, and ready."""
    host, port = settings.host, settings.port
    holders = ", ".join(_processes_on(port)) or "a process of another user"
    address = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104
    if settings.tls_client_ca:
        text = f"{where} is used by {holders}, and only clients with a certificate are answered"
        return Finding(SKIPPED, "port", text)
    scheme = "https" if settings.tls_cert else "http"
    url = f"{scheme}://[{address}]:{port}" if ":" in address else f"{scheme}://{address}:{port}"
    match _health(url):
        case "SERVING":
            text = f"a Listings Service serves on {where}, and is ready ({holders})"
            return Finding(OK, "port", text)
        case None:
            text = f"{where} is used by {holders}. Stop that, or set LISTINGS_PORT to another port"
        case _:
            text = (
                f"a Listings Service on {where} is not ready ({holders}). "
                f"See {url}/readyz and its log"
            )
    return Finding(PROBLEM, "port", text)


def _processes_on(port: int) -> Iterator[str]:
    try:
        connections = psutil.net_connections("tcp")
    except psutil.Error:
        return
    found = {
        each.pid
        for each in connections
        if each.status == psutil.CONN_LISTEN and each.laddr.port == port and each.pid
    }
    for pid in sorted(found):
        try:
            yield f"process {pid}, {psutil.Process(pid).name()}"
        except psutil.Error:
            yield f"process {pid}"


def _health(url: str) -> str | None:
    """Return the gRPC health status of a Listings Service at ``url``, or None if there is none."""
    request = urllib.request.Request(  # noqa: S310 - the scheme is ours
        f"{url}/grpc.health.v1.Health/Check",
        data=json.dumps({"service": "listings.v1.OrderService"}).encode(),
        headers={"content-type": "application/json"},
    )
    # Its certificate need not be for this address.
    trusting = ssl.create_default_context()
    trusting.check_hostname = False
    trusting.verify_mode = ssl.CERT_NONE
    directly = urllib.request.build_opener(
        urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=trusting)
    )
    try:
        with directly.open(request, timeout=_ANSWER_SECONDS) as response:
            status = json.load(response).get("status")
    except (OSError, ValueError, AttributeError):  # also HTTP errors and other protocols
        return None
    return str(status) if status else None
