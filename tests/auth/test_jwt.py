"""Tokens: which are good, what they say, and how long they are remembered."""

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
from server.auth.jwks import parse
from server.auth.jwks_client import TokenKeys
from server.auth.jwt import EXPIRED, INVALID, TokenRefused, TokenVerifier
from server.auth.principal import Principal
from tests.support.clock import Clock
from tests.support.tokens import AUDIENCE, ISSUER, READ, Issuer, SigningKey, ec_key, ed_key, rsa_key

KEY = ed_key()
SHORT = rsa.generate_private_key(65537, 1024)


class Keys:
    """Some keys in memory, which counts who asks for one."""

    def __init__(self, *keys: SigningKey) -> None:
        self.changes = 0
        self.asked = 0
        self.have(*keys)

    def have(self, *keys: SigningKey) -> None:
        self.keys = {(key.key_id, key.algorithm): jwt.PyJWK(key.jwk()) for key in keys}
        self.changes += 1

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
    with pytest.raises(TokenRefused) as caught:
        verified(text, keys)
    return caught.value.reason, str(caught.value)


@pytest.mark.parametrize("make", [rsa_key, ec_key, ed_key])
def test_each_algorithm(make: Any) -> None:
    key = make()
    assert verified(token(key), Keys(key)).subject == "pay"
    other = make()
    if make is not rsa_key:  # of which there is one
        assert refusal(token(other), Keys(key)) == (INVALID, "the token's signature is wrong")


def test_no_other_algorithm_whatever_keys_there_are() -> None:
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
def test_what_is_refused(claims: dict[str, Any], reason: str, words: str) -> None:
    found, text = refusal(token(**claims))
    assert found == reason
    assert words in text


@pytest.mark.parametrize("claim", ["exp", "iss", "aud", "sub"])
def test_what_must_be_there(claim: str) -> None:
    claims = {"iss": ISSUER, "aud": AUDIENCE, "sub": "pay", "exp": int(time.time()) + 600}
    del claims[claim]
    assert refusal(KEY.sign(None, **claims)) == (INVALID, f"the token lacks the claim {claim}")


def test_a_token_may_have_no_end_to_speak_of() -> None:
    assert verified(token(exp=10**400)).expires_at > time.time()


def test_clocks_may_differ_a_little() -> None:
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
def test_where_permissions_are(name: str, claims: dict[str, Any], found: set[str]) -> None:
    assert verified(token(**claims), permissions=name).permissions == found


def test_a_limit_to_storefronts() -> None:
    assert verified(token()).storefronts is None
    for value, found in ((3, [3]), ([3, 4, 3], [3, 4]), ([], [])):
        assert verified(token(storefronts=value)).storefronts == frozenset(found)
    within = verified(token(shop={"storefronts": [3]}), storefronts="shop.storefronts")
    assert within.storefronts == frozenset((3,))


@pytest.mark.parametrize("shop", [[3], "3", None, 3])
def test_a_limit_that_may_be_within_something_else(shop: Any) -> None:
    with pytest.raises(TokenRefused, match="the claim shop has no others within it"):
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
def test_whatever_a_trusted_issuer_signs_is_taken_or_refused(claims: dict[str, Any]) -> None:
    usual = {"iss": ISSUER, "aud": AUDIENCE, "sub": "pay", "exp": int(time.time()) + 600}
    text = jwt.PyJWS().encode(
        _as_json(usual | claims), KEY.private, KEY.algorithm, {"kid": KEY.key_id}
    )
    try:
        verified(text)
    except TokenRefused as refused:
        assert str(refused).startswith(("the token", "the claim"))


@given(st.text() | st.text(".eyJhbGciOiJFZERTQSJ9"))
def test_what_is_no_token_is_refused(text: str) -> None:
    assert refusal(text)[0] == INVALID
    assert refusal(f"{token()[:-20]}{text}")[0] == INVALID


def test_what_is_said_does_not_quote_the_token() -> None:
    header = KEY.sign({"kid": "secret"}).partition(".")[0]
    for text in ("secret", f"{header}.secret.secret", token(sub="secret\0"), token(iss="secret")):
        assert "secret" not in refusal(text)[1]


def test_a_long_token_is_not_even_looked_at() -> None:
    keys = Keys(KEY)
    assert "8192 characters" in refusal(token(sub="x", filler="y" * 8192), keys)[1]
    assert keys.asked == 0


class TestMemory:
    def test_a_token_is_checked_once(self) -> None:
        keys, text = Keys(KEY), token()
        tokens = verifier(keys)
        first = asyncio.run(tokens.verify(text))
        assert asyncio.run(tokens.verify(text)) is first
        assert keys.asked == 1

    def test_it_is_forgotten_when_it_expires(self) -> None:
        clock, keys = Clock(time.time()), Keys(KEY)
        tokens = verifier(keys, clock=clock)
        text = token(exp=int(time.time()) + 100)
        asyncio.run(tokens.verify(text))
        clock.now += 101
        asyncio.run(tokens.verify(text))
        assert keys.asked == 2

    def test_it_is_forgotten_when_its_key_goes(self) -> None:
        keys, text = Keys(KEY), token()
        tokens = verifier(keys)
        asyncio.run(tokens.verify(text))
        keys.have(ec_key())
        with pytest.raises(TokenRefused, match="not trusted here"):
            asyncio.run(tokens.verify(text))

    def test_keys_that_change_while_it_is_checked_count(self) -> None:
        class Changing(Keys):
            async def find(self, key_id: str | None, algorithm: str) -> jwt.PyJWK | None:
                found = await super().find(key_id, algorithm)
                self.have()
                return found

        keys, text = Changing(KEY), token()
        tokens = verifier(keys)
        asyncio.run(tokens.verify(text))
        with pytest.raises(TokenRefused, match="not trusted here"):
            asyncio.run(tokens.verify(text))

    def test_it_has_an_end(self) -> None:
        keys = Keys(KEY)
        tokens = verifier(keys)
        texts = [token(sub=str(n)) for n in range(1001)]
        for text in texts:
            asyncio.run(tokens.verify(text))
        asyncio.run(tokens.verify(texts[-1]))
        assert keys.asked == 1001
        asyncio.run(tokens.verify(texts[0]))
        assert keys.asked == 1002

    def test_one_that_is_refused_is_not_remembered(self) -> None:
        keys = Keys(KEY)
        tokens = verifier(keys)
        for _ in range(2):
            with pytest.raises(TokenRefused):
                asyncio.run(tokens.verify(token(aud="billing")))
        assert keys.asked == 2


def _as_json(claims: dict[str, Any]) -> bytes:
    return json.dumps(claims).encode()


class TestKeySets:
    def test_keys_for_other_things_are_left_out(self) -> None:
        usable = rsa_key().jwk()
        others = [
            {"kty": "oct", "k": "c2VjcmV0", "kid": "secret"},
            usable | {"use": "enc"},
            usable | {"alg": "RS512"},
            usable | {"alg": "HS256"},
            usable | {"key_ops": ["encrypt"]},
        ]
        found = parse(_as_json({"keys": [*others, usable]}))
        assert [key.key_id for key in found.keys] == ["rsa"]
        assert found.notes == []
        (note,) = parse(_as_json({"keys": others})).notes
        assert note == "there is no key for RS256, ES256, EdDSA: no token is taken"

    @pytest.mark.parametrize(
        ("entry", "words"),
        [
            (7, "key 1 is left out: it cannot be read"),
            ("text", "it cannot be read"),
            (None, "it cannot be read"),
            ({}, "it cannot be read"),
            ({"kty": "martian", "kid": "a\nb"}, r"key 1 ('a\nb') is left out"),
            ({"kty": "RSA", "key_ops": None}, "it cannot be read"),
            (ec_key().jwk() | {"crv": "P-384"}, "it cannot be read"),
            (ed_key().jwk() | {"d": "c2VjcmV0"}, "it is private"),
            (SigningKey(SHORT, "RS256", "short").jwk(), "2048"),
        ],
    )
    def test_one_that_cannot_be_used_takes_no_other_along(self, entry: Any, words: str) -> None:
        found = parse(_as_json({"keys": [entry, KEY.jwk()]}))
        assert [key.key_id for key in found.keys] == [KEY.key_id]
        (note,) = found.notes
        assert words in note
        assert "c2VjcmV0" not in note

    @pytest.mark.parametrize("alg", ["none", ["RS256"], 7, None])
    def test_an_algorithm_that_is_none(self, alg: Any) -> None:
        found = parse(_as_json({"keys": [rsa_key().jwk() | {"alg": alg}, KEY.jwk()]}))
        assert [key.key_id for key in found.keys] == [KEY.key_id]

    @pytest.mark.parametrize(
        "text", [b"", b"[]", b"{}", b'{"keys": 7}', b'{"keys": {}}', b"\xff", b"[" * 10_000]
    )
    def test_what_is_no_key_set(self, text: bytes) -> None:
        with pytest.raises(ValueError, match="it is not a JWK Set: expected"):
            parse(text)

    def test_a_key_for_development_is_noted(self) -> None:
        (note,) = parse(_as_json({"keys": [ed_key("development-only-x").jwk()]})).notes
        assert "not for production" in note

    def test_a_token_may_leave_out_the_only_key(self, tmp_path: Path) -> None:
        several = [ed_key("one"), ec_key("two"), ec_key("three")]
        issuer = Issuer(tmp_path / "jwks.json", several)
        keys = TokenKeys(str(issuer.jwks))

        def found(key_id: str | None, algorithm: str) -> str | None:
            key = asyncio.run(keys.find(key_id, algorithm))
            return key.key_id if key else None

        assert found(None, "EdDSA") == "one"
        assert found("two", "EdDSA") is None
        assert found("two", "ES256") == "two"
        assert found(None, "ES256") is None, "it could be either"
