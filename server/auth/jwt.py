"""Bearer tokens: JSON Web Tokens (RFC 7519), checked by PyJWT as RFC 8725 recommends.

A valid token is cached, so that its next call verifies no signature. It leaves the cache when it
expires, when the keys are replaced, and as the oldest of ``_CACHE_SIZE``.
"""

import time
from collections.abc import Callable, Mapping
from typing import Any, Final, Protocol

import jwt

from server.auth.claims import ClaimNames, principal_from_claims
from server.auth.jwks import ALGORITHMS
from server.auth.principal import Principal

EXPIRED: Final = "TOKEN_EXPIRED"
INVALID: Final = "TOKEN_INVALID"

_CACHE_SIZE: Final = 1_000
_MAX_LENGTH: Final = 8 * 1024  # characters; many servers accept no longer header either

# PyJWT's own messages may quote the token.
_ERRORS: Final = (
    (jwt.ExpiredSignatureError, EXPIRED, "the token has expired"),
    (jwt.ImmatureSignatureError, INVALID, "the token is not valid yet"),
    (jwt.InvalidIssuerError, INVALID, "the token is of another issuer"),
    (jwt.InvalidAudienceError, INVALID, "the token is for another audience"),
    (jwt.InvalidSignatureError, INVALID, "the token's signature is wrong"),
)


class TokenError(Exception):
    """A token is missing or not valid. ``str`` is the reason for people, without its content."""

    def __init__(self, reason: str, text: str) -> None:
        """``reason`` is that of the ErrorInfo: EXPIRED, INVALID, or that a token is missing."""
        super().__init__(text)
        self.reason = reason


class KeyProvider(Protocol):
    """The public keys of the token issuer."""

    generation: int
    """Changes whenever the keys are replaced."""

    async def find(self, key_id: str | None, algorithm: str) -> jwt.PyJWK | None:
        """Return the key with the ``kid`` ``key_id``; for None, the only key of ``algorithm``."""


class TokenVerifier:
    """Verifies tokens, and returns the principal of each."""

    def __init__(  # noqa: PLR0913 - keywords
        self,
        keys: KeyProvider,
        *,
        issuer: str,
        audience: str,
        leeway: float,
        names: ClaimNames,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """``leeway`` is how many seconds the issuer's clock may differ from ``clock``."""
        self._keys = keys
        self._expected: Any = {"issuer": issuer, "audience": audience, "leeway": leeway}
        self._names = names
        self._clock = clock
        self._cache: dict[str, Principal] = {}
        self._cache_generation = keys.generation

    async def verify(self, token: str) -> Principal:
        """Return the principal of ``token``. Raises TokenError, or what ``keys.find`` raises."""
        if self._cache_generation != self._keys.generation:
            self._cache_generation = self._keys.generation
            self._cache.clear()
        cached = self._cache.get(token)
        if cached is not None:
            if self._clock() < cached.expires_at:
                return cached
            del self._cache[token]
        return await self._verify(token)

    async def _verify(self, token: str) -> Principal:
        if len(token) > _MAX_LENGTH:
            raise TokenError(INVALID, f"the token is longer than {_MAX_LENGTH} characters")
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
            raise _token_error(error) from None
        try:
            principal = principal_from_claims(claims, self._names)
        except ValueError as error:
            raise TokenError(INVALID, str(error)) from None
        self._store(token, principal)
        return principal

    async def _key(self, header: Mapping[str, Any]) -> jwt.PyJWK:
        algorithm = header.get("alg")
        if algorithm not in ALGORITHMS:
            raise TokenError(INVALID, f"the token is not signed by one of {', '.join(ALGORITHMS)}")
        key = await self._keys.find(header.get("kid"), algorithm)
        if key is None:
            raise TokenError(INVALID, "the token is signed with a key that is not trusted here")
        return key

    def _store(self, token: str, principal: Principal) -> None:
        if len(self._cache) >= _CACHE_SIZE:
            del self._cache[next(iter(self._cache))]
        self._cache[token] = principal


def _token_error(error: jwt.PyJWTError) -> TokenError:
    if isinstance(error, jwt.MissingRequiredClaimError):
        return TokenError(INVALID, f"the token lacks the claim {error.claim}")
    for kind, reason, text in _ERRORS:
        if isinstance(error, kind):
            return TokenError(reason, text)
    return TokenError(INVALID, "the token is malformed")
