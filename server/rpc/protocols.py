"""Which RPC protocol a request speaks, by its content type.

- gRPC: https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md
- gRPC-Web: https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-WEB.md
- Connect: https://connectrpc.com/docs/protocol
"""

from collections.abc import Iterable
from typing import Final, Literal, TypeAlias

Protocol: TypeAlias = Literal["connect", "grpc", "grpc_web"]
"""The names that logs and metrics use, too."""

CONNECT: Final = "connect"
GRPC: Final = "grpc"
GRPC_WEB: Final = "grpc_web"


def content_type_of(headers: Iterable[tuple[bytes, bytes]]) -> str:
    """Return the content type of a request: the first one, if it has several."""
    return next((value for name, value in headers if name == b"content-type"), b"").decode(
        "latin-1"
    )


def protocol_of(content_type: str) -> Protocol:
    """Return the protocol of a request; Connect where the content type is not one of gRPC's.

    A Connect request by GET has no content type.
    """
    if not content_type.startswith("application/grpc"):
        return CONNECT
    return GRPC_WEB if content_type.startswith("application/grpc-web") else GRPC


def is_connect_stream(content_type: str) -> bool:
    """Return whether a Connect request expects envelopes, and its error in the last of them."""
    return content_type.startswith("application/connect+")
