"""Messages that are marked as compressed, when no header says how.

https://github.com/grpc/grpc/blob/master/doc/compression.md calls that INTERNAL, and so does the
runtime. Here INTERNAL is a fault of the service, which wakes somebody up, and this is one of the
caller.
"""

from typing import Any

from connectrpc.code import Code
from connectrpc.errors import ConnectError
from connectrpc.request import RequestContext


class CompressionInterceptor:
    """Calls them invalid. Stands before ErrorInterceptor, and after what logs errors."""

    async def on_start(self, _ctx: RequestContext[Any, Any]) -> None:
        """Do nothing; a metadata interceptor has to have it."""

    async def on_end(
        self, _token: None, _ctx: RequestContext[Any, Any], error: Exception | None
    ) -> None:
        """Raises ConnectError for such a message: the one fault for which the runtime has INTERNAL.

        A fault of the service has a cause, which ErrorInterceptor gives it.
        """
        if isinstance(error, ConnectError) and error.code is Code.INTERNAL and not error.__cause__:
            raise ConnectError(
                Code.INVALID_ARGUMENT,
                "a message is marked as compressed, and no header says how; "
                "set grpc-encoding or connect-content-encoding to gzip, or send it as it is",
            )
