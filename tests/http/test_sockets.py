"""Listening sockets."""

import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from server.http.sockets import CannotListen, base_url, listen, stop_accepting

ANOTHER_PROCESS = (
    "import sys; from server.http.sockets import listen; listen('127.0.0.1', int(sys.argv[1]), 2)"
)


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def port_of(listener: socket.socket) -> int:
    return int(listener.getsockname()[1])


@pytest.mark.parametrize("count", [1, 3])
def test_a_port_is_not_shared_with_others(stack: ExitStack, count: int) -> None:
    ours = [stack.enter_context(each) for each in listen("127.0.0.1", 0, count)]
    (port,) = {port_of(each) for each in ours}
    for wanted in (1, 2):
        with pytest.raises(CannotListen, match=f"port {port}: Address already in use"):
            listen("127.0.0.1", port, wanted)
    done = subprocess.run(
        [sys.executable, "-c", ANOTHER_PROCESS, str(port)],
        check=False,
        capture_output=True,
        text=True,
    )
    assert "Address already in use" in done.stderr


def test_connections_are_distributed(stack: ExitStack) -> None:
    ours = [stack.enter_context(each) for each in listen("127.0.0.1", 0, 2)]
    for _ in range(100):
        stack.enter_context(socket.create_connection(ours[0].getsockname()))
    for each in ours:
        each.settimeout(5)
        stack.enter_context(each.accept()[0])


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_no_connection_begins_after_stop_accepting(stack: ExitStack, host: str) -> None:
    (listener,) = listen(host, 0)
    stack.enter_context(listener)
    address = listener.getsockname()[:2]
    before = stack.enter_context(socket.create_connection(address))
    stop_accepting(listener)
    with pytest.raises(TimeoutError):
        socket.create_connection(address, timeout=0.3)
    accepted, _ = listener.accept()
    with accepted:
        before.sendall(b"heard")
        assert accepted.recv(5) == b"heard"
    listener.setblocking(False)
    with pytest.raises(BlockingIOError):
        listener.accept()


def test_base_url(stack: ExitStack) -> None:
    for host, scheme, expected in (
        ("127.0.0.1", "http", "http://127.0.0.1:"),
        ("::1", "https", "https://[::1]:"),
    ):
        (listener,) = listen(host, 0)
        stack.enter_context(listener)
        assert base_url(listener, scheme) == f"{expected}{port_of(listener)}"
