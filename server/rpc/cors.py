"""Cross-origin resource sharing: which pages may call from a browser, with which headers.

https://connectrpc.com/docs/cors lists the headers that Connect, gRPC-Web and gRPC need.
"""

from collections.abc import Collection
from typing import Final

from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware

from server.rpc.interceptors.request_id import REQUEST_ID

_REQUEST_HEADERS: Final = (
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
_RESPONSE_HEADERS: Final = (
    "Connect-Content-Encoding",
    "Grpc-Message",
    "Grpc-Status",
    "Grpc-Status-Details-Bin",
    "WWW-Authenticate",
    REQUEST_ID,
)

_MAX_AGE: Final = 7200  # seconds for which a browser keeps a preflight; Chromium keeps none longer


def cors(origins: Collection[str]) -> list[Middleware]:
    """Return the middleware that lets pages of ``origins`` call; none if there are none."""
    if not origins:
        return []
    return [
        Middleware(
            CORSMiddleware,
            allow_origins=origins,
            allow_methods=("GET", "POST"),
            allow_headers=_REQUEST_HEADERS,
            expose_headers=_RESPONSE_HEADERS,
            max_age=_MAX_AGE,
        )
    ]
