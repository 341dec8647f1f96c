"""The sockets that the service listens on, and how they are given up without losing a connection.

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

# Seconds until a silent client is asked, seconds between two questions, and how many are asked.
_TCP_KEEP_ALIVE = {
    socket.TCP_KEEPIDLE: 60,
    socket.TCP_KEEPINTVL: 15,
    socket.TCP_KEEPCNT: 4,
}

# Seconds. Those who have begun to connect get that long to finish.
_HANDSHAKE = 0.05

# Seconds until connections that still come are left to their fate.
_GIVE_UP = 0.5

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
    """The address cannot be listened on. ``str`` says which, and why."""


def listen(host: str, port: int, count: int = 1) -> list[socket.socket]:
    """Return that many sockets that listen on one port; port 0 is a free one.

    The port is ours alone: a second service is refused, although each could share its own.
    Raises CannotListen.
    """
    first = _listen(host, port)
    others = []
    if count > 1:
        # Only now: had it been set before, it would have let us join somebody else's sockets.
        first.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        others = [_listen(*first.getsockname()[:2], share=True) for _ in range(1, count)]
    return [first, *others]


def base_url(listener: socket.socket, scheme: str) -> str:
    """Return the URL of what listens there."""
    host, port = listener.getsockname()[:2]
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"


def turn_away(listener: socket.socket) -> None:
    """Let no more connections begin, in any process that has the socket.

    Who asks for one now gets no answer, asks again after a second, and is refused by then. Closing
    alone would reset every connection that was made in the meantime, with the request on it.
    """
    program = ctypes.create_string_buffer(_DROP_NEW_CONNECTIONS)
    instructions = len(_DROP_NEW_CONNECTIONS) // 8
    with suppress(OSError):  # where the kernel cannot, a connection may be lost
        listener.setsockopt(
            socket.SOL_SOCKET,
            _SO_ATTACH_FILTER,
            struct.pack("@HP", instructions, ctypes.addressof(program)),
        )


async def all_taken(listener: socket.socket) -> None:
    """Wait until the event loop, which serves the socket, has accepted every connection to it."""
    waiting = select.poll()
    waiting.register(listener, select.POLLIN)
    with suppress(TimeoutError):
        async with asyncio.timeout(_GIVE_UP):
            await asyncio.sleep(_HANDSHAKE)
            while waiting.poll(0):  # noqa: ASYNC110 - it is the kernel that knows
                await asyncio.sleep(0)


def _listen(host: str, port: int, *, share: bool = False) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listener = socket.create_server(
            (host, port), family=family, backlog=_BACKLOG, reuse_port=share
        )
    except OSError as error:
        raise CannotListen(f"cannot listen on {host} port {port}: {error.strerror}") from error
    # Connections inherit it. A watcher that vanished without a word would be kept for ever.
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in _TCP_KEEP_ALIVE.items():
        listener.setsockopt(socket.IPPROTO_TCP, option, value)
    return listener
