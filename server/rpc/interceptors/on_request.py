"""What is done with every request between its decoding and its method."""

from collections.abc import AsyncIterator, Callable
from typing import Any

from server.rpc.interceptors.base import Context, Request, Response, StreamNext, UnaryNext


class OnRequest:
    """Hands a request to some functions in turn, and then on. What they raise is the answer."""

    def __init__(self, *functions: Callable[[Any], object]) -> None:
        self._functions = functions

    async def intercept_unary(
        self,
        call_next: UnaryNext[Request, Response],
        request: Request,
        ctx: Context,
    ) -> Response:
        """Do it, and call the method."""
        for function in self._functions:
            function(request)
        return await call_next(request, ctx)

    def intercept_server_stream(
        self,
        call_next: StreamNext[Request, Response],
        request: Request,
        ctx: Context,
    ) -> AsyncIterator[Response]:
        """Do it, and call the method."""
        for function in self._functions:
            function(request)
        return call_next(request, ctx)
