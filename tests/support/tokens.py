"""Issuers of tokens: the one that the service trusts, and others."""

import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm

ISSUER: Final = "https://issuer.example"
AUDIENCE: Final = "listings"
WRITE, READ = "payments:write", "orders:read"

# One key for a whole run: RSA keys take long to generate.
_RSA: Final = rsa.generate_private_key(65537, 2048)

_TO_JWK: Final = {"RS256": RSAAlgorithm, "ES256": ECAlgorithm, "EdDSA": OKPAlgorithm}


@dataclass(frozen=True)
class SigningKey:
    """A private key and its key id."""

    private: Any
    algorithm: str
    key_id: str

    def jwk(self) -> dict[str, Any]:
        """Return its public half as a JSON Web Key."""
        algorithm: Any = _TO_JWK[self.algorithm]
        jwk: dict[str, Any] = algorithm.to_jwk(self.private.public_key(), as_dict=True)
        return jwk | {"kid": self.key_id, "alg": self.algorithm, "use": "sig"}

    def public_pem(self) -> bytes:
        """Return its public half as PEM."""
        pem: bytes = self.private.public_key().public_bytes(
            Encoding.PEM, PublicFormat.SubjectPublicKeyInfo
        )
        return pem

    def sign(self, headers: dict[str, Any] | None = None, **claims: Any) -> str:
        """Return a token with these claims alone."""
        named = {"kid": self.key_id} | (headers or {})
        return jwt.encode(claims, self.private, self.algorithm, named)


def rsa_key(key_id: str = "rsa") -> SigningKey:
    """Return the RSA key of this run."""
    return SigningKey(_RSA, "RS256", key_id)


def ec_key(key_id: str = "ec") -> SigningKey:
    """Return a new key on the curve P-256."""
    return SigningKey(ec.generate_private_key(ec.SECP256R1()), "ES256", key_id)


def ed_key(key_id: str = "ed") -> SigningKey:
    """Return a new Ed25519 key."""
    return SigningKey(ed25519.Ed25519PrivateKey.generate(), "EdDSA", key_id)


@dataclass
class Issuer:
    """An issuer whose key set is in the file ``jwks``."""

    jwks: Path
    keys: list[SigningKey] = field(default_factory=lambda: [rsa_key(), ec_key(), ed_key()])

    def __post_init__(self) -> None:
        self.publish()

    def publish(self, *keys: SigningKey) -> None:
        """Replace the keys, if any are given, and write the key set to ``jwks``."""
        self.keys = list(keys) or self.keys
        new = self.jwks.with_suffix(".new")
        new.write_text(self.key_set())
        new.rename(self.jwks)

    def key_set(self) -> str:
        """Return the keys as a JWK Set."""
        return json.dumps({"keys": [key.jwk() for key in self.keys]})

    def settings(self) -> dict[str, str]:
        """Return the settings of a service that accepts its tokens."""
        return {"jwks": str(self.jwks), "jwt_issuer": ISSUER, "jwt_audience": AUDIENCE}

    def token(self, *permissions: str, key: SigningKey | None = None, **claims: Any) -> str:
        """Return a token for these permissions. A claim that is None is left out."""
        usual: dict[str, Any] = {
            "iss": ISSUER,
            "aud": AUDIENCE,
            "sub": "somebody",
            "exp": int(time.time()) + 600,
            "scope": " ".join(permissions),
        } | claims
        present = {name: value for name, value in usual.items() if value is not None}
        return (key or self.keys[0]).sign(None, **present)


def bearer(token: str) -> dict[str, str]:
    """Return the header that brings a token."""
    return {"authorization": f"Bearer {token}"}
