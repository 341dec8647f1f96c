"""The numbers that bound what one client may hold, send or leave open."""

from dataclasses import dataclass
from typing import Final

_KIB: Final = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Limits of a ``Server`` and its connections. Times are in seconds, sizes in bytes.

    The rates of HTTP/2 frames besides requests are in ``h2_flood``, with the rule that uses them.
    """

    # Time for clients, over HTTP/1.1 and HTTP/2

    request_timeout: float = 10.0
    """For the head of a request, and again for its body. Also for a TLS handshake, and for the
    first bytes of a connection or of what follows its handshake."""

    response_stall_timeout: float = 30.0
    """For a client to read some of the response bytes that wait for it."""

    close_timeout: float = 2.0
    """For a client to close its side, once the server has sent everything and closed its own."""

    check_interval: float = 1.0
    """From one check of these timeouts to the next; in steps of 0.1. A timer per request would
    cost every request."""

    # Bytes held for a client

    max_unsent: int = 64 * _KIB
    """Of a response that waits for HTTP/2 flow control, before the application's send waits."""

    max_read_ahead: int = 64 * _KIB
    """Over HTTP/1.1: received before the response to the request ahead is complete, and the
    longest body whose rest is discarded after an early response. zttp's own bound is 8 MiB:
    8 GiB on a thousand connections."""

    # HTTP/1.1

    max_discarded: int = 1024 * _KIB
    """Received after the last response of a connection, and before it is cut off."""

    keep_alive: float = 75.0
    """Between two requests. Longer than proxies keep an idle connection, so that they close it, and
    not the server under a request on its way."""

    close_delay: float = 2.0
    """From the last response to the close of a connection whose client still sends.

    RFC 9112, section 9.6: closed at once, it may be reset before the client reads the response.
    """

    # HTTP/2: the life of a connection

    h2_idle: float = 600.0
    """Without a stream. Longer than gRPC clients may be silent: grpc-go's servers accept a PING no
    more often than every five minutes."""

    h2_age: float = 1_800.0
    """Of a connection, ±10 % at random, so that clients do not all reconnect at once. A client then
    resolves the server's name again, and finds servers that are new."""

    h2_frame_timeout: float = 10.0
    """For the rest of a frame or of a header list, while nothing else arrives."""

    h2_max_header_list: int = 32 * _KIB
    """Bytes of a header list, by RFC 9113, section 6.5.2; its request is answered with 431. zttp
    announces 64 KiB to clients, and ends the connection of a longer one with the calls of all its
    streams."""

    ping_timeout: float = 10.0
    """For a client to answer the PING after the first GOAWAY. Long: until then the client may not
    have read the GOAWAY, and the streams that it opens are served."""
    goaway_timeout: float = 1.0
    """For a client to close the connection after its last stream. Also in place of
    ``ping_timeout``, while the server drains, or where ``h2_frame_timeout`` ends the connection."""

    # Streams of a connection, out of zttp's 4,096, and resets, out of its 256. A client that obeys
    # a GOAWAY opens at most 128 streams after it (zttp's MAX_CONCURRENT_STREAMS: to open more it
    # has to read that one of them ended, and the GOAWAY precedes that), and resets no more than are
    # open. The distances leave room for that; a client that crosses them ignores GOAWAY.

    goaway_after_streams: int = 2_000
    """Streams, then the first GOAWAY."""
    refuse_after_streams: int = 3_000
    """Streams, then the final GOAWAY without waiting for the PING."""
    ignore_after_streams: int = 4_000
    """Streams, then no more input is read."""
    goaway_after_resets: int = 64
    """RST_STREAM frames, then the first GOAWAY."""
    refuse_after_resets: int = 128
    """RST_STREAM frames, then the final GOAWAY. At most the 128 streams then open follow."""

    # While the server drains

    drain_first_bytes: float = 2.0
    """For a new connection to show whether it speaks HTTP/1.1 or HTTP/2."""
    drain_idle: float = 1.0
    """For the next request on an idle HTTP/1.1 connection, which closes after the response. A proxy
    that has a request on its way, and may not send it again, loses none."""
    drain_request_timeout: float = 1.0
    """In place of ``request_timeout``."""
    drain_response_timeout: float = 2.0
    """In place of ``response_stall_timeout``."""
