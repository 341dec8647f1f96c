"""How many calls are let in, so that those that are let in are answered soon.

A call is in here from the moment that its request is complete until its first answer. As many as
the pool has connections can work; the others wait, for the database or for the processor. A burst
may fill the queue. Once it has been full, there is more work than can be done, and the queue is
kept short until nobody waits and nobody has been refused for a second: with a long one, as many
calls are answered as with a short one, only later.

How short depends on how fast calls are answered. One call a connection keeps a slow database busy.
Where thousands are answered a second, as many come while the process does not get the processor for
some milliseconds, and turning those away would keep the queue short for ever.

A refusal has to cost next to nothing, or it takes the time that the others need. One by the
handler cost as much as an answer: at 1,200 calls a second, of which a process could answer 1,050,
it answered 91. By the middleware here one takes 90 us, and gRPC, which most callers use, is refused
before there is a task for the call, in 26 us.
"""

import logging
import time
from collections.abc import Callable
from typing import TypeAlias

import zttp
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.rpc.static_errors import PreparedError

# Once the queue has been full, as many calls may be in as are answered in so many seconds, and at
# the least those at work and one call that waits for each connection.
_SHORT_SECONDS = 0.05
_SHORT_QUEUE = 1
_CALM = 1.0  # seconds without a refusal after which it may be long again

Dropped: TypeAlias = Callable[[str, str], object]
"""Is told the path and the content type of each call that was refused."""

_log = logging.getLogger(__name__)


class Admission:
    """Counts the calls that are in, and says when there are too many."""

    def __init__(
        self, at_once: int, queue: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """``at_once`` calls can work, and up to ``queue`` more may wait."""
        self.in_flight = 0
        """How many calls are in: at work, or waiting."""
        self.refused = 0
        """How many have been refused so far."""
        self._at_once = at_once
        self._most = at_once + queue
        self._fewest = at_once * (1 + _SHORT_QUEUE)
        self._most_when_short = min(self._most, self._fewest)
        self._is_short = False
        self._clock = clock
        self._calm_at = self._looked_at = clock()
        self._told = 0
        self._left = 0

    @property
    def is_full(self) -> bool:
        """Whether nobody may come in."""
        return self.in_flight >= (self._most_when_short if self._is_short else self._most)

    def look(self) -> None:
        """Take note of what has happened since this was called before, a second ago.

        That is how many calls have left, and how many were refused: the log is told of these.
        """
        now = self._clock()
        rate = self._left / max(now - self._looked_at, _SHORT_SECONDS)
        self._looked_at, self._left = now, 0
        self._most_when_short = min(self._most, max(self._fewest, round(rate * _SHORT_SECONDS)))
        if self.refused > self._told:
            _log.warning("overload: calls refused: %d", self.refused - self._told)
            self._told = self.refused

    def refuse(self) -> None:
        """Count one that was refused, because it was full."""
        self._is_short = True
        self._calm_at = self._clock() + _CALM
        self.refused += 1

    def enter(self) -> None:
        """Count a call in."""
        self.in_flight += 1

    def leave(self) -> None:
        """Count a call out."""
        self.in_flight -= 1
        self._left += 1
        if self._is_short and self.in_flight <= self._at_once and self._clock() >= self._calm_at:
            self._is_short = False


class GrpcGate:
    """Turns away gRPC calls that there is no room for, before they reach the application."""

    def __init__(
        self, admission: Admission, service: str, refusal: PreparedError, dropped: Dropped
    ) -> None:
        """``service`` is the path below which calls need to be admitted."""
        self._admission = admission
        self._dropped = dropped
        self._prefix = f"{service}/".encode()
        self._refusal = refusal

    def __call__(self, request: zttp.Request) -> list[tuple[bytes, bytes]] | None:
        """Return the headers that refuse ``request``, or None for one that may go on."""
        if self._admission.is_full and request.path.startswith(self._prefix):
            answer = self._refusal.grpc_headers(request.headers)
            if answer is not None:
                self._admission.refuse()
                self._dropped(request.path.decode("latin-1"), "application/grpc")
            return answer
        return None


class Admitted:
    """ASGI middleware that lets in what ``admission`` has room for."""

    def __init__(
        self, app: ASGIApp, admission: Admission, refusal: PreparedError, dropped: Dropped
    ) -> None:
        """``refusal`` answers in place of ``app`` where there is no room."""
        self._app = app
        self._dropped = dropped
        self._admission = admission
        self._refusal = refusal

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Hand the request on, or refuse it."""
        if self._admission.is_full:
            self._admission.refuse()
            self._dropped(scope["path"], Headers(scope=scope).get("content-type", ""))
            await self._refusal(scope, receive, send)
            return
        call = _Call(self._admission, receive, send)
        try:
            await self._app(scope, call.receive, call.send)
        finally:
            call.leave()


class _Call:
    """Notices when the request is complete, and when the first answer comes.

    The runtime asks for more of a request once its caller may call; also of one by GET, which has
    no more, to hear when the caller goes away.
    """

    __slots__ = ("_admission", "_is_in", "_receive", "_send", "_was_in")

    def __init__(self, admission: Admission, receive: Receive, send: Send) -> None:
        self._admission = admission
        self._receive = receive
        self._send = send
        self._was_in = self._is_in = False

    async def receive(self) -> Message:
        message = await self._receive()
        if not self._was_in and not message.get("more_body"):
            self.enter()
        return message

    async def send(self, message: Message) -> None:
        if self._is_in and message["type"] == "http.response.body":
            self.leave()
        await self._send(message)

    def enter(self) -> None:
        self._was_in = self._is_in = True
        self._admission.enter()

    def leave(self) -> None:
        if self._is_in:
            self._is_in = False
            self._admission.leave()
