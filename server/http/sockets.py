"""Listening sockets, and how they close without losing a connection.

Several processes share a port by SO_REUSEPORT: each has a socket of its own, among which the kernel
distributes the connections.
"""

import asyncio
import ctypes
import select
import socket
import struct
from contextlib import suppress

_BACKLOG = 2048

# tcp(7): seconds until a silent client is probed, seconds between two probes, and their number.
_TCP_KEEP_ALIVE = {
    socket.TCP_KEEPIDLE: 60,
    socket.TCP_KEEPINTVL: 15,
    socket.TCP_KEEPCNT: 4,
}

_TCP_HANDSHAKE = 0.05  # seconds for a connection that has begun to be established

_ACCEPT_TIMEOUT = 0.5  # seconds for the event loop to accept what waits in the queue

# Of asm-generic/socket.h, on every architecture that servers have; the module socket lacks it.
_SO_ATTACH_FILTER = 26

# Classic BPF, linux/filter.h: a packet that asks for a new connection (SYN without ACK, in byte 13
# of the TCP header) is dropped, any other is passed on whole.
_DROP_NEW_CONNECTIONS = b"".join(
    struct.pack("=HBBI", *instruction)
    for instruction in (
        (0x30, 0, 0, 13),  # load the flags
        (0x54, 0, 0, 0x12),  # of them, SYN and ACK
        (0x15, 0, 1, 0x02),  # if that is not SYN alone, skip one
        (0x06, 0, 0, 0),  # drop
        (0x06, 0, 0, 0xFFFFFFFF),  # pass
    )
)


class CannotListen(Exception):
    """The address cannot be listened on. Its text names address and reason."""


def listen(host: str, port: int, count: int = 1) -> list[socket.socket]:
    """Return that many sockets that listen on one port; port 0 is a free one.

    No other service can listen on the port meanwhile, although the sockets share it among
    themselves. Raises CannotListen.
    """
    first = _listen(host, port)
    others = []
    if count > 1:
        # Only now: set before, it would allow to join the sockets of another service.
        first.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        others = [_listen(*first.getsockname()[:2], share=True) for _ in range(1, count)]
    return [first, *others]


def base_url(listener: socket.socket, scheme: str) -> str:
    """Return the URL of what listens there."""
    host, port = listener.getsockname()[:2]
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"


def stop_accepting(listener: socket.socket) -> None:
    """Let no more connections begin, in any process that has the socket.

    A client's SYN is dropped; its kernel sends another after a second, and is refused by then.
    Closing alone would reset every connection that was made in the meantime, with the request on
    it.
    """
    program = ctypes.create_string_buffer(_DROP_NEW_CONNECTIONS)
    instructions = len(_DROP_NEW_CONNECTIONS) // 8
    with suppress(OSError):  # without kernel support, a connection may be lost
        listener.setsockopt(
            socket.SOL_SOCKET,
            _SO_ATTACH_FILTER,
            struct.pack("@HP", instructions, ctypes.addressof(program)),
        )


async def accept_pending(listener: socket.socket) -> None:
    """Wait until the event loop, which serves the socket, has accepted every connection to it."""
    queue = select.poll()
    queue.register(listener, select.POLLIN)
    with suppress(TimeoutError):
        async with asyncio.timeout(_ACCEPT_TIMEOUT):
            await asyncio.sleep(_TCP_HANDSHAKE)
            while queue.poll(0):  # noqa: ASYNC110 - only the kernel knows
                await asyncio.sleep(0)


def _listen(host: str, port: int, *, share: bool = False) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listener = socket.create_server(
            (host, port), family=family, backlog=_BACKLOG, reuse_port=share
        )
    except OSError as error:
        raise CannotListen(f"cannot listen on {host} port {port}: {error.strerror}") from error
    # Accepted sockets inherit it. A client that vanished without a FIN would be kept for ever.
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in _TCP_KEEP_ALIVE.items():
        listener.setsockopt(socket.IPPROTO_TCP, option, value)
    return listener
