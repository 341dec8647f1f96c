"""From the claims of a verified token to a Principal."""

from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from server.auth.principal import Principal

_MAX_SUBJECT: Final = 255  # https://openid.net/specs/openid-connect-core-1_0.html#IDToken

_MAX_EXPIRY: Final = 2.0**40  # seconds: what clocks and timers accept

_ABSENT: Final = object()


class ClaimNames(NamedTuple):
    """The names of the claims that no standard defines, from the settings."""

    permissions: str
    storefronts: str


def principal_from_claims(claims: Mapping[str, Any], names: ClaimNames) -> Principal:
    """Return the principal that verified ``claims`` describe; ``sub`` is a text, ``exp`` is there.

    Raises ValueError, whose message names the claim and does not quote its value.
    """
    subject, expires_at = claims["sub"], claims["exp"]
    if not (subject.isprintable() and 0 < len(subject) <= _MAX_SUBJECT):
        raise ValueError(f"the claim sub is not 1 to {_MAX_SUBJECT} printable characters")
    if not isinstance(expires_at, int | float):
        raise ValueError("the claim exp is not a number")
    return Principal(
        subject,
        _permissions(claims, names.permissions),
        _storefronts(claims, names.storefronts),
        float(min(expires_at, _MAX_EXPIRY)),
    )


def _permissions(claims: Mapping[str, Any], name: str) -> frozenset[str]:
    """Return permissions from a list, or from a text separated by spaces (RFC 8693, 4.2)."""
    value = _claim(claims, name)
    if value is _ABSENT:
        return frozenset()
    if isinstance(value, str):
        return frozenset(value.split())
    if isinstance(value, list) and all(isinstance(each, str) for each in value):
        return frozenset(value)
    raise ValueError(f"the claim {name} is neither a text nor a list of texts")


def _storefronts(claims: Mapping[str, Any], name: str) -> frozenset[int] | None:
    """Return the ids to which the token is limited, or None if the claim is absent.

    A malformed claim raises ValueError: it must not become a token without a limit.
    """
    value = _claim(claims, name)
    if value is _ABSENT:
        return None
    ids = value if isinstance(value, list) else [value]
    if not all(type(each) is int and 0 < each < 2**63 for each in ids):
        raise ValueError(f"the claim {name} is not a list of ids of storefronts")
    return frozenset(ids)


def _claim(claims: Mapping[str, Any], name: str) -> Any:
    """Return a claim, also a nested one such as ``realm_access.roles``. Raises ValueError.

    The whole name is tried first, since names may contain dots: ``https://shop.example/roles``.
    """
    if name in claims:
        return claims[name]
    first, _, rest = name.partition(".")
    if not rest or first not in claims:
        return _ABSENT
    if not isinstance(nested := claims[first], Mapping):
        raise ValueError(f"the claim {first} has no others within it")
    return _claim(nested, rest)
