"""HTTP/2 connections that can live for ever without losing or doubling a call.

A gRPC channel keeps one connection and sends every call over it. The HTTP/2 engine below uvicorn,
zttp, gives one connection a fixed budget: at the 4,097th stream, or at the 257th RST_STREAM from
the client (each cancelled call and each deadline is one), it sends GOAWAY(ENHANCE_YOUR_CALM) and
every call in flight is lost, although most of them have been executed. So a connection has to be
replaced before that, while calls are running on it and more are on their way.

One GOAWAY cannot do that. It names the last stream that the server takes, and the client sends
again what it opened after that; if those streams were served all the same, each of them would run
twice. If they were refused, a client that retries only once, or not at all, would see failures.
Hence the graceful shutdown of RFC 9113, section 6.8:

1. *Announce*: GOAWAY(NO_ERROR, 2^31-1) asks the client to open no more streams here, and rejects
   none. A PING follows it. Streams that were on their way are served as usual.
2. *Refuse*: the answer to the PING comes after everything that the client sent before it read the
   announcement (section 6.7), be the round trip long or short. Now GOAWAY(NO_ERROR, last stream)
   rejects next to nothing: clients may let an answer overtake a stream that they have begun. A
   later stream gets RST_STREAM(REFUSED_STREAM) and never reaches the application, so that the
   client may send it again safely (section 8.7). A client that does not answer is given
   ``patience`` seconds.
3. *Close*: when the last stream has ended and its last byte has left, the client is expected to
   close. Only after another ``patience`` seconds does the server: closing a socket at which data
   is still arriving makes the kernel send a TCP reset, which can destroy the last responses on
   their way.

The same steps end an idle connection and drain the server on shutdown, where uvicorn itself would
answer new streams with 503 or drop them.

A connection ends that way also when it has been idle for long, or has lived for long: then its
client looks for servers again, and finds those that are new.

So does one that waits for the other half of a frame or of a header list, but soon. Who sends too
many frames that ask for nothing is cut off: see ``server.http.h2_flood``.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Generator
from typing import Any, ClassVar, TypeAlias

import zttp

from server.http.h2_flow import ENHANCE_YOUR_CALM, NO_ERROR, REFUSED_STREAM, PacedH2Protocol

TurnAway: TypeAlias = Callable[[zttp.Request], list[tuple[bytes, bytes]] | None]
"""Answers a request in place of the application, by headers alone, or returns None."""

MAX_STREAM_ID = 2**31 - 1

# RFC 9113, section 6.7: length 8, type 6, no flags, stream 0, and eight bytes of the sender's
# choice. zttp answers PINGs but has no call to send one.
PING_FRAME = b"\x00\x00\x08\x06\x00" + bytes(4) + bytes(8)

# Section 6.5: length 0, type 4, flag ACK, stream 0.
SETTINGS_ACK_FRAME = b"\x00\x00\x00\x04\x01" + bytes(4)

# What is taken from a client's allowance: all frames that begin, end or reset no call.
_SPARE = (zttp.Ping, zttp.Settings, zttp.WindowUpdate, zttp.GoAway, zttp.Data)

# How far the end of a connection has come. Plain integers, because every frame is held against
# them, and a member of an Enum takes ten times as long to look up.
SERVING, ANNOUNCED, REFUSING, IGNORING = range(4)


class RecyclingH2Protocol(PacedH2Protocol):
    """An HTTP/2 server protocol with a graceful end for every connection.

    A client that keeps the protocol opens at most 128 streams after an announcement (zttp's
    MAX_CONCURRENT_STREAMS: to open more it has to read that one of them ended, and the GOAWAY
    stands before that), and can reset no more than are open. The distances between the limits
    below leave it that much; a client that crosses them is not listening.
    """

    # Streams of a connection, out of zttp's 4,096, after which it is announced that no more are
    # wanted, after which more are refused at once, and after which nothing more is read.
    announce_after_streams: ClassVar[int] = 2_000
    refuse_after_streams: ClassVar[int] = 3_000
    ignore_after_streams: ClassVar[int] = 4_000

    # The same for resets, out of zttp's 256. The 128 streams then open are all that can follow.
    announce_after_resets: ClassVar[int] = 64
    refuse_after_resets: ClassVar[int] = 128

    # Seconds. Idle for longer than gRPC clients may be silent: grpc-go's servers want no PING more
    # often than every five minutes. Old at a random time around this, lest all come back at once.
    idle: ClassVar[int] = 600
    age: ClassVar[float] = 1_800.0

    # Seconds that the rest of a frame or of a header list may take, while there is nothing else.
    half: ClassVar[float] = 10.0

    # Seconds that a client has to answer the PING, and again to close an ended connection.
    patience: ClassVar[float] = 1.0

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.phase = SERVING
        self.phase_timer: asyncio.TimerHandle | None = None
        self.next_phase_at = nth_stream_id(self.announce_after_streams)
        self.resets = 0
        self.turn_away: TurnAway | None = None
        self.acknowledges_settings = False
        self.half_until: float | None = None
        self.age_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin."""
        super().connection_made(transport)
        lifetime = self.age * random.uniform(0.9, 1.1)  # noqa: S311 - it is no secret
        self.age_timer = self.loop.call_later(lifetime, self.announce_end)

    # What comes in

    def data_received(self, data: bytes) -> None:
        """Act upon the frames in ``data``."""
        if self.phase == IGNORING:
            return
        self.acknowledges_settings = data == SETTINGS_ACK_FRAME
        super().data_received(data)
        if self.phase == REFUSING:
            # A WINDOW_UPDATE may have let the last bytes of a response go.
            self._close_connection()

    def events(self) -> Generator[zttp.Event, None, None]:
        """Yield what uvicorn acts upon; PING and GOAWAY are acted upon here."""
        next_event = self.conn.next_event
        event = next_event()
        # zttp tells nothing of an acknowledgement either, and it is the whole of most handshakes.
        self.limit_idleness(half=event is zttp.NEED_DATA and not self.acknowledges_settings)
        while event is not zttp.NEED_DATA:
            if isinstance(event, zttp.Ping):
                if event.ack and self.phase == ANNOUNCED:
                    self.refuse_new_streams()
            elif isinstance(event, zttp.GoAway):
                self.announce_end()
            elif not isinstance(event, zttp.Settings | zttp.WindowUpdate):
                yield event
                if self.phase == IGNORING:
                    return
            if isinstance(event, _SPARE) and not self.allowance.spend():
                self.end_flood()
                return
            event = next_event()

    def limit_idleness(self, *, half: bool) -> None:
        """Set how long the connection may wait from now on, having got whole frames or not."""
        if not half:
            self.half_until = None
            self.timeout_keep_alive = self.idle
            return
        now = self.loop.time()
        self.half_until = self.half_until or now + self.half
        # uvicorn's type is for whole seconds, and its timer takes any.
        self.timeout_keep_alive = max(self.half_until - now, 0)  # type: ignore[assignment]

    def end_flood(self) -> None:
        """End the connection of a client that sends too many frames that ask for nothing."""
        self.logger.warning("A client sent too many HTTP/2 frames that ask for nothing")
        self.phase = IGNORING
        self.conn.close(ENHANCE_YOUR_CALM)
        self.flush()
        self.transport.close()

    def handle_request(self, event: zttp.Request) -> None:
        """Run the application for a new stream, turn it away, or refuse it.

        The id of a stream tells how many came before it: clients use odd ids in rising order
        (RFC 9113, section 5.1.1), so the connection needs no counter of its own.
        """
        if self.phase == REFUSING:
            self.refuse(event.stream_id)
            return
        self.allowance.earn_for_call()
        if self.turn_away is None or (answer := self.turn_away(event)) is None:
            self.run_application(event)
        else:
            self.conn.stream(event.stream_id).send_response(200, answer, end_stream=True)
        if event.stream_id >= self.next_phase_at:
            if self.phase == SERVING:
                self.announce_end()
            else:
                self.refuse_new_streams()

    def handle_rst_stream(self, event: zttp.RstStream) -> None:
        """End a stream that the client gave up, and count it."""
        super().handle_rst_stream(event)
        if event.error_code == REFUSED_STREAM:
            return  # zttp's own, for a stream above MAX_CONCURRENT_STREAMS; it costs no budget.
        self.resets += 1
        if self.resets == self.announce_after_resets:
            self.announce_end()
        elif self.resets == self.refuse_after_resets:
            self.refuse_new_streams()

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell the application, and leave no timer behind."""
        self._cancel_phase_timer()
        if self.age_timer is not None:
            self.age_timer.cancel()
        super().connection_lost(exc)

    # What ends the connection

    def shutdown(self) -> None:
        """Drain the connection because the server stops."""
        self.announce_end()

    def timeout_keep_alive_handler(self) -> None:
        """End an idle connection; a call may be on its way at this very moment."""
        if self.phase == REFUSING:
            self.transport.close()
        else:
            self.announce_end()

    def announce_end(self) -> None:
        """First phase: ask for no more streams, and serve those that come all the same."""
        if self.phase != SERVING or self.transport.is_closing():
            return
        self.phase = ANNOUNCED
        self.next_phase_at = nth_stream_id(self.refuse_after_streams)
        self.conn.close(NO_ERROR, MAX_STREAM_ID)
        self.flush()
        self.transport.write(PING_FRAME)
        self.phase_timer = self.loop.call_later(self.patience, self.refuse_new_streams)

    def refuse_new_streams(self) -> None:
        """Second phase: name the last stream that is served, and close when all have ended."""
        if self.phase != ANNOUNCED or self.transport.is_closing():
            return
        self._cancel_phase_timer()
        self.phase = REFUSING
        # From here on uvicorn calls _close_connection when the last cycle has ended. Its other
        # use of the flag, a 503 for a new stream, is out of reach: such streams are refused.
        self.shutdown_requested = True
        # Without an id zttp names the highest stream whose HEADERS next_event has taken in, which
        # is exact, because events are drawn until none is left.
        self.conn.close(NO_ERROR)
        self.flush()
        self._close_connection()

    def refuse(self, stream_id: int) -> None:
        """Reject a stream that came after the final GOAWAY, unseen by the application.

        It counts in zttp's budget all the same. Before a client that goes on regardless can use
        that up, the connection turns a deaf ear, so that the streams in flight are not lost.
        """
        self.conn.stream(stream_id).reset(REFUSED_STREAM)
        if stream_id >= nth_stream_id(self.ignore_after_streams):
            self.phase = IGNORING

    def _close_connection(self) -> None:
        """Let the client close a connection with nothing left in flight, or else close it."""
        if self.cycles:
            return
        if self.phase == REFUSING and self.conn.has_pending_send():
            # The last bytes of a response wait for the client to open its flow-control window,
            # which uvicorn no longer counts as a cycle. A client that is silent for as long as
            # an idle one may be is gone.
            self._unset_keepalive_if_required()
            self.timeout_keep_alive_task = self.loop.call_later(
                self.timeout_keep_alive, self.timeout_keep_alive_handler
            )
        elif self.phase_timer is None:
            self.phase_timer = self.loop.call_later(self.patience, self.transport.close)

    def _cancel_phase_timer(self) -> None:
        if self.phase_timer is not None:
            self.phase_timer.cancel()
            self.phase_timer = None


def nth_stream_id(n: int) -> int:
    """Return the id of a connection's n-th stream, if the client leaves none out."""
    return 2 * n - 1
