"""What is done with every request between its decoding and its method."""

from collections.abc import AsyncIterator, Callable
from typing import Any, TypeAlias

from server.rpc.interceptors.base import Context, Request, Response, StreamNext, UnaryNext

# A hook takes a message of its own type; connectrpc gives the type of a request to none of them.
_Hook: TypeAlias = Callable[[Any], object]


class RequestHooksInterceptor:
    """Calls hooks with each request, in order, before the method. What a hook raises is the answer.

    For methods with a single request message.
    """

    def __init__(self, *hooks: _Hook) -> None:
        self._hooks = hooks

    async def intercept_unary(
        self,
        call_next: UnaryNext[Request, Response],
        request: Request,
        ctx: Context,
    ) -> Response:
        """Call the hooks and hand ``request`` on."""
        for hook in self._hooks:
            hook(request)
        return await call_next(request, ctx)

    def intercept_server_stream(
        self,
        call_next: StreamNext[Request, Response],
        request: Request,
        ctx: Context,
    ) -> AsyncIterator[Response]:
        """Call the hooks and hand ``request`` on."""
        for hook in self._hooks:
            hook(request)
        return call_next(request, ctx)
