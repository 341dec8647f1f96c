"""Bearer tokens: JSON Web Tokens (RFC 7519), checked by PyJWT as RFC 8725 recommends.

A token that was good is remembered, so that its next call costs no signature. It is forgotten when
it expires, and when the keys change.
"""

import time
from collections.abc import Callable, Mapping
from typing import Any, Final, Protocol

import jwt

from server.auth.claims import ClaimNames, principal_of
from server.auth.jwks import ALGORITHMS
from server.auth.principal import Principal

EXPIRED: Final = "TOKEN_EXPIRED"
INVALID: Final = "TOKEN_INVALID"

_MOST_REMEMBERED: Final = 1_000
_LONGEST: Final = 8 * 1024  # characters; many servers take no longer header either

# What is said of a token. PyJWT's own words quote it.
_REFUSALS: Final = (
    (jwt.ExpiredSignatureError, EXPIRED, "the token has expired"),
    (jwt.ImmatureSignatureError, INVALID, "the token is not valid yet"),
    (jwt.InvalidIssuerError, INVALID, "the token is of another issuer"),
    (jwt.InvalidAudienceError, INVALID, "the token is for another audience"),
    (jwt.InvalidSignatureError, INVALID, "the token's signature is wrong"),
)


class TokenRefused(Exception):
    """A token is not good. ``str`` says why, and nothing of what is in it."""

    def __init__(self, reason: str, text: str) -> None:
        """``reason`` is EXPIRED or INVALID."""
        super().__init__(text)
        self.reason = reason


class Keys(Protocol):
    """The public keys of those who issue tokens."""

    changes: int
    """How often they have changed."""

    async def find(self, key_id: str | None, algorithm: str) -> jwt.PyJWK | None:
        """Return the key with that ``kid``; without one, the only key for the algorithm."""


class TokenVerifier:
    """Tells whose a token is, and what its bearer may do."""

    def __init__(  # noqa: PLR0913 - each of them has a name
        self,
        keys: Keys,
        *,
        issuer: str,
        audience: str,
        leeway: float,
        names: ClaimNames,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """``leeway`` is how many seconds the issuer's clock may be ahead or behind."""
        self._keys = keys
        self._expected: Any = {"issuer": issuer, "audience": audience, "leeway": leeway}
        self._names = names
        self._clock = clock
        self._remembered: dict[str, Principal] = {}
        self._remembered_with = keys.changes

    async def verify(self, token: str) -> Principal:
        """Return the bearer of ``token``. Raises TokenRefused, or what ``Keys.find`` does."""
        if self._remembered_with != self._keys.changes:
            self._remembered_with = self._keys.changes
            self._remembered.clear()
        known = self._remembered.get(token)
        if known is not None:
            if self._clock() < known.expires_at:
                return known
            del self._remembered[token]
        return await self._verify(token)

    async def _verify(self, token: str) -> Principal:
        if len(token) > _LONGEST:
            raise TokenRefused(INVALID, f"the token is longer than {_LONGEST} characters")
        try:
            key = await self._key(jwt.get_unverified_header(token))
            claims = jwt.decode(
                token,
                key,
                algorithms=[key.algorithm_name],
                options={"require": ["exp", "iss", "aud", "sub"]},
                **self._expected,
            )
        except jwt.PyJWTError as error:
            raise _refusal(error) from None
        try:
            principal = principal_of(claims, self._names)
        except ValueError as error:
            raise TokenRefused(INVALID, str(error)) from None
        self._remember(token, principal)
        return principal

    async def _key(self, header: Mapping[str, Any]) -> jwt.PyJWK:
        algorithm = header.get("alg")
        if algorithm not in ALGORITHMS:
            raise TokenRefused(
                INVALID, f"the token is not signed by one of {', '.join(ALGORITHMS)}"
            )
        key = await self._keys.find(header.get("kid"), algorithm)
        if key is None:
            raise TokenRefused(INVALID, "the token is signed with a key that is not trusted here")
        return key

    def _remember(self, token: str, principal: Principal) -> None:
        if len(self._remembered) >= _MOST_REMEMBERED:
            del self._remembered[next(iter(self._remembered))]
        self._remembered[token] = principal


def _refusal(error: jwt.PyJWTError) -> TokenRefused:
    if isinstance(error, jwt.MissingRequiredClaimError):
        return TokenRefused(INVALID, f"the token lacks the claim {error.claim}")
    for kind, reason, text in _REFUSALS:
        if isinstance(error, kind):
            return TokenRefused(reason, text)
    return TokenRefused(INVALID, "the token is malformed")
