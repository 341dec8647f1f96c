"""Certificates for tests: a CA, the certificates that it issues, and PEM files."""

import ipaddress
import ssl
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import NamedTuple, Self

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    KeySerializationEncryption,
    NoEncryption,
    PrivateFormat,
)
from cryptography.x509.oid import NameOID

from server.http import ALPN_PROTOCOLS

HOST = "127.0.0.1"

Key = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey


class Files(NamedTuple):
    """A certificate and its key in PEM files."""

    cert: Path
    key: Path

    def context(self) -> ssl.SSLContext:
        """Return a server's context, which offers both versions of HTTP."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*self)
        context.set_alpn_protocols(ALPN_PROTOCOLS)
        return context


class Issued(NamedTuple):
    """A certificate, its key, and its issuer."""

    certificate: x509.Certificate
    key: Key
    issuer: x509.Certificate

    @property
    def serial(self) -> str:
        """The serial number, formatted as by Python's ssl."""
        digits = f"{self.certificate.serial_number:X}"
        return digits if len(digits) % 2 == 0 else f"0{digits}"

    def cert_pem(self) -> bytes:
        """Return the certificate."""
        return self.certificate.public_bytes(Encoding.PEM)

    def key_pem(self, password: bytes | None = None) -> bytes:
        """Return the key."""
        encryption: KeySerializationEncryption = NoEncryption()
        if password:
            encryption = BestAvailableEncryption(password)
        return self.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption)

    def save(self, directory: Path, name: str) -> Files:
        """Write both into files, and replace existing ones."""
        files = Files(directory / f"{name}.pem", directory / f"{name}.key")
        files.cert.write_bytes(self.cert_pem())
        files.key.write_bytes(self.key_pem())
        return files

    @classmethod
    def ca(cls, name: str = "test CA") -> Self:
        """Make a CA."""
        return cls._issue(name, [], None)

    @classmethod
    def self_signed(cls, *names: str) -> Self:
        """Make a self-signed certificate."""
        return cls._issue("self", names or [HOST], None)

    def issue(
        self, *names: str, key: Key | None = None, days: tuple[float, float] = (-1, 90)
    ) -> "Issued":
        """Issue a certificate for some names, valid from one day to another, counted from today."""
        return self._issue("leaf", names or [HOST], self, key=key, days=days)

    @classmethod
    def _issue(
        cls,
        subject: str,
        names: Sequence[str],
        by: "Issued | None",
        *,
        key: Key | None = None,
        days: tuple[float, float] = (-1, 90),
    ) -> Self:
        key = key or ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, subject)])
        now = datetime.now(UTC)
        builder = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(by.certificate.subject if by else name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now + timedelta(days=days[0]))
            .not_valid_after(now + timedelta(days=days[1]))
            .add_extension(x509.BasicConstraints(ca=not names, path_length=None), critical=True)
        )
        if names:
            builder = builder.add_extension(
                x509.SubjectAlternativeName([_general(each) for each in names]), critical=False
            )
        certificate = builder.sign(by.key if by else key, hashes.SHA256())
        return cls(certificate, key, by.certificate if by else certificate)


def rsa_key(size: int = 2048) -> rsa.RSAPrivateKey:
    """Return an RSA key; those of issued certificates are on elliptic curves."""
    return rsa.generate_private_key(public_exponent=65537, key_size=size)


def _general(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


class Trust(NamedTuple):
    """A client's TLS files: the server's CA, and optionally a client certificate."""

    ca: Issued
    own: Files | None = None

    def pem(self) -> tuple[bytes, bytes | None, bytes | None]:
        """Return the CA, the own certificate and its key."""
        if self.own is None:
            return self.ca.cert_pem(), None, None
        return self.ca.cert_pem(), self.own.cert.read_bytes(), self.own.key.read_bytes()

    def context(self, *alpn: str) -> ssl.SSLContext:
        """Return a context that offers these protocols."""
        context = ssl.create_default_context(cadata=self.ca.cert_pem().decode())
        if alpn:
            context.set_alpn_protocols(alpn)
        if self.own:
            context.load_cert_chain(*self.own)
        return context
