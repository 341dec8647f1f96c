"""Streams end with the token that they began with."""

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing
from typing import cast

from connectrpc.errors import ConnectError

from server.auth.jwt import EXPIRED
from server.auth.principal import current_principal
from server.rpc.errors import unauthenticated
from server.rpc.interceptors.base import Context, Request, Response


class EndWithToken:
    """Ends a stream to a caller whose token has expired in the meantime."""

    def __init__(self, leeway: float) -> None:
        """``leeway`` is how many seconds longer than it says a token is good."""
        self._leeway = leeway

    async def intercept_server_stream(
        self,
        call_next: Callable[[Request, Context], AsyncIterator[Response]],
        request: Request,
        ctx: Context,
    ) -> AsyncIterator[Response]:
        """Hand ``request`` on. Raises ConnectError, UNAUTHENTICATED, when the time has come."""
        stream = cast(AsyncGenerator[Response], call_next(request, ctx))
        async with aclosing(stream) as responses:
            end = self._end()
            while True:
                try:
                    async with asyncio.timeout_at(end):
                        response = await anext(responses)
                except StopAsyncIteration:
                    return
                except TimeoutError:
                    raise _expired() from None
                # Where there always is a next response, nothing is waited for.
                if end is not None and asyncio.get_running_loop().time() >= end:
                    raise _expired()
                yield response

    intercept_bidi_stream = intercept_server_stream

    def _end(self) -> float | None:
        """Return when the token ends, by the clock of the event loop."""
        caller = current_principal.get()
        if caller is None:
            return None
        left = caller.expires_at + self._leeway - time.time()
        return asyncio.get_running_loop().time() + left


def _expired() -> ConnectError:
    return unauthenticated("the token has expired; call again with another one", EXPIRED)
