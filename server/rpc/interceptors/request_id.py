"""The id of each request: the caller's own, or one that is made up."""

import random
import re
from typing import Any, Final

from connectrpc.code import Code
from connectrpc.errors import ConnectError
from connectrpc.request import RequestContext
from structlog.contextvars import bind_contextvars

REQUEST_ID: Final = "x-request-id"
"""The header that carries it, there and back."""

_VISIBLE_ASCII = re.compile(r"[!-~]{1,128}")


class RequestIdInterceptor:
    """Gives every request an id, answers with it, and has it stand in the log."""

    async def on_start(self, ctx: RequestContext[Any, Any]) -> None:
        """Raises ConnectError, when the caller's own has other than visible ASCII characters."""
        headers = ctx.request_headers
        if REQUEST_ID not in headers:
            given = headers[REQUEST_ID] = f"{random.getrandbits(128):032x}"
        elif not is_request_id(given := headers[REQUEST_ID]):
            raise ConnectError(
                Code.INVALID_ARGUMENT, f"{REQUEST_ID} must be 1 to 128 visible ASCII characters"
            )
        ctx.response_headers[REQUEST_ID] = given
        bind_contextvars(request_id=given)

    async def on_end(
        self, _token: None, _ctx: RequestContext[Any, Any], _error: Exception | None
    ) -> None:
        """Do nothing; a metadata interceptor has to have it."""


def is_request_id(text: str) -> bool:
    """Return whether ``text`` can be the id of a request."""
    return _VISIBLE_ASCII.fullmatch(text) is not None


def request_id(ctx: RequestContext[Any, Any]) -> str:
    """Return the id of the request."""
    return ctx.request_headers[REQUEST_ID]
