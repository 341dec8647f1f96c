"""Exceptions of methods become Connect errors, by ``server.rpc.errors``."""

from collections.abc import AsyncIterator
from contextlib import aclosing

from connectrpc.errors import ConnectError

from server.rpc.errors import connect_error
from server.rpc.interceptors.base import Context, Request, Response, StreamNext, UnaryNext


class ErrorInterceptor:
    """Turns exceptions of a method, and of the interceptors behind this one, into Connect errors.

    Without it, connectrpc answers UNKNOWN with the text of the exception, which may hold SQL, a
    host name or a password. It does not cover ``on_start`` of metadata interceptors, which
    connectrpc runs before the request is read.
    """

    async def intercept_unary(
        self,
        call_next: UnaryNext[Request, Response],
        request: Request,
        ctx: Context,
    ) -> Response:
        """Hand ``request`` on. Raises ConnectError and nothing else."""
        try:
            return await call_next(request, ctx)
        except ConnectError:
            raise
        except Exception as error:
            raise connect_error(error, ctx.method, request) from error

    async def intercept_server_stream(
        self,
        call_next: StreamNext[Request, Response],
        request: Request,
        ctx: Context,
    ) -> AsyncIterator[Response]:
        """Hand ``request`` on. Raises ConnectError and nothing else, in the stream or before it."""
        try:
            async with aclosing(call_next(request, ctx)) as responses:
                async for response in responses:
                    yield response
        except ConnectError:
            raise
        except Exception as error:
            raise connect_error(error, ctx.method, request) from error
