"""Who may call what: held against the table of permissions before a request is even read."""

from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from typing import Any, Final, TypeAlias

from connectrpc.code import Code
from connectrpc.errors import ConnectError
from connectrpc.request import RequestContext
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from structlog.contextvars import bind_contextvars

from server.auth.jwks_client import KeysUnavailable
from server.auth.jwt import INVALID, TokenError, TokenVerifier
from server.auth.principal import current_principal
from server.rpc.errors import connect_error, permission_denied, unauthenticated, unavailable

_MISSING: Final = "TOKEN_MISSING"

_CHALLENGE: Final = "www-authenticate"

_STATUSES: Final = {Code.UNAUTHENTICATED: 401, Code.PERMISSION_DENIED: 403, Code.UNAVAILABLE: 503}

_Page: TypeAlias = Callable[[Request], Awaitable[Response]]


class _Refused(Exception):
    """Somebody may not call. The answer is ``error``, with ``headers``."""

    def __init__(self, error: ConnectError, challenge: str | None = None) -> None:
        """``challenge`` says what would help, as RFC 6750, section 3, has it."""
        self.error = error
        self.headers = {} if challenge is None else {_CHALLENGE: challenge}


class Authorize:
    """Lets an RPC begin whose caller may call it. Stands before whatever reads the request."""

    def __init__(
        self,
        permissions: Mapping[str, str],
        public: Collection[str],
        verifier: TokenVerifier | None,
    ) -> None:
        """``permissions`` has the one that each path needs.

        Those that are ``public`` need no token, and none does without a ``verifier``.
        """
        self._permissions = permissions
        self._public = public
        self._verifier = verifier

    async def on_start(self, ctx: RequestContext[Any, Any]) -> None:
        """Raises ConnectError: UNAUTHENTICATED, PERMISSION_DENIED, or UNAVAILABLE."""
        path = f"/{ctx.method.service_name}/{ctx.method.name}"
        try:
            await self._admit(path, ctx.request_headers.getall("authorization"))
        except _Refused as refused:
            ctx.response_headers.update(refused.headers)
            raise refused.error from refused.__cause__
        except Exception as error:  # ErrorInterceptor stands behind, and hears of requests only
            raise connect_error(error) from error

    async def on_end(
        self, _token: None, _ctx: RequestContext[Any, Any], _error: Exception | None
    ) -> None:
        """Do nothing; a metadata interceptor has to have it."""

    def page(self, path: str, page: _Page) -> _Page:
        """Return ``page`` for those who may see what is at ``path``."""

        async def guarded(request: Request) -> Response:
            try:
                await self._admit(path, request.headers.getlist("authorization"))
            except _Refused as refused:
                error = refused.error
                text = f"{error.message}\n"
                return PlainTextResponse(text, _STATUSES[error.code], refused.headers)
            return await page(request)

        return guarded

    async def _admit(self, path: str, authorization: Sequence[str]) -> None:
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
            raise _Refused(unavailable(str(error))) from error
        current_principal.set(caller)
        bind_contextvars(subject=caller.subject)
        if needed not in caller.permissions:
            text = f"{path} needs the permission {needed}, which the token does not have"
            raise _Refused(
                permission_denied(text, path=path, permission=needed),
                f'Bearer error="insufficient_scope", scope="{needed}"',
            )


def _bearer(authorization: Sequence[str]) -> str:
    """Return the token of a request. Raises TokenError."""
    if not authorization:
        raise TokenError(_MISSING, "a token is needed: send Authorization: Bearer TOKEN")
    scheme, _, token = authorization[0].partition(" ")
    if len(authorization) > 1 or scheme.lower() != "bearer" or not token.strip():
        raise TokenError(INVALID, "expected one header Authorization: Bearer TOKEN")
    return token.strip()
