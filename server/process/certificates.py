"""TLS: the certificate and its key, whose clients come in, and how all that is replaced.

New files make a new context, for the connections that begin from then on. In the old one, a key of
another type would stay beside the new one; and a client could resume a session that it was given
while its certificate counted.
"""

import shlex
import ssl
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple, Self, TypeVar
from urllib.parse import urlsplit

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key

from server.files.reload import FileReloader
from server.http.negotiation import OnePortProtocol
from server.settings import Settings, SettingsError, variable

# Those that HTTP/2 allows with TLS 1.2 (RFC 9113, section 9.2.2). TLS 1.3 has no others.
_CIPHERS = "ECDHE+AESGCM:ECDHE+CHACHA20"

_Parsed = TypeVar("_Parsed")


class Certificate(NamedTuple):
    """What is to be known of the certificate that clients are shown."""

    names: Sequence[str]
    """The names and addresses of servers that it is for."""
    end: datetime
    is_self_signed: bool
    public_key: object

    def __str__(self) -> str:
        return f"for {', '.join(self.names) or 'no server'}, valid until {self.end}"

    @classmethod
    def parse(cls, pem: bytes) -> Self:
        """Read the first certificate there is. Raises ValueError if it is not valid now."""
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
    """What connections are secured with from now on."""

    context: ssl.SSLContext
    certificate: Certificate

    def __init__(self, cert: Path, key: Path, client_ca: Path | None) -> None:
        """Read PEM files. With ``client_ca``, every client needs a certificate of one of these CAs.

        Raises SettingsError.
        """
        self.cert, self.key, self.client_ca = cert, key, client_ca
        super().__init__([path for path in (cert, key, client_ca) if path], self._load)

    @classmethod
    def of(cls, settings: Settings) -> Self | None:
        """Return what the settings say, or None if they want no TLS. Raises SettingsError."""
        if settings.tls_cert is None or settings.tls_key is None:
            return None
        return cls(settings.tls_cert, settings.tls_key, settings.tls_client_ca)

    def _load(self) -> str:
        """Make a context of the files. Returns what it is; raises SettingsError."""
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
                f"{self.cert}; expected that of the first one there"
            )
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.set_ciphers(_CIPHERS)
        context.set_alpn_protocols(OnePortProtocol.alpn_protocols)
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
        except OSError as error:  # as for a key that is too short, or if it was replaced just now
            raise SettingsError(f"{variable('tls_cert')}: {self.cert}: {error}") from error
        self.context, self.certificate = context, certificate
        return f"TLS with the certificate {certificate}"

    def curl(self, base_url: str) -> str:
        """Return how a curl command line begins that calls what serves there, and trusts it."""
        address = urlsplit(base_url)
        options = []
        if self.certificate.is_self_signed:
            options.append(f"--cacert {shlex.quote(str(self.cert))}")
        if self.client_ca is not None:
            options.append("--cert YOURS.pem --key YOURS.key")
        usable = [name for name in self.certificate.names if "*" not in name]
        if not usable or address.hostname in usable:
            return " ".join(["curl -s", *options, base_url])
        options.append(f"--connect-to ::{address.netloc}")
        return " ".join(["curl -s", *options, f"https://{usable[0]}:{address.port}"])


def _parsed(name: str, path: Path, parse: Callable[[bytes], _Parsed], expected: str) -> _Parsed:
    """Return what is in the file that a setting names. Raises SettingsError."""
    try:
        return parse(path.read_bytes())
    except OSError as error:
        reason = error.strerror
    except Exception as error:  # of any kind: cryptography has several
        reason = str(error).split(". ")[0]
    raise SettingsError(f"{variable(name)}: {path}: {reason}; expected a PEM file with {expected}")
