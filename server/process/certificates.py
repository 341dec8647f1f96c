"""The TLS context of the server: made from PEM files, and made anew when they are replaced.

New files make a new ``ssl.SSLContext``, for the connections that begin from then on. Loaded into
the old one, a key of another type would stay beside the new key; and a client could resume a
session that it got while its certificate was accepted.
"""

import ssl
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple, Self, TypeVar

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key

from server.files.reload import FileReloader
from server.http import ALPN_PROTOCOLS
from server.settings import Settings, SettingsError, variable

# Of TLS 1.2, those that HTTP/2 allows (RFC 9113, section 9.2.2). It allows all of TLS 1.3.
_CIPHERS = "ECDHE+AESGCM:ECDHE+CHACHA20"

_Parsed = TypeVar("_Parsed")


class Certificate(NamedTuple):
    """The certificate that the server presents to clients."""

    names: Sequence[str]
    """Its subject alternative names: DNS names, then IP addresses."""
    end: datetime
    """When it expires."""
    is_self_signed: bool
    public_key: object

    def __str__(self) -> str:
        return f"for {', '.join(self.names) or 'no server'}, valid until {self.end}"

    @classmethod
    def parse(cls, pem: bytes) -> Self:
        """Return the first certificate in ``pem``. Raises ValueError if it is not valid now."""
        read, now = x509.load_pem_x509_certificates(pem)[0], datetime.now(UTC)
        if now > read.not_valid_after_utc:
            raise ValueError(f"it has expired on {read.not_valid_after_utc}")
        if now < read.not_valid_before_utc:
            raise ValueError(f"it is not valid before {read.not_valid_before_utc}")
        try:
            extension = read.extensions.get_extension_for_class(x509.SubjectAlternativeName)
        except x509.ExtensionNotFound:
            names = []
        else:
            addresses = extension.value.get_values_for_type(x509.IPAddress)
            names = [*extension.value.get_values_for_type(x509.DNSName), *map(str, addresses)]
        return cls(names, read.not_valid_after_utc, read.issuer == read.subject, read.public_key())


class TLS(FileReloader):
    """The certificate, its key and the CAs of clients, as files that may be replaced."""

    context: ssl.SSLContext
    """For the handshakes that begin from now on."""
    certificate: Certificate

    def __init__(self, cert: Path, key: Path, client_ca: Path | None) -> None:
        """Load PEM files. With ``client_ca``, every client needs a certificate of one of these CAs.

        Raises SettingsError when a file cannot be read or used.
        """
        self.cert, self.key, self.client_ca = cert, key, client_ca
        super().__init__([path for path in (cert, key, client_ca) if path], self._load)

    @classmethod
    def from_settings(cls, settings: Settings) -> Self | None:
        """Return TLS by the settings, or None without LISTINGS_TLS_CERT. Raises SettingsError."""
        if settings.tls_cert is None or settings.tls_key is None:
            return None
        return cls(settings.tls_cert, settings.tls_key, settings.tls_client_ca)

    def _load(self) -> str:
        """Make a context from the files, and return a message about it. Raises SettingsError."""
        certificate = _parsed(
            "tls_cert", self.cert, Certificate.parse, "a certificate that is valid now"
        )
        key = _parsed(
            "tls_key",
            self.key,
            lambda pem: load_pem_private_key(pem, password=None),
            "a private key without a passphrase",
        )
        if key.public_key() != certificate.public_key:
            raise SettingsError(
                f"{variable('tls_key')}: {self.key} is not the key of the certificate in "
                f"{self.cert}; expected the key of the first certificate there"
            )
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.set_ciphers(_CIPHERS)
        context.set_alpn_protocols(ALPN_PROTOCOLS)
        if self.client_ca is not None:
            cas = _parsed(
                "tls_client_ca", self.client_ca, x509.load_pem_x509_certificates, "certificates"
            )
            context.load_verify_locations(
                cadata=b"".join(ca.public_bytes(Encoding.DER) for ca in cas)
            )
            context.verify_mode = ssl.CERT_REQUIRED
        try:
            context.load_cert_chain(self.cert, self.key)
        except OSError as error:  # as for a key that is too short, or a file replaced meanwhile
            raise SettingsError(f"{variable('tls_cert')}: {self.cert}: {error}") from error
        self.context, self.certificate = context, certificate
        return f"TLS with the certificate {certificate}"


def _parsed(name: str, path: Path, parse: Callable[[bytes], _Parsed], expected: str) -> _Parsed:
    """Parse the file that the setting ``name`` names. Raises SettingsError."""
    try:
        return parse(path.read_bytes())
    except OSError as error:
        reason = error.strerror
    except Exception as error:  # cryptography raises several types
        reason = str(error).split(". ")[0]
    raise SettingsError(f"{variable(name)}: {path}: {reason}; expected a PEM file with {expected}")
