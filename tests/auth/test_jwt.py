"""TokenVerifier: valid and invalid tokens, claims, the cache; JWK Sets."""

import asyncio
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from hypothesis import given
from hypothesis import strategies as st

from server.auth.claims import ClaimNames
from server.auth.jwks import parse_jwks
from server.auth.jwks_client import JwksClient
from server.auth.jwt import EXPIRED, INVALID, TokenError, TokenVerifier
from server.auth.principal import Principal
from tests.support.clock import Clock
from tests.support.tokens import AUDIENCE, ISSUER, READ, Issuer, SigningKey, ec_key, ed_key, rsa_key

KEY = ed_key()
SHORT = rsa.generate_private_key(65537, 1024)


class Keys:
    """A KeyProvider in memory, which counts its lookups."""

    def __init__(self, *keys: SigningKey) -> None:
        self.generation = 0
        self.asked = 0
        self.have(*keys)

    def have(self, *keys: SigningKey) -> None:
        self.keys = {(key.key_id, key.algorithm): jwt.PyJWK(key.jwk()) for key in keys}
        self.generation += 1

    async def find(self, key_id: str | None, algorithm: str) -> jwt.PyJWK | None:
        self.asked += 1
        return self.keys.get((key_id or "", algorithm))


def verifier(
    keys: Keys,
    permissions: str = "scope",
    storefronts: str = "storefronts",
    clock: Callable[[], float] = time.time,
) -> TokenVerifier:
    names = ClaimNames(permissions, storefronts)
    return TokenVerifier(
        keys, issuer=ISSUER, audience=AUDIENCE, leeway=10, names=names, clock=clock
    )


def token(key: SigningKey = KEY, **claims: Any) -> str:
    usual = {"iss": ISSUER, "aud": AUDIENCE, "sub": "pay", "exp": int(time.time()) + 600}
    return key.sign(None, **usual | claims)


def verified(
    text: str,
    keys: Keys | None = None,
    permissions: str = "scope",
    storefronts: str = "storefronts",
) -> Principal:
    tokens = verifier(keys or Keys(KEY), permissions, storefronts)
    return asyncio.run(tokens.verify(text))


def refusal(text: str, keys: Keys | None = None) -> tuple[str, str]:
    with pytest.raises(TokenError) as caught:
        verified(text, keys)
    return caught.value.reason, str(caught.value)


@pytest.mark.parametrize("make", [rsa_key, ec_key, ed_key])
def test_each_algorithm(make: Any) -> None:
    key = make()
    assert verified(token(key), Keys(key)).subject == "pay"
    other = make()
    if make is not rsa_key:  # of which there is one
        assert refusal(token(other), Keys(key)) == (INVALID, "the token's signature is wrong")


def test_other_algorithms_are_rejected_even_with_a_key() -> None:
    secret = {"kty": "oct", "k": "c2VjcmV0" * 8, "kid": "secret", "alg": "HS256"}
    keys = Keys()
    keys.keys["secret", "HS256"] = jwt.PyJWK(secret)
    claims = {"iss": ISSUER, "aud": AUDIENCE, "sub": "pay", "exp": int(time.time()) + 600}
    text = jwt.encode(claims, jwt.PyJWK(secret), "HS256", {"kid": "secret"})
    assert "not signed by one of RS256, ES256, EdDSA" in refusal(text, keys)[1]


@pytest.mark.parametrize(
    ("claims", "reason", "words"),
    [
        ({"exp": 1}, EXPIRED, "has expired"),
        ({"exp": time.time() - 11}, EXPIRED, "has expired"),
        ({"nbf": time.time() + 3600}, INVALID, "not valid yet"),
        ({"iss": "https://issuer.example/"}, INVALID, "of another issuer"),
        ({"aud": ["billing"]}, INVALID, "for another audience"),
        ({"sub": ""}, INVALID, "claim sub"),
        ({"sub": "a\0b"}, INVALID, "claim sub"),
        ({"sub": "x" * 256}, INVALID, "claim sub"),
        ({"scope": 7}, INVALID, "claim scope"),
        ({"scope": None}, INVALID, "claim scope"),
        ({"scope": [READ, 7]}, INVALID, "claim scope"),
        ({"storefronts": None}, INVALID, "claim storefronts"),
        ({"storefronts": "3"}, INVALID, "claim storefronts"),
        ({"storefronts": [3, "4"]}, INVALID, "claim storefronts"),
        ({"storefronts": [True]}, INVALID, "claim storefronts"),
        ({"storefronts": [0]}, INVALID, "claim storefronts"),
        ({"storefronts": [2**63]}, INVALID, "claim storefronts"),
        ({"storefronts": {"3": True}}, INVALID, "claim storefronts"),
        ({"exp": str(2**40)}, INVALID, "claim exp is not a number"),
    ],
)
def test_claims_that_are_rejected(claims: dict[str, Any], reason: str, words: str) -> None:
    found, text = refusal(token(**claims))
    assert found == reason
    assert words in text


@pytest.mark.parametrize("claim", ["exp", "iss", "aud", "sub"])
def test_required_claims(claim: str) -> None:
    claims = {"iss": ISSUER, "aud": AUDIENCE, "sub": "pay", "exp": int(time.time()) + 600}
    del claims[claim]
    assert refusal(KEY.sign(None, **claims)) == (INVALID, f"the token lacks the claim {claim}")


def test_a_very_late_expiry() -> None:
    assert verified(token(exp=10**400)).expires_at > time.time()


def test_leeway() -> None:
    now = time.time()
    assert verified(token(exp=now - 5, nbf=now + 5, iat=now + 5))


@pytest.mark.parametrize(
    ("name", "claims", "found"),
    [
        ("scope", {"scope": f"{READ} health"}, {READ, "health"}),
        ("scope", {"scope": ""}, set()),
        ("scope", {"scope": [READ, "health"]}, {READ, "health"}),
        ("scope", {}, set()),
        ("permissions", {"permissions": [READ]}, {READ}),
        ("realm_access.roles", {"realm_access": {"roles": [READ]}}, {READ}),
        ("https://shop.example/roles", {"https://shop.example/roles": [READ]}, {READ}),
        ("a.b.c", {"a": {"b": {"c": READ}}}, {READ}),
        ("a.b.c", {"a": {"x": READ}}, set()),
    ],
)
def test_permissions_claim(name: str, claims: dict[str, Any], found: set[str]) -> None:
    assert verified(token(**claims), permissions=name).permissions == found


def test_storefronts_claim() -> None:
    assert verified(token()).storefronts is None
    for value, found in ((3, [3]), ([3, 4, 3], [3, 4]), ([], [])):
        assert verified(token(storefronts=value)).storefronts == frozenset(found)
    within = verified(token(shop={"storefronts": [3]}), storefronts="shop.storefronts")
    assert within.storefronts == frozenset((3,))


@pytest.mark.parametrize("shop", [[3], "3", None, 3])
def test_a_nested_claim_in_something_that_is_no_object(shop: Any) -> None:
    with pytest.raises(TokenError, match="the claim shop has no others within it"):
        verified(token(shop=shop), storefronts="shop.storefronts")


@given(
    st.dictionaries(
        st.sampled_from(["exp", "nbf", "iat", "iss", "aud", "sub", "scope", "storefronts", "jti"]),
        st.recursive(
            st.none()
            | st.booleans()
            | st.integers()
            | st.floats()
            | st.text()
            | st.sampled_from([1e400, -1e400, 10**400]),
            lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner),
            max_leaves=5,
        ),
    )
)
def test_any_signed_claims_are_accepted_or_raise_token_error(claims: dict[str, Any]) -> None:
    usual = {"iss": ISSUER, "aud": AUDIENCE, "sub": "pay", "exp": int(time.time()) + 600}
    text = jwt.PyJWS().encode(
        _as_json(usual | claims), KEY.private, KEY.algorithm, {"kid": KEY.key_id}
    )
    try:
        verified(text)
    except TokenError as refused:
        assert str(refused).startswith(("the token", "the claim"))


@given(st.text() | st.text(".eyJhbGciOiJFZERTQSJ9"))
def test_malformed_tokens(text: str) -> None:
    assert refusal(text)[0] == INVALID
    assert refusal(f"{token()[:-20]}{text}")[0] == INVALID


def test_messages_do_not_quote_the_token() -> None:
    header = KEY.sign({"kid": "secret"}).partition(".")[0]
    for text in ("secret", f"{header}.secret.secret", token(sub="secret\0"), token(iss="secret")):
        assert "secret" not in refusal(text)[1]


def test_a_long_token_is_rejected_unparsed() -> None:
    keys = Keys(KEY)
    assert "8192 characters" in refusal(token(sub="x", filler="y" * 8192), keys)[1]
    assert keys.asked == 0


class TestCache:
    def test_a_token_is_verified_once(self) -> None:
        keys, text = Keys(KEY), token()
        tokens = verifier(keys)
        first = asyncio.run(tokens.verify(text))
        assert asyncio.run(tokens.verify(text)) is first
        assert keys.asked == 1

    def test_an_expired_token_leaves_the_cache(self) -> None:
        clock, keys = Clock(time.time()), Keys(KEY)
        tokens = verifier(keys, clock=clock)
        text = token(exp=int(time.time()) + 100)
        asyncio.run(tokens.verify(text))
        clock.now += 101
        asyncio.run(tokens.verify(text))
        assert keys.asked == 2

    def test_replaced_keys_clear_the_cache(self) -> None:
        keys, text = Keys(KEY), token()
        tokens = verifier(keys)
        asyncio.run(tokens.verify(text))
        keys.have(ec_key())
        with pytest.raises(TokenError, match="not trusted here"):
            asyncio.run(tokens.verify(text))

    def test_keys_replaced_during_a_verification_clear_the_cache(self) -> None:
        class Changing(Keys):
            async def find(self, key_id: str | None, algorithm: str) -> jwt.PyJWK | None:
                found = await super().find(key_id, algorithm)
                self.have()
                return found

        keys, text = Changing(KEY), token()
        tokens = verifier(keys)
        asyncio.run(tokens.verify(text))
        with pytest.raises(TokenError, match="not trusted here"):
            asyncio.run(tokens.verify(text))

    def test_the_cache_is_bounded(self) -> None:
        keys = Keys(KEY)
        tokens = verifier(keys)
        texts = [token(sub=str(n)) for n in range(1001)]
        for text in texts:
            asyncio.run(tokens.verify(text))
        asyncio.run(tokens.verify(texts[-1]))
        assert keys.asked == 1001
        asyncio.run(tokens.verify(texts[0]))
        assert keys.asked == 1002

    def test_a_rejected_token_is_not_cached(self) -> None:
        keys = Keys(KEY)
        tokens = verifier(keys)
        for _ in range(2):
            with pytest.raises(TokenError):
                asyncio.run(tokens.verify(token(aud="billing")))
        assert keys.asked == 2


def _as_json(claims: dict[str, Any]) -> bytes:
    return json.dumps(claims).encode()


class TestKeySets:
    def test_keys_for_other_uses_are_ignored(self) -> None:
        usable = rsa_key().jwk()
        others = [
            {"kty": "oct", "k": "c2VjcmV0", "kid": "secret"},
            usable | {"use": "enc"},
            usable | {"alg": "RS512"},
            usable | {"alg": "HS256"},
            usable | {"key_ops": ["encrypt"]},
        ]
        found = parse_jwks(_as_json({"keys": [*others, usable]}))
        assert [key.key_id for key in found.keys] == ["rsa"]
        assert found.warnings == []
        (warning,) = parse_jwks(_as_json({"keys": others})).warnings
        assert warning == "no key for RS256, ES256, EdDSA: every token is rejected"

    @pytest.mark.parametrize(
        ("entry", "words"),
        [
            (7, "key 1 is ignored: it cannot be parsed"),
            ("text", "it cannot be parsed"),
            (None, "it cannot be parsed"),
            ({}, "it cannot be parsed"),
            ({"kty": "martian", "kid": "a\nb"}, r"key 1 ('a\nb') is ignored"),
            ({"kty": "RSA", "key_ops": None}, "it cannot be parsed"),
            (ec_key().jwk() | {"crv": "P-384"}, "it cannot be parsed"),
            (ed_key().jwk() | {"d": "c2VjcmV0"}, "it is private"),
            (SigningKey(SHORT, "RS256", "short").jwk(), "2048"),
        ],
    )
    def test_an_unusable_key_does_not_affect_others(self, entry: Any, words: str) -> None:
        found = parse_jwks(_as_json({"keys": [entry, KEY.jwk()]}))
        assert [key.key_id for key in found.keys] == [KEY.key_id]
        (warning,) = found.warnings
        assert words in warning
        assert "c2VjcmV0" not in warning

    @pytest.mark.parametrize("alg", ["none", ["RS256"], 7, None])
    def test_unknown_algorithms_are_ignored(self, alg: Any) -> None:
        found = parse_jwks(_as_json({"keys": [rsa_key().jwk() | {"alg": alg}, KEY.jwk()]}))
        assert [key.key_id for key in found.keys] == [KEY.key_id]

    @pytest.mark.parametrize(
        "text", [b"", b"[]", b"{}", b'{"keys": 7}', b'{"keys": {}}', b"\xff", b"[" * 10_000]
    )
    def test_malformed_key_sets(self, text: bytes) -> None:
        with pytest.raises(ValueError, match="not a JWK Set: expected"):
            parse_jwks(text)

    def test_a_development_key_is_a_warning(self) -> None:
        (warning,) = parse_jwks(_as_json({"keys": [ed_key("development-only-x").jwk()]})).warnings
        assert "not for production" in warning

    def test_a_token_without_kid_uses_the_only_key(self, tmp_path: Path) -> None:
        several = [ed_key("one"), ec_key("two"), ec_key("three")]
        issuer = Issuer(tmp_path / "jwks.json", several)
        keys = JwksClient(str(issuer.jwks))

        def found(key_id: str | None, algorithm: str) -> str | None:
            key = asyncio.run(keys.find(key_id, algorithm))
            return key.key_id if key else None

        assert found(None, "EdDSA") == "one"
        assert found("two", "EdDSA") is None
        assert found("two", "ES256") == "two"
        assert found(None, "ES256") is None, "it could be either"
