"""JWK Sets (RFC 7517): the keys of a set by which tokens can be verified."""

import json
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import jwt

ALGORITHMS: Final = ("RS256", "ES256", "EdDSA")

DEVELOPMENT_PREFIX: Final = "development-only"
"""The prefix of the ``kid`` of keys that `listings dev-token` makes."""

_MAX_KID: Final = 60  # characters of a kid in a warning


class KeySet(NamedTuple):
    """The usable keys of a set, and warnings about it for operators."""

    keys: Sequence[jwt.PyJWK]
    warnings: Sequence[str]

    def find(self, key_id: str | None, algorithm: str) -> jwt.PyJWK | None:
        """Return the key with the ``kid`` ``key_id``; for None, the only key of ``algorithm``."""
        keys = [key for key in self.keys if key.algorithm_name == algorithm]
        if key_id is not None:
            keys = [key for key in keys if key.key_id == key_id]
        return keys[0] if len(keys) == 1 else None


def parse_jwks(document: bytes) -> KeySet:
    """Return the usable keys of a JWK Set. Raises ValueError if ``document`` is none.

    A key that is not usable is ignored, as RFC 7517, section 5, recommends, so that it does not
    block the addition or removal of another key.
    """
    try:
        entries = json.loads(document)["keys"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError('not a JWK Set: expected {"keys": [...]}') from error
    if not isinstance(entries, list):
        raise ValueError('not a JWK Set: expected a list of "keys"')
    keys, warnings = [], []
    for number, entry in enumerate(entries, start=1):
        try:
            key = _key(entry)
        except Exception as error:  # PyJWT's, or KeyError, TypeError and so on for a malformed key
            reason = str(error) if isinstance(error, _UnusableKey) else "it cannot be parsed"
            warnings.append(f"key {number}{_kid(entry)} is ignored: {reason}")
        else:
            keys += [key] if key else []
    if not keys:
        warnings.append(f"no key for {', '.join(ALGORITHMS)}: every token is rejected")
    if any((key.key_id or "").startswith(DEVELOPMENT_PREFIX) for key in keys):
        warnings.append("tokens of `listings dev-token` are accepted: not for production")
    return KeySet(keys, warnings)


class _UnusableKey(ValueError):
    """A key must not be used. ``str`` is the reason."""


def _key(entry: dict[str, Any]) -> jwt.PyJWK | None:
    """Return the key that ``entry`` describes, or None if it has another use or algorithm."""
    if "d" in entry:
        raise _UnusableKey("it is private, and all who can read it can sign tokens")
    if entry.get("use", "sig") != "sig" or "verify" not in entry.get("key_ops", ["verify"]):
        return None
    if entry.get("kty") == "oct" or entry.get("alg", ALGORITHMS[0]) not in ALGORITHMS:
        return None
    key = jwt.PyJWK(entry)
    if key.algorithm_name not in ALGORITHMS:
        return None
    if too_short := key.Algorithm.check_key_length(key.key):
        raise _UnusableKey(too_short)
    return key


def _kid(entry: object) -> str:
    key_id = entry.get("kid") if isinstance(entry, dict) else None
    return f" ({key_id[:_MAX_KID]!r})" if isinstance(key_id, str) else ""
