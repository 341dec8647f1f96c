"""Requests that connectrpc does not hand to a codec: its errors, so that they say what to change.

- A message is larger than the limit. connectrpc does not say which limit that is.
- A message is marked as compressed, and no header names the compression.
  https://github.com/grpc/grpc/blob/master/doc/compression.md calls that INTERNAL, although it is a
  fault of the caller, and is logged as one.
"""

from typing import Final

from connectrpc.code import Code
from connectrpc.errors import ConnectError

from server.rpc.interceptors.base import Context
from server.rpc.unreadable import UnreadableRequest

# What connectrpc says. A method may have errors with the same codes, which are its own.
_TOO_LARGE: Final = "message is larger than configured max "
_COMPRESSED: Final = "protocol error: sent compressed message without compression support"

_EXPLANATION: Final = (
    "a message is marked as compressed, and no header says how; "
    "set grpc-encoding or connect-content-encoding to gzip, or send it as it is"
)


class UnreadInterceptor:
    """Replaces these errors. The access log starts before it, to see what the caller gets."""

    def __init__(self, max_request_bytes: int) -> None:
        """``max_request_bytes`` is the limit that connectrpc has for a message."""
        self._max_request_bytes = max_request_bytes

    async def on_start(self, _ctx: Context) -> None:
        """Do nothing; connectrpc takes no metadata interceptor without it."""

    async def on_end(self, _token: None, _ctx: Context, error: Exception | None) -> None:
        """Raises ConnectError in place of ``error``, where that is one of the two."""
        if not isinstance(error, ConnectError):
            return
        if error.code is Code.RESOURCE_EXHAUSTED and error.message.startswith(_TOO_LARGE):
            raise ConnectError(Code.RESOURCE_EXHAUSTED, too_large(self._max_request_bytes))
        if error.code is Code.INTERNAL and error.message == _COMPRESSED:
            raise UnreadableRequest(_EXPLANATION, _EXPLANATION, code=Code.INTERNAL)


def too_large(max_request_bytes: int) -> str:
    """Return the message of the error for a request above the limit."""
    return (
        "the request is larger than LISTINGS_MAX_REQUEST_BYTES, "
        f"{max_request_bytes} bytes after decompression"
    )
