"""Streams that wait for their client's next message end when the server stops."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing
from typing import Any, cast

from server.rpc.interceptors.base import Context, Request, Response


class ShutdownInterceptor:
    """Ends the requests of bidirectional streams once ``stopping`` is set."""

    def __init__(self, stopping: asyncio.Event) -> None:
        self._stopping = stopping

    async def intercept_bidi_stream(
        self,
        call_next: Callable[[AsyncIterator[Request], Context], AsyncIterator[Response]],
        request: AsyncIterator[Request],
        ctx: Context,
    ) -> AsyncIterator[Response]:
        """Hand the stream on, without the requests that come after the stop."""
        async with aclosing(self._until_stop(request)) as requests:
            stream = cast(AsyncGenerator[Response], call_next(requests, ctx))
            async with aclosing(stream) as responses:
                async for response in responses:
                    yield response

    async def _until_stop(self, requests: AsyncIterator[Request]) -> AsyncGenerator[Request]:
        stop = asyncio.ensure_future(self._stopping.wait())
        try:
            while True:
                next_request = asyncio.ensure_future(anext(requests, None))
                next_request.add_done_callback(_retrieve_exception)
                try:
                    await asyncio.wait({stop, next_request}, return_when=asyncio.FIRST_COMPLETED)
                finally:
                    if not next_request.done():
                        next_request.cancel()
                        # A generator cannot be closed while its anext() runs.
                        await asyncio.wait({next_request})
                if next_request.cancelled():
                    return
                request = next_request.result()
                if request is None:
                    return
                yield request
        finally:
            stop.cancel()


def _retrieve_exception(task: asyncio.Task[Any]) -> None:
    """Retrieve the exception of a task, which asyncio logs if the stream is closed by then."""
    if not task.cancelled():
        task.exception()
