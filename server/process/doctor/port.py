"""The address of the service, and what listens there."""

import errno
import json
import os
import socket
import ssl
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Final

import psutil

from server.auth.bind_policy import check_bind_policy
from server.process.doctor.findings import OK, PROBLEM, SKIPPED, Finding
from server.settings import Settings, SettingsError

_ANSWER_SECONDS: Final = 2.0
"""For a service to answer."""


def examine_port(settings: Settings) -> Finding:
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
