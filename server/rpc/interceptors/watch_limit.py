"""A limit on the streams that one caller has at a time.

Each holds memory: its HTTP stream, the ids that it wants, up to 1,000 events. Without a limit, one
client that opens streams again and again and never ends them takes all of it.
"""

import logging
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from contextlib import aclosing, contextmanager
from typing import cast

from server.auth.principal import current_principal
from server.rpc.callers import TrustedProxies
from server.rpc.errors import too_many_watches
from server.rpc.interceptors.base import Context, Request, Response

_log = logging.getLogger(__name__)


class WatchLimitInterceptor:
    """Counts the streams of each caller of this process, and rejects one too many."""

    def __init__(self, limit: int, proxies: TrustedProxies) -> None:
        """``limit`` is how many a caller may have at a time; 0 for any number.

        ``proxies`` say who called, where there is no token.
        """
        self._limit = limit
        self._proxies = proxies
        self._streams: Counter[str] = Counter()
        self._logged: set[str] = set()

    async def intercept_server_stream(
        self,
        call_next: Callable[[Request, Context], AsyncIterator[Response]],
        request: Request,
        ctx: Context,
    ) -> AsyncIterator[Response]:
        """Hand ``request`` on. Raises ConnectError, RESOURCE_EXHAUSTED, if it is one too many."""
        with self._counted(self._caller(ctx)):
            stream = cast(AsyncGenerator[Response], call_next(request, ctx))
            async with aclosing(stream) as responses:
                async for response in responses:
                    yield response

    @contextmanager
    def _counted(self, caller: str) -> Iterator[None]:
        if self._limit and self._streams[caller] >= self._limit:
            self._log_once(caller)
            raise too_many_watches(self._limit)
        self._streams[caller] += 1
        try:
            yield
        finally:
            self._streams[caller] -= 1
            self._logged.discard(caller)
            if not self._streams[caller]:
                del self._streams[caller]

    def _log_once(self, caller: str) -> None:
        """Log that streams of ``caller`` are rejected, once until it has ended one."""
        if caller not in self._logged:
            self._logged.add(caller)
            text = "watches of %s rejected: LISTINGS_MAX_WATCHES_PER_CALLER is %d"
            _log.warning(text, caller, self._limit)

    def _caller(self, ctx: Context) -> str:
        """Return the subject of the caller's token; without one, the address that it calls from."""
        principal = current_principal.get()
        if principal is not None:
            return principal.subject
        caller = self._proxies.caller(ctx.client_address, ctx.request_headers.getall)
        return "" if caller is None else caller.host
