"""Requests that connectrpc does not hand to a codec: its errors, so that they say what to change.

- A message is larger than the limit. connectrpc does not say which limit that is.
- A message is marked as compressed, and no header names the compression.
  https://github.com/grpc/grpc/blob/master/doc/compression.md calls that INTERNAL, and so does
  connectrpc. Here INTERNAL is a fault of the service, which raises an alarm, and this is a fault of
  the caller.
"""

from connectrpc.code import Code
from connectrpc.errors import ConnectError

from server.rpc.interceptors.base import Context


class UnreadInterceptor:
    """Replaces these errors. The access log starts before it, to see what the caller gets."""

    def __init__(self, max_request_bytes: int) -> None:
        """``max_request_bytes`` is the limit that connectrpc has for a message."""
        self._max_request_bytes = max_request_bytes

    async def on_start(self, _ctx: Context) -> None:
        """Do nothing; connectrpc takes no metadata interceptor without it."""

    async def on_end(self, _token: None, _ctx: Context, error: Exception | None) -> None:
        """Raises ConnectError in place of ``error``, where that is one of the two.

        connectrpc has no other errors of its own with their codes. Those of the service have a
        cause, which ErrorInterceptor gives to INTERNAL, or details, as every RESOURCE_EXHAUSTED.
        """
        if not isinstance(error, ConnectError):
            return
        if error.code is Code.RESOURCE_EXHAUSTED and not error.details:
            raise ConnectError(
                Code.RESOURCE_EXHAUSTED,
                "the request is larger than LISTINGS_MAX_REQUEST_BYTES, "
                f"{self._max_request_bytes} bytes after decompression",
            )
        if error.code is Code.INTERNAL and not error.__cause__:
            raise ConnectError(
                Code.INVALID_ARGUMENT,
                "a message is marked as compressed, and no header says how; "
                "set grpc-encoding or connect-content-encoding to gzip, or send it as it is",
            )
