"""The id of each request: the caller's own, or a random one."""

import random
import re
from typing import Final

from connectrpc.code import Code
from connectrpc.errors import ConnectError
from structlog.contextvars import bind_contextvars

from server.rpc.interceptors.base import Context

REQUEST_ID: Final = "x-request-id"
"""The header that carries it, in requests and responses."""

_VISIBLE_ASCII = re.compile(r"[!-~]{1,128}")


class RequestIdInterceptor:
    """Gives every request an id, which its response and its log entries have, too."""

    async def on_start(self, ctx: Context) -> None:
        """Raises ConnectError, INVALID_ARGUMENT, for an id that ``is_request_id`` refuses."""
        headers = ctx.request_headers
        if REQUEST_ID not in headers:
            given = headers[REQUEST_ID] = f"{random.getrandbits(128):032x}"
        elif not is_request_id(given := headers[REQUEST_ID]):
            raise ConnectError(
                Code.INVALID_ARGUMENT, f"{REQUEST_ID} must be 1 to 128 visible ASCII characters"
            )
        ctx.response_headers[REQUEST_ID] = given
        bind_contextvars(request_id=given)

    async def on_end(self, _token: None, _ctx: Context, _error: Exception | None) -> None:
        """Do nothing; connectrpc takes no metadata interceptor without it."""


def is_request_id(text: str) -> bool:
    """Return whether ``text`` is 1 to 128 visible ASCII characters."""
    return _VISIBLE_ASCII.fullmatch(text) is not None


def request_id(ctx: Context) -> str:
    """Return the id of a request that RequestIdInterceptor has seen."""
    return ctx.request_headers[REQUEST_ID]
