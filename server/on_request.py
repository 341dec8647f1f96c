"""What is done with every request between its decoding and its method."""

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, TypeVar

from connectrpc.request import RequestContext
from protobuf import Message

_Request = TypeVar("_Request", bound=Message[Any])
_Response = TypeVar("_Response")


class OnRequest:
    """Hands a request to some functions in turn, and then on. What they raise is the answer."""

    def __init__(self, *functions: Callable[[Message[Any]], object]) -> None:
        self._functions = functions

    async def intercept_unary(
        self,
        call_next: Callable[[_Request, RequestContext[_Request, _Response]], Awaitable[_Response]],
        request: _Request,
        ctx: RequestContext[_Request, _Response],
    ) -> _Response:
        """Do it, and call the method."""
        for function in self._functions:
            function(request)
        return await call_next(request, ctx)

    def intercept_server_stream(
        self,
        call_next: Callable[
            [_Request, RequestContext[_Request, _Response]], AsyncIterator[_Response]
        ],
        request: _Request,
        ctx: RequestContext[_Request, _Response],
    ) -> AsyncIterator[_Response]:
        """Do it, and call the method."""
        for function in self._functions:
            function(request)
        return call_next(request, ctx)
