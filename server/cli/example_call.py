"""The call that ``listings serve`` shows at its start."""

import shlex
from urllib.parse import urlsplit

from server.process.certificates import TLS


def example_call(base_url: str, tls: TLS | None, *, with_token: bool) -> str:
    """Return a shell command that pays for order 1 by curl, at a service that ``tls`` secures.

    ``with_token``, it sends the bearer token in the variable TOKEN of the shell.
    """
    curl = _curl(base_url, tls) if tls else f"curl -s {base_url}"
    token = '-H "Authorization: Bearer $TOKEN" ' if with_token else ""
    return (
        f"{curl}/listings.v1.OrderService/UpdateOrderPayment "
        f"{token}-H 'Content-Type: application/json' "
        """-d '{"orderId": 1, "paymentProvider": "stripe", "paymentStatus": "paid"}'"""
    )


def _curl(base_url: str, tls: TLS) -> str:
    """Return curl with options to trust the certificate, and a URL with a name that it is for."""
    address = urlsplit(base_url)
    options = []
    if tls.certificate.is_self_signed:
        options.append(f"--cacert {shlex.quote(str(tls.cert))}")
    if tls.client_ca is not None:
        options.append("--cert YOURS.pem --key YOURS.key")
    usable = [name for name in tls.certificate.names if "*" not in name]
    if not usable or address.hostname in usable:
        return " ".join(["curl -s", *options, base_url])
    options.append(f"--connect-to ::{address.netloc}")
    return " ".join(["curl -s", *options, f"https://{usable[0]}:{address.port}"])
