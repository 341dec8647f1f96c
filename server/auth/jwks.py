"""JWK Sets (RFC 7517): which of their keys tokens can be checked with."""

import json
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import jwt

ALGORITHMS: Final = ("RS256", "ES256", "EdDSA")

DEVELOPMENT: Final = "development-only"
"""How the ``kid`` of a key begins that is not fit for anything else."""

_LONGEST_NAME: Final = 60  # characters of a kid that are told


class KeySet(NamedTuple):
    """The keys of a set that can be used, and what people should know of it."""

    keys: Sequence[jwt.PyJWK]
    notes: Sequence[str]

    def find(self, key_id: str | None, algorithm: str) -> jwt.PyJWK | None:
        """Return the key with that ``kid``; without one, the only key for the algorithm."""
        keys = [key for key in self.keys if key.algorithm_name == algorithm]
        if key_id is not None:
            keys = [key for key in keys if key.key_id == key_id]
        return keys[0] if len(keys) == 1 else None


def parse(key_set: bytes) -> KeySet:
    """Return what is in ``key_set``. Raises ValueError if it is no JWK Set.

    Section 5 has it that keys which cannot be used are left out. So they are, lest one of them
    keep another one from being taken in, or out.
    """
    try:
        entries = json.loads(key_set)["keys"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError('it is not a JWK Set: expected {"keys": [...]}') from error
    if not isinstance(entries, list):
        raise ValueError('it is not a JWK Set: expected a list of "keys"')
    keys, notes = [], []
    for number, entry in enumerate(entries, start=1):
        try:
            key = _key(entry)
        except Exception as error:  # of PyJWT, or for want of what it expects
            reason = str(error) if isinstance(error, _UnfitKey) else "it cannot be read"
            notes.append(f"key {number}{_name(entry)} is left out: {reason}")
        else:
            keys += [key] if key else []
    if not keys:
        notes.append(f"there is no key for {', '.join(ALGORITHMS)}: no token is taken")
    if any((key.key_id or "").startswith(DEVELOPMENT) for key in keys):
        notes.append("tokens of `listings dev-token` are taken: not for production")
    return KeySet(keys, notes)


class _UnfitKey(ValueError):
    """A key may not be used. ``str`` says why."""


def _key(entry: dict[str, Any]) -> jwt.PyJWK | None:
    """Return the key that ``entry`` describes, or None if it is for something else."""
    if "d" in entry:
        raise _UnfitKey("it is private, and whoever can read it can sign tokens")
    if entry.get("use", "sig") != "sig" or "verify" not in entry.get("key_ops", ["verify"]):
        return None
    if entry.get("kty") == "oct" or entry.get("alg", ALGORITHMS[0]) not in ALGORITHMS:
        return None
    key = jwt.PyJWK(entry)
    if key.algorithm_name not in ALGORITHMS:
        return None
    if too_short := key.Algorithm.check_key_length(key.key):
        raise _UnfitKey(too_short)
    return key


def _name(entry: object) -> str:
    key_id = entry.get("kid") if isinstance(entry, dict) else None
    return f" ({key_id[:_LONGEST_NAME]!r})" if isinstance(key_id, str) else ""
