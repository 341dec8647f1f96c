"""The servers to measure. To add a peer: a module in ``benchmarks.peers``, a line in ``_PEERS``."""

import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from importlib import import_module
from pathlib import Path
from typing import Final

from benchmarks.errors import BenchmarkError
from benchmarks.wire import PROTOCOLS

LISTINGS: Final = "listings-grpc"
BARE: Final = "listings-grpc-bare"
GRPC_AIO: Final = "grpc.aio"
FASTAPI: Final = "fastapi"
GO_GRPC: Final = "go-grpc"
PER_CORE: Final = "-cores"
KEYED: Final = "-keyed"
"""The suffixes of contestants with a process per core, and of those called with keys."""


@dataclass(frozen=True)
class Contestant:
    """A server, and how it is called.

    ``command`` runs it until SIGTERM. It reads LISTINGS_DATABASE_URL, LISTINGS_POOL_SIZE and
    LISTINGS_WORKERS as the service does, and prints a line with ``http://127.0.0.1:PORT`` once it
    serves. ``protocol`` is one of ``benchmarks.wire.PROTOCOLS``. With ``keyed``, each call has an
    idempotency key of its own. ``settings`` are environment variables. Without ``history``,
    the triggers are disabled meanwhile, so that a contestant without a history has no cost for it.
    """

    name: str
    command: tuple[str, ...]
    protocol: str
    keyed: bool = False
    workers: int = 1
    settings: Mapping[str, str] = field(default_factory=dict)
    history: bool = True


@dataclass(frozen=True)
class _Peer:
    name: str
    module: str
    protocol: str
    per_core: bool = False  # whether it is also measured with a process per core


_PEERS: Final = (
    _Peer(GRPC_AIO, "grpc_aio", "grpc", per_core=True),
    _Peer("grpclib", "grpclib_asyncpg", "grpc"),
    _Peer(FASTAPI, "fastapi_sqlalchemy", "json", per_core=True),
    _Peer("connect-hypercorn", "connect_hypercorn", "json-h2"),
    _Peer(GO_GRPC, "go_grpc", "grpc"),
    _Peer("go-connect", "go_connect", "json-h2"),
)


def select(patterns: Sequence[str], extra: Sequence[str] = ()) -> list[str]:
    """Return the names that match one of ``patterns``; without patterns, all.

    ``extra`` are further names. Raises BenchmarkError for a pattern that matches none.
    """
    names = [*(each.name for each in _ours()), *(each for each in _peer_names()), *extra]
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise BenchmarkError(f"there is no contestant {pattern}; there are {', '.join(names)}")
    return [
        name for name in names if not patterns or any(fnmatchcase(name, each) for each in patterns)
    ]


def contestants(
    names: Sequence[str], scratch: Path, say: Callable[[str], object]
) -> list[Contestant]:
    """Return those of ``names``, in the order of a round.

    Peers are built in ``scratch``; one whose tools are missing is left out and reported to ``say``.
    """
    # This service first: other measurements of the round need its rate.
    everybody = [*_ours(), *_peers(names, scratch, say)]
    return [each for each in everybody if each.name in names]


def _ours() -> Iterator[Contestant]:
    command = (sys.executable, "-m", "server", "serve")
    for protocol in PROTOCOLS:
        for workers, per_core in ((1, ""), (os.cpu_count() or 1, PER_CORE)):
            for keyed in (False, True):
                name = f"listings-{protocol}{per_core}{KEYED if keyed else ''}"
                yield Contestant(name, command, protocol, keyed, workers)
    off = {"LISTINGS_STATUS_GUARD": "off"}
    yield Contestant(BARE, command, "grpc", settings=off, history=False)


def _peer_names() -> Iterator[str]:
    for peer in _PEERS:
        yield peer.name
        if peer.per_core:
            yield peer.name + PER_CORE


def _peers(
    names: Sequence[str], scratch: Path, say: Callable[[str], object]
) -> Iterator[Contestant]:
    for peer in _PEERS:
        if not {peer.name, peer.name + PER_CORE} & set(names):
            continue
        try:
            module = import_module(f"benchmarks.peers.{peer.module}")
            command = module.prepare(scratch / peer.module)
        except (ImportError, OSError, BenchmarkError) as error:
            say(f"Without {peer.name}: {error}")
            continue
        yield Contestant(peer.name, command, peer.protocol, history=False)
        if peer.per_core:
            yield Contestant(
                peer.name + PER_CORE,
                command,
                peer.protocol,
                workers=os.cpu_count() or 1,
                history=False,
            )
