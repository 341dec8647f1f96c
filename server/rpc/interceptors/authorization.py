"""Authorization of each RPC by the table of permissions, before its request is read."""

from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from typing import Any, Final, TypeAlias

from connectrpc.errors import ConnectError
from connectrpc.method import MethodInfo
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from structlog.contextvars import bind_contextvars

from server.auth.jwks_client import KeysUnavailable
from server.auth.jwt import INVALID, TokenError, TokenVerifier
from server.auth.principal import current_principal
from server.rpc.error_encoding import HTTP_STATUS
from server.rpc.errors import (
    connect_error,
    keys_unavailable,
    may_write,
    permission_denied,
    unauthenticated,
)
from server.rpc.interceptors.base import Context

_MISSING: Final = "TOKEN_MISSING"

_CHALLENGE: Final = "www-authenticate"

_Endpoint: TypeAlias = Callable[[Request], Awaitable[Response]]


class _Refused(Exception):
    """A caller may not call. The answer is ``error``, with ``headers``."""

    def __init__(self, error: ConnectError, challenge: str | None = None) -> None:
        """``challenge`` is the value of WWW-Authenticate: RFC 6750, section 3."""
        self.error = error
        self.headers = {} if challenge is None else {_CHALLENGE: challenge}


class AuthorizationInterceptor:
    """Lets an RPC begin if its caller has the permission that its method needs."""

    def __init__(
        self,
        permissions: Mapping[str, str],
        public: Collection[str],
        verifier: TokenVerifier | None,
    ) -> None:
        """``permissions`` maps each path to the permission that it needs.

        A permission in ``public`` needs no token. Without a ``verifier``, no path needs one.
        """
        self._permissions = permissions
        self._public = public
        self._verifier = verifier

    async def on_start(self, ctx: Context) -> None:
        """Raises ConnectError: UNAUTHENTICATED, PERMISSION_DENIED, or UNAVAILABLE."""
        path = f"/{ctx.method.service_name}/{ctx.method.name}"
        authorization = ctx.request_headers.getall("authorization")
        try:
            await self._authorize(path, authorization, ctx.method)
        except _Refused as refused:
            ctx.response_headers.update(refused.headers)
            raise refused.error from refused.__cause__
        except Exception as error:  # ErrorInterceptor does not cover on_start
            raise connect_error(error, ctx.method) from error

    async def on_end(self, _token: None, _ctx: Context, _error: Exception | None) -> None:
        """Do nothing; connectrpc takes no metadata interceptor without it."""

    def guard(self, path: str, endpoint: _Endpoint) -> _Endpoint:
        """Return ``endpoint`` of Starlette, for callers who have the permission for ``path``."""

        async def guarded(request: Request) -> Response:
            authorization = request.headers.getlist("authorization")
            try:
                await self._authorize(path, authorization)
            except _Refused as refused:
                error = refused.error
                text = f"{error.message}\n"
                return PlainTextResponse(text, HTTP_STATUS[error.code], refused.headers)
            return await endpoint(request)

        return guarded

    async def _authorize(
        self,
        path: str,
        authorization: Sequence[str],
        method: MethodInfo[Any, Any] | None = None,
    ) -> None:
        """Set the principal of a call of ``method``, or of a page. Raises _Refused."""
        needed = self._permissions.get(path)
        if needed is None:
            text = f"{path} is not in the table of permissions"
            raise _Refused(permission_denied(text, path=path))
        if self._verifier is None or needed in self._public:
            return
        try:
            caller = await self._verifier.verify(_bearer(authorization))
        except TokenError as refusal:
            challenge = 'Bearer error="invalid_token"' if authorization else "Bearer"
            raise _Refused(unauthenticated(str(refusal), refusal.reason), challenge) from None
        except KeysUnavailable as error:
            writes = method is not None and may_write(method)
            raise _Refused(keys_unavailable(str(error), writes=writes)) from error
        current_principal.set(caller)
        bind_contextvars(subject=caller.subject)
        if needed not in caller.permissions:
            text = f"{path} needs the permission {needed}, which the token does not have"
            raise _Refused(
                permission_denied(text, path=path, permission=needed),
                f'Bearer error="insufficient_scope", scope="{needed}"',
            )


def _bearer(authorization: Sequence[str]) -> str:
    """Return the token of a request, by RFC 6750, section 2.1. Raises TokenError."""
    if not authorization:
        raise TokenError(_MISSING, "a token is needed: send Authorization: Bearer TOKEN")
    scheme, _, token = authorization[0].partition(" ")
    if len(authorization) > 1 or scheme.lower() != "bearer" or not token.strip():
        raise TokenError(INVALID, "expected one header Authorization: Bearer TOKEN")
    return token.strip()
