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

A client that sends far more frames which ask for nothing (PING, SETTINGS, WINDOW_UPDATE), or DATA
in far more pieces, than calls and their answers come with is cut off. Frames that zttp drops
without a word (PRIORITY, empty DATA, unknown ones) cost 0.02 us each, and are not counted. zttp
itself ends a connection with a header list above 64 KiB, or in more than 16 CONTINUATION frames.
One that waits for the other half of a frame or of a header list is ended like an idle one, but
soon.

A stream whose client does not read is held back as well. zttp keeps what the client's flow-control
window has no room for, without a limit, and uvicorn does not ask it; here the application waits.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Generator
from functools import partial
from typing import Any, ClassVar, TypeAlias

import zttp
from uvicorn._types import ASGISendEvent
from uvicorn.config import Config
from uvicorn.protocols.http.auto_zttp_impl import AutoZttpProtocol
from uvicorn.protocols.http.zttp_h2_impl import RequestResponseCycle, ZttpH2Protocol
from uvicorn.server import ServerState

from server.http1 import BoundedH1Protocol

Send: TypeAlias = Callable[[ASGISendEvent], Awaitable[None]]

TurnAway: TypeAlias = Callable[[zttp.Request], list[tuple[bytes, bytes]] | None]
"""Answers a request in place of the application, by headers alone, or returns None."""

# RFC 9113, section 7.
NO_ERROR = 0x0
PROTOCOL_ERROR = 0x1
REFUSED_STREAM = 0x7
CANCEL = 0x8
ENHANCE_YOUR_CALM = 0xB

MAX_STREAM_ID = 2**31 - 1

# RFC 9113, section 6.7: length 8, type 6, no flags, stream 0, and eight bytes of the sender's
# choice. zttp answers PINGs but has no call to send one.
PING_FRAME = b"\x00\x00\x08\x06\x00" + bytes(4) + bytes(8)

# Section 6.5: length 0, type 4, flag ACK, stream 0.
SETTINGS_ACK_FRAME = b"\x00\x00\x00\x04\x01" + bytes(4)

# Bytes of a response that may wait for the client to read, before the application waits with it.
MOST_PENDING = 64 * 1024

# How far the end of a connection has come. Plain integers, because every frame is held against
# them, and a member of an Enum takes ten times as long to look up.
SERVING, ANNOUNCED, REFUSING, IGNORING = range(4)


class RecyclingH2Protocol(ZttpH2Protocol):
    """uvicorn's HTTP/2 server protocol, with a graceful end for every connection.

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

    # Frames that ask for nothing, and DATA: at once, for each second, for each call, and for each
    # 4 KiB that are sent, of which a client may tell twice that it has read them.
    spare_frames: ClassVar[int] = 2_000
    spare_frames_a_second: ClassVar[int] = 100
    spare_frames_a_call: ClassVar[int] = 10
    spare_frames_sent: ClassVar[int] = 2

    # Seconds that a client has to answer the PING, and again to close an ended connection.
    patience: ClassVar[float] = 1.0

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self.phase = SERVING
        self.phase_timer: asyncio.TimerHandle | None = None
        self.next_phase_at = nth_stream_id(self.announce_after_streams)
        self.resets = 0
        self.turn_away: TurnAway | None = None
        self.heard = asyncio.Event()
        self.unread: dict[int, RequestResponseCycle] = {}
        """Streams whose answer is given, and waited for the client's window at the time."""
        self.acknowledges_settings = False
        self.half_until: float | None = None
        self.age_timer: asyncio.TimerHandle | None = None
        self.allowance: float = self.spare_frames
        self.allowance_since = self.loop.time()

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
        self.heard.set()
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
                if not isinstance(event, zttp.Data):  # of which a call needs a few
                    self.allowance += 1
            self.allowance -= 1
            if self.allowance < 0 and self.is_flooded():
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

    def is_flooded(self) -> bool:
        """Whether too many frames have come that ask for nothing; then the connection ends."""
        now = self.loop.time()
        earned = (now - self.allowance_since) * self.spare_frames_a_second
        self.allowance += min(earned, self.spare_frames)
        self.allowance_since = now
        if self.allowance >= 0:
            return False
        self.logger.warning("A client sent too many HTTP/2 frames that ask for nothing")
        self.phase = IGNORING
        self.conn.close(ENHANCE_YOUR_CALM)
        self.flush()
        self.transport.close()
        return True

    def handle_request(self, event: zttp.Request) -> None:
        """Run the application for a new stream, turn it away, or refuse it.

        The id of a stream tells how many came before it: clients use odd ids in rising order
        (RFC 9113, section 5.1.1), so the connection needs no counter of its own.
        """
        if self.phase == REFUSING:
            self.refuse(event.stream_id)
            return
        self.allowance += self.spare_frames_a_call
        if self.turn_away is None or (answer := self.turn_away(event)) is None:
            self.run_application(event)
        else:
            self.conn.stream(event.stream_id).send_response(200, answer, end_stream=True)
        if event.stream_id >= self.next_phase_at:
            if self.phase == SERVING:
                self.announce_end()
            else:
                self.refuse_new_streams()

    def run_application(self, event: zttp.Request) -> None:
        """Run the application for a new stream."""
        try:
            super().handle_request(event)
            cycle = self.cycles[event.stream_id]
            # It is uvicorn that makes the cycle, and runs it with its own send.
            cycle.send = partial(self.send_in_step, cycle, cycle.send)  # type: ignore[method-assign]
            if event.end_stream:
                # No event for the end of its body follows, which uvicorn waits for.
                cycle.more_body = False
                cycle.message_event.set()
        except UnicodeDecodeError:
            # uvicorn decodes the path as ASCII, and zttp lets other bytes through. Unhandled, the
            # error would cost the whole connection, with everybody else's calls.
            self.conn.stream(event.stream_id).reset(PROTOCOL_ERROR)

    async def send_in_step(
        self, cycle: RequestResponseCycle, send: Send, message: ASGISendEvent
    ) -> None:
        """Send a part of a response, and wait until the client has read what went before."""
        await send(message)
        if cycle.response_complete and cycle.stream.pending_bytes:
            self.unread[cycle.stream.stream_id] = cycle
        size = len(message["body"]) if message["type"] == "http.response.body" else 0
        self.allowance += self.spare_frames_sent * (1 + size // 4096)
        while (cycle.stream.pending_bytes or 0) > MOST_PENDING:
            if cycle.disconnected or self.transport.is_closing():
                break
            self.heard.clear()
            await self.heard.wait()

    def give_up(self, cycle: RequestResponseCycle, error_code: int) -> None:
        """End a stream whose client keeps us waiting."""
        cycle.stream.reset(error_code)
        self.flush()
        cycle.disconnected = True
        cycle.message_event.set()
        self.heard.set()  # to which the application's send wakes up
        if self.unread.pop(cycle.stream.stream_id, None):
            self.on_stream_closed()

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
        self.heard.set()

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


class RecyclingProtocol(AutoZttpProtocol):
    """HTTP/1.1 and HTTP/2 on one port, for ``uvicorn.Config(app, http=RecyclingProtocol)``.

    HTTP/2 is chosen by ALPN over TLS and by its preface on a cleartext connection.
    """

    h1_protocol: ClassVar[type[BoundedH1Protocol]] = BoundedH1Protocol
    h2_protocol: ClassVar[type[RecyclingH2Protocol]] = RecyclingH2Protocol
    turn_away: ClassVar[TurnAway | None] = None

    @classmethod
    def of(cls, turn_away: TurnAway, max_request_bytes: int) -> type[RecyclingProtocol]:
        """Return this protocol for an application.

        ``turn_away`` has a word for HTTP/2 requests that do not need the application. Over
        HTTP/1.1, a request of ``max_request_bytes`` may come ahead of the answer to another.
        """
        most_ahead = cls.h1_protocol.most_ahead + max_request_bytes
        h1_protocol = type(cls.h1_protocol.__name__, (cls.h1_protocol,), {"most_ahead": most_ahead})
        own = {"turn_away": staticmethod(turn_away), "h1_protocol": h1_protocol}
        return type(cls.__name__, (cls,), own)

    def _switch(self, http2: bool, initial_data: bytes = b"") -> None:
        protocol_class = self.h2_protocol if http2 else self.h1_protocol
        protocol = protocol_class(
            config=self.config,
            server_state=self.server_state,
            app_state=self.app_state,
            _loop=self.loop,
        )
        if isinstance(protocol, RecyclingH2Protocol):
            protocol.turn_away = type(self).turn_away
        self.transport.set_protocol(protocol)
        protocol.connection_made(self.transport)
        if initial_data:
            protocol.data_received(initial_data)


def nth_stream_id(n: int) -> int:
    """Return the id of a connection's n-th stream, if the client leaves none out."""
    return 2 * n - 1
