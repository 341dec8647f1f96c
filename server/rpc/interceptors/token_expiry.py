"""Streams end when the token that they began with expires."""

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


class TokenExpiryInterceptor:
    """Ends a stream when the token of its caller expires."""

    def __init__(self, leeway: float) -> None:
        """``leeway`` is for how many seconds after its expiry a token is valid."""
        self._leeway = leeway

    async def intercept_server_stream(
        self,
        call_next: Callable[[Request, Context], AsyncIterator[Response]],
        request: Request,
        ctx: Context,
    ) -> AsyncIterator[Response]:
        """Hand ``request`` on. Raises ConnectError, UNAUTHENTICATED, when the token expires."""
        stream = cast(AsyncGenerator[Response], call_next(request, ctx))
        async with aclosing(stream) as responses:
            end = self._expiry()
            while True:
                try:
                    async with asyncio.timeout_at(end):
                        response = await anext(responses)
                except StopAsyncIteration:
                    return
                except TimeoutError:
                    raise _expired() from None
                # A stream that never waits gives the timer no chance to fire.
                if end is not None and asyncio.get_running_loop().time() >= end:
                    raise _expired()
                yield response

    intercept_bidi_stream = intercept_server_stream

    def _expiry(self) -> float | None:
        """Return when the token expires, in seconds of the event loop's clock; None for never."""
        caller = current_principal.get()
        if caller is None:
            return None
        left = caller.expires_at + self._leeway - time.time()
        return asyncio.get_running_loop().time() + left


def _expired() -> ConnectError:
    return unauthenticated("the token has expired; call again with another one", EXPIRED)
