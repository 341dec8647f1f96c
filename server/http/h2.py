"""The life of an HTTP/2 connection: it ends without losing a call, or running one twice.

A gRPC channel keeps one connection and sends every call over it. zttp, the engine below uvicorn,
gives one connection a fixed budget: at the 4,097th stream, or at the 257th RST_STREAM from the
client (each cancelled call and each deadline is one), it sends GOAWAY(ENHANCE_YOUR_CALM) and every
call in flight is lost, although most of them have been executed. So a connection is replaced
before that, while calls are running on it and more are on their way.

One GOAWAY cannot do that. It names the last stream that the server accepts, and the client sends
again what it opened after that; if the server served those streams as well, each of them would run
twice. If they were refused, a client that retries only once, or not at all, would see failures.
Hence the graceful shutdown of RFC 9113, section 6.8:

1. *Initial GOAWAY*: GOAWAY(NO_ERROR, 2^31-1) asks the client to open no more streams here, and
   rejects none. A PING follows it. Streams that were on their way are served as usual.
2. *Final GOAWAY*: the answer to the PING comes after everything that the client sent before it read
   the initial GOAWAY (section 6.7), be the round trip long or short. Now GOAWAY(NO_ERROR, last
   stream) rejects next to nothing: clients may let an answer overtake a stream that they have
   begun. A later stream gets RST_STREAM(REFUSED_STREAM) and never reaches the application, so that
   the client may send it again safely (section 8.7). A client that does not answer the PING is
   given ``ping_timeout`` seconds, and ``goaway_timeout`` while the server drains.
3. *Close*: when the last stream has ended and its last byte has been sent, the client is expected
   to close. Only after ``goaway_timeout`` seconds does the server: closing a socket at
   which data is still arriving makes the kernel send a TCP reset, which can destroy the last
   responses on their way.

The same steps end a connection that is idle or old, so that its client resolves the server's name
again; and every connection when the server drains, where uvicorn itself would answer new streams
with 503 or drop them.

A connection that waits for the rest of a frame or of a header list (``h2_frames``) ends the same
way, after ``h2_frame_timeout``, with ``goaway_timeout`` seconds for the PING. A client that sends
too many frames besides requests is cut off: see ``server.http.h2_flood``.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Generator
from itertools import chain
from typing import Any

import zttp

from server.http.h2_flow import (
    ENHANCE_YOUR_CALM,
    NO_ERROR,
    REFUSED_STREAM,
    FlowControlledH2Protocol,
)
from server.http.h2_frames import FrameBoundaries
from server.http.hooks import Reject

MAX_STREAM_ID = 2**31 - 1

_FIELD_OVERHEAD = 32  # bytes, for each field

# zttp has the first three apart from the header list, and the last one as Host.
_PSEUDO_FIELDS = len(":method:schemehttp:path:authority") - len("host") + 3 * _FIELD_OVERHEAD

# RFC 9113, section 6.7: length 8, type 6, no flags, stream 0, and eight bytes of the sender's
# choice. Works around zttp, which answers PINGs but has no call to send one.
PING_FRAME = b"\x00\x00\x08\x06\x00" + bytes(4) + bytes(8)

# Events that are of no stream, or that zttp acts upon alone.
_OF_CONNECTION = frozenset((zttp.Ping, zttp.Settings, zttp.WindowUpdate, zttp.GoAway))

# Events that cost a client a part of its budget: all that begin, end or reset no request.
_BUDGETED = _OF_CONNECTION | {zttp.Data}

# Phases of a connection. Plain integers, because every frame is compared with them, and a member of
# an Enum takes ten times as long to look up.
SERVING, GOING_AWAY, REFUSING, IGNORING = range(4)


class H2Protocol(FlowControlledH2Protocol):
    """An HTTP/2 server protocol with a graceful end for every connection."""

    def __init__(self, *args: Any, reject: Reject | None = None, **options: Any) -> None:
        super().__init__(*args, **options)
        self.reject = reject
        self.phase = SERVING
        self.phase_timer: asyncio.TimerHandle | None = None
        self.ping_timeout = self.limits.ping_timeout
        # Works around zttp, which ends a connection at its 4,097th stream or 257th reset.
        self.next_phase_at = nth_stream_id(self.limits.goaway_after_streams)
        self.resets = 0
        self.frame_boundaries = FrameBoundaries()
        self.incomplete: int | None = None
        self.frame_deadline = 0.0
        self.age_timer: asyncio.TimerHandle | None = None
        # uvicorn's type is for whole seconds, and its timer takes any.
        self.timeout_keep_alive: float = self.limits.h2_idle  # type: ignore[assignment]

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Send the server's SETTINGS, and set the connection's age limit."""
        super().connection_made(transport)
        age = self.limits.h2_age * random.uniform(0.9, 1.1)  # noqa: S311 - it is no secret
        self.age_timer = self.loop.call_later(age, self.send_initial_goaway)

    # Input

    def data_received(self, data: bytes) -> None:
        """Act upon the frames in ``data``."""
        if self.phase == IGNORING:
            return
        self.limit_silence(self.frame_boundaries.receive(data))
        super().data_received(data)
        if self.phase == REFUSING:
            # A WINDOW_UPDATE may have released the last bytes of a response.
            self._close_connection()

    def events(self) -> Generator[zttp.Event, None, None]:
        """Yield what uvicorn acts upon; PING and GOAWAY are acted upon here."""
        next_event = self.conn.next_event
        event = next_event()
        while event is not zttp.NEED_DATA:
            kind = type(event)
            if kind not in _OF_CONNECTION:
                yield event
                if self.phase == IGNORING:
                    return
            elif isinstance(event, zttp.Ping):
                if event.ack and self.phase == GOING_AWAY:
                    self.send_final_goaway()
            elif kind is zttp.GoAway:
                # Works around uvicorn, which closes an idle connection at once.
                self.send_initial_goaway()
            if kind in _BUDGETED and not self.frame_budget.spend():
                self.end_flood()
                return
            event = next_event()

    def limit_silence(self, incomplete: int | None) -> None:
        """Limit the time until the next input; until the rest of the unit ``incomplete``, if any.

        Works around uvicorn, which starts its keep-alive timer anew with every byte of a frame.
        """
        if incomplete is not None:
            now = self.loop.time()
            if incomplete != self.incomplete:
                self.frame_deadline = now + self.limits.h2_frame_timeout
            self.timeout_keep_alive = max(self.frame_deadline - now, 0)
        elif self.incomplete is not None:
            self.timeout_keep_alive = self.limits.h2_idle
        self.incomplete = incomplete

    def end_flood(self) -> None:
        """Close the connection of a client that has exceeded its budget of frames.

        Works around zttp and uvicorn, which take such frames without a limit.
        """
        self.logger.warning("closed 1 HTTP/2 connection: too many frames besides requests")
        self.phase = IGNORING
        self.conn.close(ENHANCE_YOUR_CALM)
        self.flush()
        self.transport.close()

    def handle_request(self, event: zttp.Request) -> None:
        """Run the application for a new stream, reject its request, or refuse the stream.

        The id of a stream tells how many came before it: clients use odd ids in rising order
        (RFC 9113, section 5.1.1), so the connection needs no counter of its own.
        """
        if self.phase == REFUSING:
            self.refuse_stream(event.stream_id)
            return
        self.frame_budget.earn_for_request()
        if (size := _header_list_size(event)) > self.limits.h2_max_header_list:
            self.refuse_header_list(event, size)
        elif self.reject is None or (headers := self.reject(event)) is None:
            self.run_application(event)
        else:
            self.conn.stream(event.stream_id).send_response(200, headers, end_stream=True)
        if event.stream_id >= self.next_phase_at:
            if self.phase == SERVING:
                self.send_initial_goaway()
            else:
                self.send_final_goaway()

    def refuse_header_list(self, event: zttp.Request, size: int) -> None:
        """Answer a request whose header list has ``size`` bytes, which is too many."""
        limit = self.limits.h2_max_header_list
        text = f"the header list has {size} bytes, and may have {limit} (RFC 9113, section 6.5.2)"
        self.logger.info("HTTP/2: answered %s with 431: %s", self.client_address, text)
        stream = self.conn.stream(event.stream_id)
        headers = [*self.server_state.default_headers, (b"content-type", b"text/plain")]
        if event.method == b"HEAD":
            stream.send_response(431, headers, end_stream=True)
            return
        stream.send_response(431, headers)
        stream.send_data(f"{text}\n".encode())
        stream.end_message()

    def handle_rst_stream(self, event: zttp.RstStream) -> None:
        """End a stream that the client has cancelled, and count it."""
        super().handle_rst_stream(event)
        if event.error_code == REFUSED_STREAM:
            return  # zttp's own, for a stream above MAX_CONCURRENT_STREAMS; it costs no budget.
        self.resets += 1
        if self.resets == self.limits.goaway_after_resets:
            self.send_initial_goaway()
        elif self.resets == self.limits.refuse_after_resets:
            self.send_final_goaway()

    def connection_lost(self, exc: Exception | None) -> None:
        """Mark every exchange as disconnected, and cancel all timers."""
        self._cancel_phase_timer()
        if self.age_timer is not None:
            self.age_timer.cancel()
            self.age_timer = None
        super().connection_lost(exc)

    # The end of the connection

    def shutdown(self) -> None:
        """End the connection because the server stops.

        Works around uvicorn, which sends one GOAWAY and answers new streams with 503.
        """
        self.ping_timeout = self.limits.goaway_timeout
        if self.phase == GOING_AWAY:
            self._await_ping()
        else:
            self.send_initial_goaway()

    def timeout_keep_alive_handler(self) -> None:
        """End an idle connection; a call may be on its way at this very moment.

        Works around uvicorn, which sends one GOAWAY and closes.
        """
        if self.phase == REFUSING:
            self.transport.close()
            return
        if self.incomplete is not None:  # an answer to the PING cannot come in the midst of a frame
            self.ping_timeout = self.limits.goaway_timeout
        self.send_initial_goaway()

    def send_initial_goaway(self) -> None:
        """Ask for no more streams, and serve those that still come."""
        if self.phase != SERVING or self.transport.is_closing():
            return
        self.phase = GOING_AWAY
        self.next_phase_at = nth_stream_id(self.limits.refuse_after_streams)
        self.conn.close(NO_ERROR, MAX_STREAM_ID)
        self.flush()
        self.transport.write(PING_FRAME)
        self._await_ping()

    def _await_ping(self) -> None:
        self._cancel_phase_timer()
        self.phase_timer = self.loop.call_later(self.ping_timeout, self.send_final_goaway)

    def send_final_goaway(self) -> None:
        """Name the last stream that is served, refuse later ones, and close when all have ended."""
        if self.phase != GOING_AWAY or self.transport.is_closing():
            return
        self._cancel_phase_timer()
        self.phase = REFUSING
        # From here on uvicorn calls _close_connection when the last cycle has ended. Its other
        # use of the flag, a 503 for a new stream, is out of reach: such streams are refused.
        self.shutdown_requested = True
        # Without an id zttp names the highest stream whose HEADERS next_event has returned, which
        # is exact, because events are drawn until none is left.
        self.conn.close(NO_ERROR)
        self.flush()
        self._close_connection()

    def refuse_stream(self, stream_id: int) -> None:
        """Reject a stream that came after the final GOAWAY, before the application sees it.

        It counts in zttp's budget nevertheless. Before a client that goes on regardless can use
        that up, the connection stops reading, so that the streams in flight are not lost.
        """
        self.conn.stream(stream_id).reset(REFUSED_STREAM)
        if stream_id >= nth_stream_id(self.limits.ignore_after_streams):
            self.phase = IGNORING

    def _close_connection(self) -> None:
        """Let the client close a connection with nothing left in flight, or else close it."""
        if self.cycles:
            return
        if self.phase == REFUSING and self.conn.has_pending_send():
            # Works around uvicorn: the last bytes of a response wait for flow control, and it
            # counts their cycle as ended. A client that is silent for ``h2_idle`` counts as
            # gone.
            self._unset_keepalive_if_required()
            self.timeout_keep_alive_task = self.loop.call_later(
                self.timeout_keep_alive, self.timeout_keep_alive_handler
            )
        elif self.phase_timer is None:
            self.phase_timer = self.loop.call_later(
                self.limits.goaway_timeout, self.transport.close
            )

    def _cancel_phase_timer(self) -> None:
        if self.phase_timer is not None:
            self.phase_timer.cancel()
            self.phase_timer = None


def _header_list_size(request: zttp.Request) -> int:
    """Return the size of a header list as RFC 9113, section 6.5.2, has it."""
    headers = request.headers
    fields = sum(map(len, chain.from_iterable(headers))) + _FIELD_OVERHEAD * len(headers)
    return fields + _PSEUDO_FIELDS + len(request.method) + len(request.target)


def nth_stream_id(n: int) -> int:
    """Return the id of a connection's n-th stream, if the client skips none."""
    return 2 * n - 1
