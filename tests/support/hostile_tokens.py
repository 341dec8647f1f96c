"""Forged and malformed tokens, and valid ones with unusual claims."""

from tests.support.hostile import LONGEST_CHARACTER, STORABLE
from tests.support.tokens import READ, WRITE, Issuer, ec_key


def hostile_tokens(issuer: Issuer, good: str) -> list[str]:
    """Return the tokens. Some are signed by ``issuer`` and accepted, with an unusual subject."""
    head, claims, signature = good.split(".")
    no_algorithm = "eyJhbGciOiJub25lIn0"  # {"alg":"none"}
    key = issuer.keys[0]
    return [
        *(issuer.token(WRITE, READ, sub=text) for text in STORABLE.values()),
        issuer.token(WRITE, READ, sub="\0"),
        issuer.token(WRITE, READ, sub=LONGEST_CHARACTER * 300),
        issuer.token(READ, sub=["somebody"]),
        issuer.token(READ, exp=1),
        issuer.token(READ, exp=2**63),
        issuer.token(READ, exp=1e300),
        issuer.token(READ, exp="soon"),
        issuer.token(READ, nbf=2**63),
        issuer.token(READ, aud=[]),
        issuer.token(scope=[READ]),
        issuer.token(scope={"a": READ}),
        issuer.token(READ),
        issuer.token(READ, key=ec_key()),
        key.sign({"kid": "../../etc/passwd"}, sub="somebody"),
        key.sign({"kid": "\0"}, sub="somebody"),
        f"{no_algorithm}.{claims}.",
        f"{head}.{claims}.{signature[:-2]}",
        f"{head}.e30.{signature}",
        f"{head}.{'W' * 20_000}.{signature}",
        "..",
        "",
        "eyJ" * 5_000,
    ]
