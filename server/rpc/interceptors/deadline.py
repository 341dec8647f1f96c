"""A limit on the time of a call whose caller sets no deadline, or a later one.

connectrpc enforces the caller's own deadline, by grpc-timeout or Connect-Timeout-Ms. Either of them
cancels the handler's task, which cancels the statement in PostgreSQL.
"""

from collections.abc import AsyncIterator
from contextlib import aclosing

from persistence.time_limit import TimeLimit
from server.rpc.interceptors.base import Context, Request, Response, StreamNext, UnaryNext


class DeadlineInterceptor:
    """Cancels a call that has no answer in time. ErrorInterceptor translates what it raises."""

    def __init__(self, seconds: float) -> None:
        """``seconds`` limit the time to an answer, or to the first message of a stream."""
        self._seconds = seconds

    async def intercept_unary(
        self,
        call_next: UnaryNext[Request, Response],
        request: Request,
        ctx: Context,
    ) -> Response:
        """Hand ``request`` on. Raises DatabaseTimeout: a handler waits for nothing else."""
        with TimeLimit(self._seconds):
            return await call_next(request, ctx)

    async def intercept_server_stream(
        self,
        call_next: StreamNext[Request, Response],
        request: Request,
        ctx: Context,
    ) -> AsyncIterator[Response]:
        """Hand ``request`` on. Raises DatabaseTimeout, when no message comes in time."""
        async with aclosing(call_next(request, ctx)) as responses:
            try:
                with TimeLimit(self._seconds):
                    first = await anext(responses)
            except StopAsyncIteration:
                return
            yield first
            async for response in responses:
                yield response
