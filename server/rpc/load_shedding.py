"""Load shedding: how many calls may be in flight, so that those in flight are answered soon.

A call is in flight from the moment that its request is complete until its first answer. As many as
the pool has connections can run; the others wait, for the database or for the processor. A burst
may fill the queue. Once it has been full, there is more work than can be done, and the queue is
kept short until no call waits and none has been rejected for a second: with a long queue, as many
calls are answered as with a short one, only later.

A short queue holds one call per connection, which keeps a slow database busy, or as many calls as
are answered in 50 ms if that is more: at thousands a second, that many arrive while the process
waits some milliseconds for a processor, and rejecting those would keep the queue short for ever.

Streams are not among these calls. After a restart, thousands of watches come back at once: they
share one statement until their first message, and then wait for events. Neither are they rejected
for calls that wait, nor do they take the places of those. How many a caller may have is limited by
``server.rpc.interceptors.watch_limit``.

A rejection has to cost next to nothing, or it takes the time that the other calls need. One by the
handler cost as much as an answer: at 1,200 calls a second, of which a process could answer 1,050,
it answered 91. By the middleware here one takes 90 us, and gRPC, which most callers use, is
rejected before there is a task for the call, in 26 us.
"""

import logging
import time
from collections.abc import Callable, Collection
from typing import Final, TypeAlias

import zttp
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.rpc.error_encoding import RawHeaders
from server.rpc.errors import overloaded
from server.rpc.protocols import GRPC, content_type_of, protocol_of
from server.rpc.static_errors import StaticError

# Once the queue has been full, as many calls may be in flight as are answered in so many seconds,
# and at least those that run and one call that waits for each connection.
_SHORT_SECONDS: Final = 0.05
_SHORT_QUEUE: Final = 1
_CALM: Final = 1.0  # seconds without a rejection after which the queue may be long again

OnReject: TypeAlias = Callable[[str, str], object]
"""Called with the path and the content type of each call that is rejected."""

_log = logging.getLogger(__name__)


class LoadShedder:
    """Counts the calls in flight, and says when there are too many."""

    def __init__(
        self, concurrency: int, queue: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Let ``concurrency`` calls run and up to ``queue`` more wait.

        ``clock`` returns seconds.
        """
        self.in_flight = 0
        """How many calls run or wait."""
        self.rejected = 0
        """How many calls have been rejected so far."""
        self._concurrency = concurrency
        self._max_in_flight = concurrency + queue
        self._min_in_flight = concurrency * (1 + _SHORT_QUEUE)
        self._max_when_short = min(self._max_in_flight, self._min_in_flight)
        self._is_short = False
        self._clock = clock
        self._calm_at = self._polled_at = clock()
        self._logged = 0
        self._answered = 0

    @property
    def is_full(self) -> bool:
        """Whether the next call is to be rejected."""
        return self.in_flight >= (self._max_when_short if self._is_short else self._max_in_flight)

    def poll(self) -> None:
        """Measure how many calls are answered a second, and log how many were rejected.

        To be called about once a second.
        """
        now = self._clock()
        rate = self._answered / max(now - self._polled_at, _SHORT_SECONDS)
        self._polled_at, self._answered = now, 0
        short = max(self._min_in_flight, round(rate * _SHORT_SECONDS))
        self._max_when_short = min(self._max_in_flight, short)
        if self.rejected > self._logged:
            _log.warning("overload: calls rejected: %d", self.rejected - self._logged)
            self._logged = self.rejected

    def reject(self) -> None:
        """Count a call that is rejected, because ``is_full``."""
        self._is_short = True
        self._calm_at = self._clock() + _CALM
        self.rejected += 1

    def enter(self) -> None:
        """Count a call in."""
        self.in_flight += 1

    def leave(self) -> None:
        """Count a call out."""
        self.in_flight -= 1
        self._answered += 1
        if (
            self._is_short
            and self.in_flight <= self._concurrency
            and self._clock() >= self._calm_at
        ):
            self._is_short = False


class Rejections:
    """Counts rejected calls, and has the answers to them."""

    def __init__(
        self, shedder: LoadShedder, writing_paths: Collection[str], on_reject: OnReject
    ) -> None:
        """``writing_paths`` are those of methods that may write."""
        self._shedder = shedder
        self._writing_paths = writing_paths
        self._on_reject = on_reject
        self._write = StaticError(overloaded(writes=True))
        self._read = StaticError(overloaded(writes=False))

    def reject(self, path: str, content_type: str) -> StaticError:
        """Count a call that is rejected, and return its answer."""
        self._shedder.reject()
        self._on_reject(path, content_type)
        return self._write if path in self._writing_paths else self._read


class GrpcRejection:
    """Rejects gRPC calls by headers alone, before the application runs."""

    def __init__(
        self,
        shedder: LoadShedder,
        service: str,
        streaming_paths: Collection[str],
        rejections: Rejections,
    ) -> None:
        """``service`` is the path below which calls are counted, but for ``streaming_paths``."""
        self._shedder = shedder
        self._streaming_paths = streaming_paths
        self._prefix = f"{service}/".encode()
        self._rejections = rejections

    def __call__(self, request: zttp.Request) -> RawHeaders | None:
        """Return the headers that answer ``request``, or None for one that goes on."""
        if not self._shedder.is_full or not request.path.startswith(self._prefix):
            return None
        headers = request.headers
        content_type = content_type_of(headers)
        if protocol_of(content_type) != GRPC:
            return None
        path = request.path.decode("latin-1")
        if path in self._streaming_paths:
            return None
        return self._rejections.reject(path, content_type).trailers_only(headers)


class LoadSheddingMiddleware:
    """ASGI middleware that rejects requests while there are too many calls in flight."""

    def __init__(
        self,
        app: ASGIApp,
        shedder: LoadShedder,
        streaming_paths: Collection[str],
        rejections: Rejections,
    ) -> None:
        """``streaming_paths`` are those of methods whose calls are not counted."""
        self._app = app
        self._streaming_paths = streaming_paths
        self._shedder = shedder
        self._rejections = rejections

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Hand the request on, or reject it."""
        if scope["path"] in self._streaming_paths:
            await self._app(scope, receive, send)
            return
        if self._shedder.is_full:
            content_type = Headers(scope=scope).get("content-type", "")
            await self._rejections.reject(scope["path"], content_type)(scope, receive, send)
            return
        call = _Call(self._shedder, receive, send)
        try:
            await self._app(scope, call.receive, call.send)
        finally:
            call.leave()


class _Call:
    """Notices when a request is complete, and when its first answer is sent.

    connectrpc receives the whole request before it runs the method, and after that it receives
    again, to learn of a disconnect. A request by GET, which has no body, is complete then.
    """

    __slots__ = ("_has_entered", "_is_in", "_receive", "_send", "_shedder")

    def __init__(self, shedder: LoadShedder, receive: Receive, send: Send) -> None:
        self._shedder = shedder
        self._receive = receive
        self._send = send
        self._has_entered = self._is_in = False

    async def receive(self) -> Message:
        message = await self._receive()
        if not self._has_entered and not message.get("more_body"):
            self._has_entered = self._is_in = True
            self._shedder.enter()
        return message

    async def send(self, message: Message) -> None:
        if self._is_in and message["type"] == "http.response.body":
            self.leave()
        await self._send(message)

    def leave(self) -> None:
        if self._is_in:
            self._is_in = False
            self._shedder.leave()
