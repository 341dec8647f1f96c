"""What browsers let pages of other origins do here, where there are such pages.

https://connectrpc.com/docs/cors lists what Connect, gRPC-Web and gRPC need.
"""

from collections.abc import Collection
from typing import Final

from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware

from server.rpc.interceptors.request_id import REQUEST_ID

_ASKED: Final = (
    "Authorization",
    "Connect-Protocol-Version",
    "Connect-Timeout-Ms",
    "Connect-Accept-Encoding",
    "Connect-Content-Encoding",
    "Content-Encoding",
    "Content-Type",
    "Grpc-Timeout",
    "Traceparent",
    "Tracestate",
    "X-Grpc-Web",
    "X-User-Agent",
    REQUEST_ID,
)
_ANSWERED: Final = (
    "Connect-Content-Encoding",
    "Grpc-Message",
    "Grpc-Status",
    "Grpc-Status-Details-Bin",
    "WWW-Authenticate",
    REQUEST_ID,
)

_REMEMBERED: Final = 7200  # seconds for which a preflight holds; Chromium allows no more


def cors(origins: Collection[str]) -> list[Middleware]:
    """Return the middleware that lets pages of these origins call, none if there are none."""
    if not origins:
        return []
    return [
        Middleware(
            CORSMiddleware,
            allow_origins=origins,
            allow_methods=("GET", "POST"),
            allow_headers=_ASKED,
            expose_headers=_ANSWERED,
            max_age=_REMEMBERED,
        )
    ]
