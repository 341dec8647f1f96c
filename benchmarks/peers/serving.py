"""Runs the peers in Python: one process per worker, all on one port."""

import asyncio
import os
import signal
import socket
import sys
import traceback
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from typing import Any, NoReturn, TypeAlias

import asyncpg
import uvloop

Started: TypeAlias = Callable[[], object]

Serve: TypeAlias = Callable[[int, Started, asyncio.Event], Coroutine[Any, Any, None]]
"""Serves on a port, with SO_REUSEPORT; calls ``started`` once it serves, and ends when the event is
set."""


def run(serve: Serve) -> None:
    """Serve in as many processes as LISTINGS_WORKERS says, or in one, until SIGTERM."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())  # so that the other processes end as well
    others: list[int] = []
    with reusable_socket(0) as holder:
        port: int = holder.getsockname()[1]
        try:
            _fork(serve, port, int(os.environ.get("LISTINGS_WORKERS", "1")) - 1, others)
            _serve(serve, port, lambda: print(f"Serving on http://127.0.0.1:{port}", flush=True))
        finally:
            for pid in others:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGTERM)
            for pid in others:
                os.waitpid(pid, 0)


def reusable_socket(port: int) -> socket.socket:
    """Return a socket bound to ``port`` with SO_REUSEPORT."""
    bound = socket.socket()
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    bound.bind(("127.0.0.1", port))
    return bound


@asynccontextmanager
async def pool() -> "AsyncIterator[asyncpg.Pool[asyncpg.Record]]":
    """Open a pool with asyncpg's defaults, including a reset query at each release."""
    async with asyncpg.create_pool(
        os.environ["LISTINGS_DATABASE_URL"],
        min_size=1,
        max_size=int(os.environ["LISTINGS_POOL_SIZE"]),
        command_timeout=5,
    ) as opened:
        yield opened


def _fork(serve: Serve, port: int, count: int, others: list[int]) -> None:
    """Serve in ``count`` more processes, whose PIDs are added to ``others``; wait until they serve.

    Each writes to a pipe once it serves; if it fails before, the pipe is only closed.
    """
    reading, writing = os.pipe()

    def started() -> None:
        os.write(writing, b".")
        os.close(writing)

    for _ in range(count):
        pid = os.fork()
        if pid == 0:
            os.close(reading)
            _serve_and_exit(serve, port, started)
        others.append(pid)
    os.close(writing)
    with open(reading, "rb") as pipe:
        if len(pipe.read()) < count:
            sys.exit("a worker has ended before it served")


def _serve_and_exit(serve: Serve, port: int, started: Started) -> NoReturn:
    status = 1
    try:
        _serve(serve, port, started)
        status = 0
    except Exception:
        traceback.print_exc()
    finally:
        os._exit(status)


def _serve(serve: Serve, port: int, started: Started) -> None:
    async def until_stopped() -> None:
        stopped = asyncio.Event()
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopped.set)
        await serve(port, started, stopped)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(until_stopped())
