"""What the claims of a verified token say of its bearer."""

from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from server.auth.principal import Principal

_LONGEST_SUBJECT: Final = 255  # https://openid.net/specs/openid-connect-core-1_0.html#IDToken

_FAR_AWAY: Final = 2.0**40  # seconds, which clocks and timers can deal with

_ABSENT: Final = object()


class ClaimNames(NamedTuple):
    """Where tokens have what no standard has a claim for."""

    permissions: str
    storefronts: str


def principal_of(claims: Mapping[str, Any], names: ClaimNames) -> Principal:
    """Return the bearer. Raises ValueError, which says what is wrong, and not what was there."""
    subject, expires_at = claims["sub"], claims["exp"]
    if not (subject.isprintable() and 0 < len(subject) <= _LONGEST_SUBJECT):
        raise ValueError(f"the claim sub is not 1 to {_LONGEST_SUBJECT} printable characters")
    if not isinstance(expires_at, int | float):
        raise ValueError("the claim exp is not a number")
    return Principal(
        subject,
        _permissions(claims, names.permissions),
        _storefronts(claims, names.storefronts),
        float(min(expires_at, _FAR_AWAY)),
    )


def _permissions(claims: Mapping[str, Any], name: str) -> frozenset[str]:
    """Return permissions from a list of them, or from a text with spaces (RFC 8693, scope)."""
    value = _claim(claims, name)
    if value is _ABSENT:
        return frozenset()
    if isinstance(value, str):
        return frozenset(value.split())
    if isinstance(value, list) and all(isinstance(each, str) for each in value):
        return frozenset(value)
    raise ValueError(f"the claim {name} is neither a text nor a list of texts")


def _storefronts(claims: Mapping[str, Any], name: str) -> frozenset[int] | None:
    """Return the storefronts that a token is limited to, if it is.

    A limit that cannot be understood is not taken for none.
    """
    value = _claim(claims, name)
    if value is _ABSENT:
        return None
    ids = value if isinstance(value, list) else [value]
    if not all(type(each) is int and 0 < each < 2**63 for each in ids):
        raise ValueError(f"the claim {name} is not a list of ids of storefronts")
    return frozenset(ids)


def _claim(claims: Mapping[str, Any], name: str) -> Any:
    """Return a claim, also one within others: ``realm_access.roles``. Raises ValueError.

    The whole name comes first, since there are names with dots: ``https://shop.example/roles``.
    """
    if name in claims:
        return claims[name]
    first, _, rest = name.partition(".")
    if not rest or first not in claims:
        return _ABSENT
    if not isinstance(within := claims[first], Mapping):
        raise ValueError(f"the claim {first} has no others within it")
    return _claim(within, rest)
