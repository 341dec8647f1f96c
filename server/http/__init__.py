"""A small HTTP server library: HTTP/1.1 and HTTP/2 on one port, with TLS or without.

``Server`` is its entry: an ASGI application, listening sockets, ``Limits``, and hooks. It builds on
uvicorn (ASGI, the event loop's protocols) and zttp (HTTP parsing). It imports nothing else of
``server`` and nothing of ``persistence``, and does not know the service.

    from server.http.sockets import listen

    server = Server(app, limits=Limits(keep_alive=60))
    await server.serve(listen("127.0.0.1", 8080))

======================  ========================================================================
``server``              the entry; the order in which a process stops (drain)
``limits``              times, sizes and stream counts that bound a client, with their reasons
``hooks``               the interfaces of what may reject or answer a request before the application
``sockets``             listening sockets, and how they close without losing a connection
``tls_handshake``       a connection until its TLS handshake is over
``negotiation``         a connection until its first bytes show HTTP/1.1 or HTTP/2
``h1``                  an HTTP/1.1 connection
``h1_requests``         what RFC 9112 asks of a request, and how it is refused
``h1_close_delimited``  responses to HTTP/1.0 whose length is not known
``h2``                  the life of an HTTP/2 connection: GOAWAY, refused streams, idleness, age
``h2_flow``             HTTP/2 streams: backpressure, and the way to the hooks or the application
``trailers_only``       responses of gRPC without a message, as its clients need them
``h2_frames``           where HTTP/2 frames and header lists begin and end
``joined_writes``       one write for what a connection writes in one iteration of the event loop
``h2_flood``            how many HTTP/2 frames besides requests a client may send
``descriptors``         what is logged when the process runs out of file descriptors
``timeouts``            clients that send a request, or read a response, too slowly
======================  ========================================================================
"""

from server.http.hooks import Answer, Exchange, H2Connection, Reject
from server.http.limits import Limits
from server.http.negotiation import ALPN_PROTOCOLS
from server.http.server import Server
from server.http.trailers_only import HAS_METADATA

__all__ = [
    "ALPN_PROTOCOLS",
    "HAS_METADATA",
    "Answer",
    "Exchange",
    "H2Connection",
    "Limits",
    "Reject",
    "Server",
]
