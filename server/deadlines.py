"""How long a call may take whose caller sets no deadline, or a later one.

The caller's own deadline, by grpc-timeout or Connect-Timeout-Ms, is the runtime's. Either of them
cancels the handler's task, which cancels the statement in PostgreSQL.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from typing import TypeVar

from connectrpc.request import RequestContext

from persistence.errors import DatabaseTimeout

_Request = TypeVar("_Request")
_Response = TypeVar("_Response")


class DeadlineInterceptor:
    """Ends a call that has no answer in time. Stands inside of ErrorInterceptor."""

    def __init__(self, seconds: float) -> None:
        """``seconds`` are for an answer, or for the first message of a stream."""
        self._seconds = seconds

    async def intercept_unary(
        self,
        call_next: Callable[[_Request, RequestContext[_Request, _Response]], Awaitable[_Response]],
        request: _Request,
        ctx: RequestContext[_Request, _Response],
    ) -> _Response:
        """Hand ``request`` on. Raises DatabaseTimeout: it is all that a handler waits for."""
        try:
            async with asyncio.timeout(self._seconds):
                return await call_next(request, ctx)
        except TimeoutError as error:
            raise DatabaseTimeout("the database did not answer in time") from error

    async def intercept_server_stream(
        self,
        call_next: Callable[
            [_Request, RequestContext[_Request, _Response]], AsyncGenerator[_Response]
        ],
        request: _Request,
        ctx: RequestContext[_Request, _Response],
    ) -> AsyncIterator[_Response]:
        """Hand ``request`` on. Raises DatabaseTimeout, when no message comes in time."""
        async with aclosing(call_next(request, ctx)) as responses:
            try:
                async with asyncio.timeout(self._seconds):
                    first = await anext(responses)
            except StopAsyncIteration:
                return
            except TimeoutError as error:
                raise DatabaseTimeout("the database did not answer in time") from error
            yield first
            async for response in responses:
                yield response
