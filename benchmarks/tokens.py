"""The cost of a token per call: of a new one, and of one in the cache."""

import asyncio
import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median
from typing import Any, Final

import jwt
from connectrpc.method import IdempotencyLevel, MethodInfo, StreamType
from connectrpc.request import Headers, RequestContext
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm

from server.auth.claims import ClaimNames
from server.auth.jwks_client import JwksClient
from server.auth.jwt import TokenVerifier
from server.auth.permissions import required_permissions
from server.rpc.interceptors.authorization import AuthorizationInterceptor

Costs = dict[str, tuple[float, float]]
"""By algorithm: the seconds for a new token, and for a cached one."""

_CALLERS: Final = 100
_TIMES: Final = 2_000
_KEY_ID: Final = "bench"

_ALGORITHMS: Final[Mapping[str, tuple[Callable[[], Any], Any]]] = {
    "RS256": (lambda: rsa.generate_private_key(65537, 2048), RSAAlgorithm),
    "ES256": (lambda: ec.generate_private_key(ec.SECP256R1()), ECAlgorithm),
    "EdDSA": (ed25519.Ed25519PrivateKey.generate, OKPAlgorithm),
}


def token_costs(scratch: Path) -> Costs:
    """Return by algorithm the median seconds for a new token, and for a cached one.

    It covers all of the authorization before the request is read, including permissions.
    """
    costs = {}
    for name, (make, algorithm) in _ALGORITHMS.items():
        private = make()
        jwk = algorithm.to_jwk(private.public_key(), as_dict=True)
        file = scratch / "jwks.json"
        file.write_text(json.dumps({"keys": [{**jwk, "kid": _KEY_ID, "alg": name}]}))
        costs[name] = asyncio.run(_cost(JwksClient(str(file)), _tokens(private, name)))
    return costs


def _tokens(private: Any, algorithm: str) -> list[str]:
    claims: dict[str, Any] = {
        "iss": "issuer",
        "aud": "listings",
        "exp": int(time.time()) + 3600,
        "scope": "orders:read",
    }
    return [
        jwt.encode(claims | {"sub": f"caller {n}"}, private, algorithm, {"kid": _KEY_ID})
        for n in range(_CALLERS)
    ]


async def _cost(keys: JwksClient, tokens: list[str]) -> tuple[float, float]:
    names = ClaimNames("scope", "storefronts")
    verifier = TokenVerifier(keys, issuer="issuer", audience="listings", leeway=10, names=names)
    authorize = AuthorizationInterceptor(required_permissions(), (), verifier)
    new = [await _timed(authorize, token) for token in tokens]
    seen = [await _timed(authorize, tokens[n % _CALLERS]) for n in range(_TIMES)]
    return median(new), median(seen)


async def _timed(authorize: AuthorizationInterceptor, token: str) -> float:
    method = MethodInfo(
        name="GetOrder",
        service_name="listings.v1.OrderService",
        input=object,
        output=object,
        idempotency_level=IdempotencyLevel.NO_SIDE_EFFECTS,
        stream_type=StreamType.UNARY,
    )
    headers = Headers({"authorization": f"Bearer {token}"})
    ctx: RequestContext[Any, Any] = RequestContext(
        method=method, http_method="POST", request_headers=headers
    )
    began = time.perf_counter()
    await authorize.on_start(ctx)
    return time.perf_counter() - began
