"""Refuses requests for hosts that ``server.auth.host_policy`` does not allow.

The answer is PERMISSION_DENIED in the protocol of the request, and so HTTP 403 for Connect. RFC
9110, section 15.5.20, has 421 for it. But that is the status of no Connect code, so that clients
would not show the message, and it asks them to try another connection, which is of no use.

Probes by ``/livez`` and ``/readyz`` name an address of the machine, and are answered for any host.
"""

import logging
from collections.abc import Callable, Iterable
from typing import Final, TypeAlias

import zttp
from starlette.types import ASGIApp, Receive, Scope, Send

from server.auth.host_policy import HostPolicy
from server.rpc.error_encoding import RawHeaders
from server.rpc.errors import host_not_allowed
from server.rpc.protocols import GRPC, content_type_of, protocol_of
from server.rpc.static_errors import StaticError

_FOR_ANY_HOST: Final = ("/livez", "/readyz")
_MAX_HOST: Final = 100  # characters of a host that are logged

Reject: TypeAlias = Callable[[zttp.Request], RawHeaders | None]
"""Returns the headers that answer a request, or None for one that goes on."""

OnRefuse: TypeAlias = Callable[[str, str], object]
"""Called with the path and the content type of each request that is refused."""

_log = logging.getLogger(__name__)


class HostCheck:
    """Refuses requests by their host, counts them, and logs them once a second at most."""

    def __init__(self, policy: HostPolicy, on_refuse: OnRefuse) -> None:
        self._policy = policy
        self._on_refuse = on_refuse
        self._answer = StaticError(host_not_allowed())
        self._refused = 0
        self._last = ""

    def poll(self) -> None:
        """Log how many requests were refused since the last call. To be called once a second."""
        if self._refused:
            text = (
                "requests refused for their host: %d, the last for %r; see LISTINGS_ALLOWED_HOSTS"
            )
            _log.warning(text, self._refused, self._last)
            self._refused = 0

    def before(self, reject: Reject) -> Reject:
        """Return a hook that refuses gRPC calls by their host, before they reach the fast path.

        It leaves every other request to ``reject``.
        """

        def refuse(request: zttp.Request) -> RawHeaders | None:
            headers = request.headers
            if self._policy.allows(headers) or protocol_of(content_type_of(headers)) != GRPC:
                return reject(request)
            path = request.path.decode("latin-1")
            return self._refuse(path, headers).trailers_only(headers)

        return refuse

    def middleware(self, app: ASGIApp) -> ASGIApp:
        """Return ``app`` behind the check, for requests that do not pass through the hook."""

        async def checked(scope: Scope, receive: Receive, send: Send) -> None:
            if (
                scope["type"] != "http"
                or scope["path"] in _FOR_ANY_HOST
                or self._policy.allows(scope["headers"])
            ):
                await app(scope, receive, send)
            else:
                await self._refuse(scope["path"], scope["headers"])(scope, receive, send)

        return checked

    def _refuse(self, path: str, headers: Iterable[tuple[bytes, bytes]]) -> StaticError:
        self._refused += 1
        self._last = dict(headers).get(b"host", b"").decode("latin-1")[:_MAX_HOST]
        self._on_refuse(path, content_type_of(headers))
        return self._answer
