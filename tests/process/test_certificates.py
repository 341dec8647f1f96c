"""TLS files: those that are accepted, and the errors for others."""

from collections.abc import Callable
from pathlib import Path

import pytest

from server.process.certificates import TLS
from server.settings import Settings, SettingsError
from tests.support.certificates import Files, Issued, rsa_key


@pytest.fixture(scope="module")
def ca() -> Issued:
    return Issued.ca()


@pytest.fixture
def files(ca: Issued, tmp_path: Path) -> Files:
    return ca.issue("pay.example", "10.0.0.1").save(tmp_path, "server")


def of(cert: Path | None, key: Path | None, client_ca: Path | None = None) -> TLS | None:
    return TLS.from_settings(Settings(tls_cert=cert, tls_key=key, tls_client_ca=client_ca))


def test_without_settings_tls_is_off() -> None:
    assert of(None, None) is None


def test_a_certificate_is_described_by_names_and_expiry(files: Files) -> None:
    tls = of(*files)
    assert tls is not None
    assert str(tls.certificate).startswith("for pay.example, 10.0.0.1, valid until 20")


Spoil = Callable[[Files, Issued], object]

FAULTS: dict[str, tuple[Spoil, str]] = {
    "missing": (
        lambda files, _: files.key.unlink(),
        r"LISTINGS_TLS_KEY: {key}: No such file or directory; expected .* private key",
    ),
    "directory": (
        lambda files, _: files.cert.unlink() or files.cert.mkdir(),  # type: ignore[func-returns-value]
        r"LISTINGS_TLS_CERT: {cert}: Is a directory; expected .* certificate",
    ),
    "exchanged": (
        lambda files, _: files.key.rename(files.cert),
        r"LISTINGS_TLS_CERT: {cert}: .*; expected .* certificate",
    ),
    "empty": (
        lambda files, _: files.cert.write_bytes(b""),
        r"LISTINGS_TLS_CERT: {cert}: .*; expected .* certificate",
    ),
    "half": (
        lambda files, ca: files.key.write_bytes(ca.key_pem()[:-40]),
        r"LISTINGS_TLS_KEY: {key}: .*; expected .* private key",
    ),
    "other-key": (
        lambda files, ca: files.key.write_bytes(ca.key_pem()),
        r"LISTINGS_TLS_KEY: {key} is not the key of the certificate in {cert}",
    ),
    "encrypted": (
        lambda files, ca: files.key.write_bytes(ca.key_pem(b"hunter2")),
        r"LISTINGS_TLS_KEY: {key}: .*encrypted; expected .* without a passphrase",
    ),
    "expired": (
        lambda files, ca: ca.issue(days=(-9, -1)).save(files.cert.parent, "server"),
        r"LISTINGS_TLS_CERT: {cert}: it has expired on 20.*; expected .* valid now",
    ),
    "early": (
        lambda files, ca: ca.issue(days=(1, 9)).save(files.cert.parent, "server"),
        r"LISTINGS_TLS_CERT: {cert}: it is not valid before 20.*; expected .* valid now",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_unusable_files_are_rejected(files: Files, ca: Issued, fault: str) -> None:
    spoil, expected = FAULTS[fault]
    spoil(files, ca)
    with pytest.raises(SettingsError, match=expected.format(cert=files.cert, key=files.key)):
        of(*files)


def test_an_unusable_client_ca_is_rejected(files: Files, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=rf"LISTINGS_TLS_CLIENT_CA: {tmp_path}: Is a directory"):
        of(*files, client_ca=tmp_path)
    with pytest.raises(SettingsError, match=rf"LISTINGS_TLS_CLIENT_CA: {files.key}: "):
        of(*files, client_ca=files.key)


def test_a_key_file_that_begins_with_ec_parameters(ca: Issued, files: Files) -> None:
    """As ``openssl ecparam -genkey`` writes it."""
    parameters = "-----BEGIN EC PARAMETERS-----\nBggqhkjOPQMBBw==\n-----END EC PARAMETERS-----\n"
    files.key.write_text(parameters + files.key.read_text())
    assert of(*files) is not None


def test_a_weak_key_is_rejected(ca: Issued, files: Files) -> None:
    ca.issue(key=rsa_key(1024)).save(files.cert.parent, "server")
    with pytest.raises(SettingsError, match=r"LISTINGS_TLS_CERT: .*(?i:key.too.small)"):
        of(*files)
