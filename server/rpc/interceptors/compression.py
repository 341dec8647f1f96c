"""Messages that are marked as compressed, when no header names the compression.

https://github.com/grpc/grpc/blob/master/doc/compression.md calls that INTERNAL, and so does
connectrpc. Here INTERNAL is a fault of the service, which raises an alarm, and this is a fault of
the caller.
"""

from connectrpc.code import Code
from connectrpc.errors import ConnectError

from server.rpc.interceptors.base import Context


class CompressionInterceptor:
    """Answers them with INVALID_ARGUMENT. The access log starts before it, to see that answer."""

    async def on_start(self, _ctx: Context) -> None:
        """Do nothing; connectrpc takes no metadata interceptor without it."""

    async def on_end(self, _token: None, _ctx: Context, error: Exception | None) -> None:
        """Raises ConnectError for such a message: connectrpc's only INTERNAL of its own.

        A fault of the service has a cause, which ErrorInterceptor gives it.
        """
        if isinstance(error, ConnectError) and error.code is Code.INTERNAL and not error.__cause__:
            raise ConnectError(
                Code.INVALID_ARGUMENT,
                "a message is marked as compressed, and no header says how; "
                "set grpc-encoding or connect-content-encoding to gzip, or send it as it is",
            )
