"""Tokens for development, and the key that signs them. Not for production."""

import json
import os
import time
from collections.abc import Collection
from pathlib import Path
from typing import Any, Final, NamedTuple

import jwt
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from jwt.algorithms import OKPAlgorithm

from server.auth.jwks import DEVELOPMENT_PREFIX
from server.auth.private_files import require_own_directory, require_own_file
from server.settings import Settings

ISSUER: Final = "listings-development"
AUDIENCE: Final = "listings"


class Bearer(NamedTuple):
    """The bearer of a token, and what it may do."""

    subject: str
    permissions: Collection[str]
    storefronts: Collection[int]
    """Ids of the storefronts that the token is limited to; empty for no limit."""


def make_token(settings: Settings, directory: Path, bearer: Bearer, hours: float) -> str:
    """Return a JSON Web Token that is valid for ``hours``.

    Creates ``directory`` if need be, in it a private key that only its owner can read, and
    ``jwks.json``, the JWK Set for the setting ``jwks``: a service accepts the tokens of who can
    write either. Raises OSError, UnsafeFile, and ValueError for a file that is not a private key.
    """
    directory.mkdir(mode=0o700, exist_ok=True)
    pem, jwks = directory / "private-key.pem", directory / "jwks.json"
    require_own_directory(directory)
    require_own_file(pem, secret=True)
    require_own_file(jwks)
    key = _private_key(pem)
    public = _public_jwk(key)
    with open(os.open(jwks, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644), "w") as file:
        file.write(json.dumps({"keys": [public]}, indent=2) + "\n")
    now = int(time.time())
    claims: dict[str, Any] = {
        "iss": settings.jwt_issuer or ISSUER,
        "aud": settings.jwt_audience or AUDIENCE,
        "sub": bearer.subject,
        "iat": now,
        "exp": now + round(hours * 3600),
        settings.jwt_permissions_claim: " ".join(bearer.permissions),
    }
    if bearer.storefronts:
        claims[settings.jwt_storefronts_claim] = list(bearer.storefronts)
    return jwt.encode(claims, key, "EdDSA", {"kid": public["kid"]})


def _private_key(path: Path) -> Ed25519PrivateKey:
    try:
        pem = path.read_bytes()
    except FileNotFoundError:
        pem = Ed25519PrivateKey.generate().private_bytes(
            Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()
        )
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(pem)
    key = load_pem_private_key(pem, None)
    assert isinstance(key, Ed25519PrivateKey)  # noqa: S101 - generated above
    return key


def _public_jwk(key: Ed25519PrivateKey) -> dict[str, Any]:
    jwk: dict[str, Any] = OKPAlgorithm.to_jwk(key.public_key(), as_dict=True)
    return {**jwk, "kid": f"{DEVELOPMENT_PREFIX}-{jwk['x'][:8]}", "alg": "EdDSA", "use": "sig"}
